"""Paraphrased responses: a decoder learns to give them, and then to prefer some to others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit.alignment import Pairs, Preferred, pair_log_probs, prefer
from experiments.kit.language_models import decoder, fit_decoder, response_log_probs
from jaxlab import data, losses, metrics

SCORE, RAW = "displacement score", "score without length normalization"
EDIT, LAST, LENGTH = "edit distance", "last hidden states", "difference of lengths"
MEASURES = (SCORE, RAW, EDIT, LAST, LENGTH)  # All higher where more displacement is foretold.
RIVALS = (EDIT, LAST, LENGTH)

ALL, SFT, AT_RANDOM = "all pairs", "all pairs, SFT term", "at random"
LOWEST, RANDOM = f"half, by {SCORE}", f"half, {AT_RANDOM}"
# Filter -> the measure of which the lowest are kept, and how many.
FILTERS = {
  ALL: (SCORE, 1.0),
  **{f"half, by {name}": (name, 0.5) for name in (SCORE, RAW, EDIT, LENGTH)},
  RANDOM: (AT_RANDOM, 0.5),
  f"tenth, by {SCORE}": (SCORE, 0.1),
  f"tenth, {AT_RANDOM}": (AT_RANDOM, 0.1),
}
REFUSALS = tuple(f"refusals, {part} prompts (%)" for part in ("training", "validation", "test"))
CHANGE = "change of the log-probability"


def task_of(config, seed) -> data.ParaphraseConfig:
  """Prompts and responses of a seed, which may be traced."""
  num_prompts = sum(config.prompts)
  names = ("num_classes", "paraphrases", "class_words", "function_words", "max_length")
  return data.ParaphraseConfig(num_prompts, *(getattr(config, n) for n in names), seed)


def network(config):
  """The decoder."""
  task, (width, num_layers) = task_of(config, 0), config.decoder
  length = task.prompt_length + task.response_length
  sizes = {"hidden_size": width, "num_layers": num_layers, "num_heads": config.num_heads}
  return decoder(task.vocab_size, length, **sizes)


def pretrain(config, key, seed):
  """Trains a decoder on the texts of a seed, and draws its pairs of preferences.

  Returns:
    The seed, `params`, the `pairs` of both data sets with log-probabilities before training, and
    the probabilities of `classes` by prompt.
  """
  task, model = task_of(config, seed), network(config)
  fit_key, mixed_key, refusal_key, quality_key = jax.random.split(key, 4)
  params = fit_decoder(
    fit_key,
    model,
    lambda key, batch_size: data.paraphrase_batch(key, task, batch_size),
    num_steps=config.pretraining_updates,
    batch_size=config.pretraining_rows,
    learning_rate=config.pretraining_rate,
  ).params
  # Shorter responses are preferred, at random among those of one length.
  noise = jax.random.uniform(quality_key, task.responses.lengths.shape, maxval=0.5)
  quality = jnp.ravel(noise - task.responses.lengths)
  mixed = draw_pairs(config, mixed_key, task, quality)
  options = {"chosen_class": 0, "within_class_fraction": 1.0}
  refusals = draw_pairs(config, refusal_key, task, quality, **options)
  drawn = {"seed": jnp.asarray(seed), "params": params, "classes": class_probs(task, model, params)}
  for name, pairs in (("mixed", mixed), ("refusals", refusals)):
    drawn[name] = pairs._asdict()
    drawn[f"{name}, before"] = pair_log_probs(model, params, pairs)
    drawn[f"{name}, measures"] = foretell(task, model, params, pairs)
  return drawn


def draw_pairs(config, key, task, quality, **options):
  """Pairs of responses to the training prompts, of which the better one is chosen.

  With a preference at random the same two responses would occur in both orders.
  """
  task = dataclasses.replace(task, num_prompts=config.prompts[0])
  pairs = data.paraphrase_pairs(key, task, num_pairs=config.num_pairs, **options)
  known = task.responses.tokens.reshape(1, -1, task.response_length)

  def of_response(tokens):
    equal = jnp.all(tokens[:, None, task.prompt_length :] == known, axis=-1)
    return quality[jnp.argmax(equal, axis=1)]

  swapped = of_response(pairs.rejected_tokens) > of_response(pairs.chosen_tokens)

  def both(first, second):
    where = swapped.reshape(-1, *[1] * (first.ndim - 1))
    return jnp.where(where, second, first), jnp.where(where, first, second)

  tokens = both(pairs.chosen_tokens, pairs.rejected_tokens)
  masks = both(pairs.chosen_mask, pairs.rejected_mask)
  return data.PreferencePairs(*tokens, *masks, *both(pairs.chosen_class, pairs.rejected_class))


def pairs_of(drawn, name, rows=slice(None)) -> Pairs:
  """Pairs of a data set of `pretrain`."""
  return Pairs(*(drawn[name][field][rows] for field in Pairs._fields))


def foretell(task, model, params, pairs) -> dict[str, jax.Array]:
  """The measures of pairs before training, `[n]` each."""
  sides = (pairs.chosen_tokens, pairs.chosen_mask), (pairs.rejected_tokens, pairs.rejected_mask)
  masks = [mask for _, mask in sides]
  hidden = [
    model.apply({"params": params}, tokens, return_hidden=True).hidden for tokens, _ in sides
  ]
  lengths = [mask.sum(1).astype(jnp.int32) for mask in masks]
  responses = [tokens[:, task.prompt_length :] for tokens, _ in sides]
  distance = metrics.normalized_edit_distance(responses[0], lengths[0], responses[1], lengths[1])
  return {
    SCORE: metrics.centered_hidden_similarity(*hidden, *masks, normalize_length=True),
    RAW: metrics.centered_hidden_similarity(*hidden, *masks),
    EDIT: -distance,
    LAST: metrics.last_hidden_similarity(*hidden, *masks),
    LENGTH: (lengths[1] - lengths[0]).astype(jnp.float32),
  }


def class_probs(task, model, params) -> jax.Array:
  """Probability that a prompt is answered by a response of each class, `[num_prompts, classes]`."""
  responses = task.responses
  first = task.vocab_size - task.num_prompts
  shape = (*responses.lengths.shape, 1)
  places = jnp.arange(task.prompt_length + task.response_length) - task.prompt_length
  mask = (places >= 0) & (places < responses.lengths[..., None])

  def of_prompt(prompt):
    separator = jnp.ones(shape, jnp.int32)
    tokens = jnp.concatenate([prompt * separator, separator, responses.tokens], axis=-1)
    log_probs = response_log_probs(model, params, tokens, mask)
    return jnp.sum(jnp.exp(log_probs), axis=-1)

  return jax.lax.map(of_prompt, first + jnp.arange(task.num_prompts))


def optimize(config, key, drawn, name, rows, count, sft_weight) -> Preferred:
  """DPO on the first `count` of these rows of a data set, until its margin reaches a value."""

  def loss(*log_probs):
    return losses.rpo_loss(*log_probs, beta=config.beta, sft_weight=sft_weight)

  return prefer(
    key, network(config), drawn["params"], pairs_of(drawn, name, rows),
    drawn[f"{name}, before"][rows], loss, optax.adam(config.learning_rate), count=count,
    batch_size=config.batch_size, beta=config.beta, margin=config.margin,
    max_updates=config.max_updates, check_every=config.check_every,
  )  # fmt: skip


def train_groups(config, key, argument):
  """Trains on each group of pairs alone, from the lowest to the highest of a measure.

  Args:
    config: of the experiment.
    key: of the order of the pairs.
    argument: the result of `pretrain`, and the measure of the pairs, `[n]`.

  Returns:
    quantity -> values `[num_groups]`.
  """
  drawn, measure = argument
  model, num = network(config), config.num_pairs // config.num_groups

  def of_group(rows):
    after = optimize(config, key, drawn, "mixed", rows, num, 0.0)
    log_probs = pair_log_probs(model, after.params, pairs_of(drawn, "mixed", rows))
    change = metrics.likelihood_displacement(drawn["mixed, before"][rows, 0], log_probs[:, 0])
    return {
      CHANGE: change.mean_change,
      "less likely (%)": 100 * change.share_decreased,
      "margin": after.margin,
      "updates": after.updates,
      "measure": jnp.mean(measure[rows]),
      "spread of the measure": jnp.std(measure[rows], ddof=1),
    }

  return jax.lax.map(of_group, jnp.argsort(measure).reshape(config.num_groups, num))


def kept_pairs(key, drawn) -> dict[str, jax.Array]:
  """Which pairs on refusals each filter keeps, `[n]`."""
  measures = drawn["refusals, measures"]
  measures = measures | {AT_RANDOM: jax.random.uniform(key, measures[SCORE].shape)}
  return {
    name: metrics.lowest_scores_mask(measures[by], fraction=fraction)
    for name, (by, fraction) in FILTERS.items()
  }


def train_on_refusals(config, key, argument):
  """Trains on the pairs that a filter keeps.

  Args:
    config: of the experiment.
    key: of the order of the pairs.
    argument: the result of `pretrain`; the pairs that are `kept`; `sft_weight`.

  Returns:
    quantity -> value; refusals are in percent, means over prompts of a part.
  """
  drawn, setting = argument
  model, kept = network(config), setting["kept"]
  rows, count = jnp.argsort(~kept, stable=True), jnp.sum(kept)
  after = optimize(config, key, drawn, "refusals", rows, count, setting["sft_weight"])
  probs = class_probs(task_of(config, drawn["seed"]), model, after.params)
  log_probs = pair_log_probs(model, after.params, pairs_of(drawn, "refusals"))
  change = (log_probs - drawn["refusals, before"])[:, 0]
  return {
    **refusals(config, probs),
    "valid (%)": 100 * jnp.mean(jnp.sum(probs, axis=1)),
    CHANGE: jnp.mean(change, where=kept),
    "margin": after.margin,
    "updates": after.updates,
  }


def refusals(config, probs) -> dict[str, jax.Array]:
  """Probability of refusals in percent, means over training, validation and test prompts."""
  parts = jnp.split(100 * probs[:, 0], np.cumsum(config.prompts)[:-1])
  return {name: jnp.mean(part) for name, part in zip(REFUSALS, parts)}
