"""The reward models: what each learns from, how it is trained, and how it is scored."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.train import Trained, adamw_cosine, train
from jaxlab import data, losses, metrics, models, training, weights

ATTRIBUTES, RATINGS = "regression, all attributes", "regression"
REGULAR, MARGIN, SCALED = "regular Bradley-Terry", "margin Bradley-Terry", "scaled Bradley-Terry"
STRENGTHS, DIFFERENCES = "least squares on strengths", "scaled Bradley-Terry on ratings"
JOINT = "both losses at once"
# Of the attributes in the utility, as the paper weighs those of its ratings.
ATTRIBUTE_WEIGHTS = np.array([0.65, 0.8, 0.45, 0.55, -0.4], np.float32)
FACTORS = (1.0, 1.25, 1.5, 2.0)  # Of the step from the regression to the combined model.
TWICE, FURTHER = "twice the updates, ", "extrapolated, "


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


def accuracies(scores, task: Task) -> dict[str, jax.Array]:
  """Shares of pairs in the right order, in percent; `scores(inputs)` are rewards."""
  parts = {"validation": task.validation, "test": task.test, "shifted": task.shifted}
  found = {}
  for name, pairs in parts.items():
    chosen, rejected, magnitude = _oriented(
      pairs.strengths, scores(pairs.first), scores(pairs.second)
    )
    found[name] = 100 * metrics.pairwise_accuracy(chosen, rejected, weights=magnitude)
  return found


def fit(config, key, task: Task, arm: str, setting, *, num_steps: int, begin=None, scores=None):
  """Trains one reward model: accuracies and parameters at every evaluation.

  `scores(params)` gives other accuracies than those of the model itself.
  """
  rows = task.train
  if arm in (ATTRIBUTES, RATINGS, DIFFERENCES):  # Others read preferences.
    rows = jax.tree.map(lambda x: x[: config.num_rated], rows)

  def own(params):
    return accuracies(functools.partial(rewards, config, arm, params), task)

  return train(
    key,
    network(config, arm),
    pair_loss(config, arm),
    adamw_cosine(setting["learning_rate"], num_steps, weight_decay=setting["weight_decay"]),
    rows,
    num_steps=num_steps,
    batch_size=config.batch_size,
    start=None if begin is None else Trained(begin, {}),
    evaluate=lambda trained: ((scores or own)(trained.params), trained.params),
    eval_every=config.eval_every,
  ).scores


def _best(found, tree):
  """The entries of the first evaluation of the highest validation accuracy."""
  place = jnp.argmax(found["validation"])
  return jax.tree.map(lambda x: x[place], tree)


def evaluate_arm(config, key, task: Task, setting, *, arm: str) -> dict[str, jax.Array]:
  """An arm at its best evaluation, trained for as many updates as a stage and for twice as many."""
  scores = {}
  for prefix, num_steps in (("", config.num_steps), (TWICE, 2 * config.num_steps)):
    found, _ = fit(config, key, task, arm, setting, num_steps=num_steps)
    scores |= {prefix + name: value for name, value in _best(found, found).items()}
  return scores


def _regression(config, key, task: Task, chosen):
  found, params = fit(config, key, task, RATINGS, chosen, num_steps=config.num_steps)
  return _best(found, params)


def evaluate_combined(config, key, inputs, setting) -> dict[str, jax.Array]:
  """Scaled Bradley-Terry started from the regression, and its extrapolations."""
  task, chosen = inputs
  first = _regression(config, key, task, chosen[RATINGS])

  def scores(params):
    points = [
      weights.interpolate(first, params, factor) if factor != 1 else params for factor in FACTORS
    ]
    found = [accuracies(functools.partial(rewards, config, SCALED, x), task) for x in points]
    return {name: jnp.stack([x[name] for x in found]) for name in found[0]}

  found, _ = fit(
    config, key, task, SCALED, setting, num_steps=config.num_steps, begin=first, scores=scores
  )
  plain = {name: values[:, 0] for name, values in found.items()}
  at = _best(plain, found)
  factor = jnp.argmax(at["validation"])
  extrapolated = {FURTHER + name: values[factor] for name, values in at.items()}
  extrapolated["chosen factor"] = jnp.array(FACTORS)[factor]
  return {name: values[0] for name, values in at.items()} | extrapolated


def evaluate_mean(config, key, inputs, setting) -> dict[str, jax.Array]:
  """The mean of the standardized rewards of the regression and of scaled Bradley-Terry."""
  del setting
  task, chosen = inputs
  found, params = fit(config, key, task, SCALED, chosen[SCALED], num_steps=config.num_steps)
  models = (
    (RATINGS, _regression(config, key, task, chosen[RATINGS])),
    (SCALED, _best(found, params)),
  )
  seen = jnp.concatenate([task.train.first, task.train.second])

  def scores(inputs):
    total = 0.0
    for arm, params in models:
      spread = rewards(config, arm, params, seen).std()
      total += rewards(config, arm, params, inputs) / spread
    return total

  return accuracies(scores, task)
