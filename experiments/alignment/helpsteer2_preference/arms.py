"""The reward models: what each learns from, how it is trained, and how it is scored."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit.train import Trained, train
from jaxlab import data, losses, metrics, models, training, weights

ATTRIBUTES, RATINGS = "regression, all attributes", "regression"
REGULAR, MARGIN, SCALED = "regular Bradley-Terry", "margin Bradley-Terry", "scaled Bradley-Terry"
STRENGTHS, DIFFERENCES = "least squares on strengths", "scaled Bradley-Terry on ratings"
JOINT = "both losses at once"
# Of the attributes in the utility, as the paper weighs those of its ratings.
ATTRIBUTE_WEIGHTS = np.array([0.65, 0.8, 0.45, 0.55, -0.4], np.float32)
FACTORS = (1.0, 1.25, 1.5, 2.0)  # Of the step from the regression to the combined model.
FURTHER = "extrapolated, "


class Pairs(NamedTuple):
  """Pairs of responses.

  Attributes:
    first: features of the first responses, `[n, d]`.
    second: features of the second ones, `[n, d]`.
    first_ratings: of five attributes, `[n, 5]`.
    second_ratings: of five attributes, `[n, 5]`.
    rated: whether the ratings may be learnt from, `[n]`.
    strengths: of the preference for the second, 0 where there is none, `[n]`.
  """

  first: chex.Array
  second: chex.Array
  first_ratings: chex.Array
  second_ratings: chex.Array
  rated: chex.Array
  strengths: chex.Array


class Task(NamedTuple):
  """Pairs with noisy labels to train and to choose on; pairs judged by the true utility."""

  train: Pairs
  validation: Pairs
  test: Pairs
  shifted: Pairs

  @property
  def judged(self) -> dict[str, Pairs]:
    """The parts that reward models are scored on."""
    return {"validation": self.validation, "test": self.test, "shifted": self.shifted}


@functools.partial(jax.jit, static_argnums=0)
def draw(config, key: chex.PRNGKey) -> Task:
  """All pairs of a seed, which share no response."""
  noisy = config.num_pairs + config.num_validation
  options = {"num_features": config.num_features, "num_domains": config.num_domains}
  options["rating_noise"] = config.rating_noise
  keys = jax.random.split(key)
  near = data.annotated_pairs(keys[0], num_pairs=noisy + config.num_test, **options)
  far = data.annotated_pairs(keys[1], num_pairs=config.num_test, shifted=True, **options)

  def part(drawn, begin, size, judged):
    rows = jax.tree.map(lambda x: x[begin : begin + size], drawn)
    strengths = data.aggregate_preferences(rows.strengths, rows.counts).strength
    if judged:
      strengths = jnp.sign(rows.utilities[:, 1] - rows.utilities[:, 0]).astype(jnp.int32)
    # From the middle of the scale, where a network begins.
    ratings = rows.first_ratings - 2, rows.second_ratings - 2
    rated = jnp.arange(size) < config.num_rated
    return Pairs(rows.first, rows.second, *ratings, rated, strengths)

  return Task(
    part(near, 0, config.num_pairs, False),
    part(near, config.num_pairs, config.num_validation, False),
    part(near, noisy, config.num_test, True),
    part(far, 0, config.num_test, True),
  )


def network(config, arm: str) -> models.MLP:
  """A reward, or a rating of every attribute."""
  return models.MLP(5 if arm == ATTRIBUTES else 1, config.widths)


def rewards(config, arm: str, params, inputs: chex.Array) -> jax.Array:
  """The rewards of responses, `[n]`."""
  outputs = network(config, arm).apply({"params": params}, inputs).logits
  return losses.weighted_reward(outputs, ATTRIBUTE_WEIGHTS) if arm == ATTRIBUTES else outputs[:, 0]


def _oriented(strengths, first, second):
  """Rewards of the chosen and of the rejected responses, and the strength of the preference."""
  index, magnitude = data.orient_pairs(strengths)
  chosen, rejected = (jnp.where(index == i, first, second) for i in (0, 1))
  return chosen, rejected, magnitude


def pair_loss(config, arm: str):
  """The engine's loss of an arm on batches of `Pairs`."""
  module = network(config, arm)

  def regress(outputs, ratings):
    return losses.attribute_regression_loss(outputs, ratings)

  def compare(arm, strengths, *sides):
    chosen, rejected, magnitude = _oriented(strengths, *sides)
    if arm == STRENGTHS:
      return jnp.square(chosen - rejected - magnitude)
    if arm in (SCALED, DIFFERENCES, JOINT):
      return losses.scaled_bradley_terry_loss(chosen, rejected, magnitude)
    margin = magnitude.astype(jnp.float32) if arm == MARGIN else None
    return losses.bradley_terry_loss(chosen, rejected, margin=margin)

  def loss(params, model_state, batch, key):
    del model_state, key
    both = jnp.concatenate([batch.first, batch.second])
    outputs = jnp.split(module.apply({"params": params}, both).logits, 2)
    ratings = batch.first_ratings, batch.second_ratings
    if arm == ATTRIBUTES:
      return training.LossOutput(sum(map(regress, outputs, ratings)))
    totals = [losses.weighted_reward(x, ATTRIBUTE_WEIGHTS) for x in ratings]
    rated = sum(regress(x, y[:, None]) for x, y in zip(outputs, totals))
    if arm == RATINGS:
      return training.LossOutput(rated)
    strengths, sides = batch.strengths, [x[:, 0] for x in outputs]
    if arm == DIFFERENCES:
      strengths = data.ratings_to_strength(*totals)
    preferred = (strengths != 0).astype(jnp.float32)
    values = compare(arm, strengths, *sides)
    if arm == JOINT:
      return training.LossOutput(batch.rated * rated + preferred * values)
    return training.LossOutput(values, preferred)

  return loss


def accuracies(scores, parts: Mapping[str, Pairs]) -> dict[str, jax.Array]:
  """Shares of pairs in the right order, in percent; `scores(inputs)` are rewards."""
  sides = [side for pairs in parts.values() for side in (pairs.first, pairs.second)]
  ends = np.cumsum([len(side) for side in sides])[:-1]
  found = jnp.split(scores(jnp.concatenate(sides)), ends)
  shares = {}
  for name, first, second in zip(parts, found[::2], found[1::2]):
    chosen, rejected, magnitude = _oriented(parts[name].strengths, first, second)
    shares[name] = 100 * metrics.pairwise_accuracy(chosen, rejected, weights=magnitude)
  return shares


def fit(config, key, task: Task, arm: str, setting, *, num_steps: int, begin=None):
  """Trains one reward model: its parameters at the evaluation of the best validation accuracy.

  The learning rate falls to 0 as a cosine at the setting's own, traced, number of updates; nothing
  changes after it.
  """
  rows = task.train
  if arm in (ATTRIBUTES, RATINGS, DIFFERENCES):  # Others read preferences.
    rows = jax.tree.map(lambda x: x[: config.num_rated], rows)

  def rate(step):
    share = jnp.minimum(step / setting["num_steps"], 1.0)
    return setting["learning_rate"] * (1 + jnp.cos(jnp.pi * share)) / 2

  def evaluate(trained):
    scores = functools.partial(rewards, config, arm, trained.params)
    return accuracies(scores, {"validation": task.validation})["validation"], trained.params

  found, params = train(
    key,
    network(config, arm),
    pair_loss(config, arm),
    optax.adamw(rate, weight_decay=setting["weight_decay"]),
    rows,
    num_steps=num_steps,
    batch_size=config.batch_size,
    start=None if begin is None else Trained(begin, {}),
    evaluate=evaluate,
    eval_every=config.eval_every,
  ).scores
  return jax.tree.map(lambda x: x[jnp.argmax(found)], params)


def evaluate_arm(config, key, task: Task, setting, *, arm: str) -> dict[str, jax.Array]:
  """The accuracies of one arm."""
  params = fit(config, key, task, arm, setting, num_steps=2 * config.num_steps)
  return accuracies(functools.partial(rewards, config, arm, params), task.judged)


def evaluate_combined(config, key, inputs, setting) -> dict[str, jax.Array]:
  """Scaled Bradley-Terry started from the regression, and its extrapolations."""
  task, chosen = inputs
  sizes = {"num_steps": config.num_steps}
  first = fit(config, key, task, RATINGS, chosen[RATINGS], **sizes)
  last = fit(config, key, task, SCALED, setting, begin=first, **sizes)

  def at(factor):
    params = weights.interpolate(first, last, factor)
    return accuracies(functools.partial(rewards, config, SCALED, params), task.judged)

  found = jax.lax.map(at, jnp.array(FACTORS))
  best = jnp.argmax(found["validation"])
  extrapolated = {FURTHER + name: values[best] for name, values in found.items()}
  plain = {name: values[0] for name, values in found.items()}
  return plain | extrapolated | {"chosen factor": jnp.array(FACTORS)[best]}


def evaluate_mean(config, key, inputs, setting) -> dict[str, jax.Array]:
  """The mean of the standardized rewards of the regression and of scaled Bradley-Terry."""
  del setting
  task, chosen = inputs
  seen = jnp.concatenate([task.train.first, task.train.second])
  found = []
  for arm in (RATINGS, SCALED):
    params = fit(config, key, task, arm, chosen[arm], num_steps=config.num_steps)
    found.append(functools.partial(rewards, config, arm, params))
  spreads = [scores(seen).std() for scores in found]

  def mean(inputs):
    return sum(scores(inputs) / spread for scores, spread in zip(found, spreads))

  return accuracies(mean, task.judged)
