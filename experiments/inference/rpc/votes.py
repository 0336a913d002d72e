"""Confidence in the answers of reasoning paths, by every method; how often it chooses well."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import metrics, samplers

VOTES, PERPLEXITY, CONSISTENCY = "self-consistency", "perplexity", "perplexity consistency"
RPC, RPC_SUM, SHUFFLED = "RPC", "RPC, sum of log-probabilities", "RPC, shuffled weights"
ABOVE, MEAN = "votes above the mean", "perplexity consistency above the mean"
ALL, DISTINCT = "all", "distinct"  # Which paths count: each text once, or as often as it is drawn.
ACCURACY, ERROR = "accuracy", "calibration error"
_BINS = 10


def vote(config, num_paths: int, key: chex.PRNGKey, pool) -> dict[str, jax.Array]:
  """Accuracy and calibration of every method with the first paths of several orders of the pool."""
  order_key, weight_key = jax.random.split(key)
  # All orders of the whole pool are the same.
  num_orders = 1 if num_paths == config.paths[-1] else config.num_orders
  shape = num_orders, *pool["answers"].shape
  places = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
  places = jax.random.permutation(order_key, places, axis=-1, independent=True)[..., :num_paths]
  pick = lambda name: jnp.take_along_axis(pool[name][None], places, axis=-1)  # noqa: E731
  answers, mean, total, ids = map(pick, ("answers", "mean", "sum", "ids"))
  targets = jnp.broadcast_to(pool["targets"], shape[:-1])
  found = {}
  for (method, counted), confidence in confidences(
    weight_key, answers, mean, total, ids, num_steps=config.fit_steps
  ).items():
    correct = metrics.vote_accuracy(confidence, answers, targets)
    error = metrics.vote_calibration_error(confidence, answers, targets, num_bins=_BINS)
    found[f"{method}: {counted}"] = {ACCURACY: jnp.mean(correct), ERROR: error}
    if (method, counted) in ((VOTES, ALL), (RPC, ALL)):
      best = jnp.max(jnp.where(answers >= 0, confidence, 0.0), axis=-1).ravel()
      bins = jnp.clip(jnp.ceil(best * _BINS).astype(int) - 1, 0, _BINS - 1)
      rows = jnp.stack([jnp.ones_like(best), best, correct.ravel()])
      sums = jax.vmap(lambda x: jax.ops.segment_sum(x, bins, _BINS))(rows)  # noqa: B023
      found.setdefault("reliability", []).append(sums)
  found["reliability"] = jnp.stack(found["reliability"])
  return found


def confidences(
  key: chex.PRNGKey, answers, mean, total, ids, *, num_steps: int
) -> dict[tuple[str, str], jax.Array]:
  """The confidence of each path's own answer `[..., n]`, by method and by which paths count.

  Args:
    key: of the shuffled weights.
    answers: of the paths `[..., n]`.
    mean: mean log-probability of their tokens.
    total: its sum.
    ids: of their texts.
    num_steps: the most of a fit.
  """
  own = jnp.broadcast_to(jnp.arange(answers.shape[-1], dtype=jnp.int32), answers.shape)
  earlier = (ids[..., :, None] == ids[..., None, :]) & (own[..., :, None] > own[..., None, :])
  first = ~jnp.any(earlier, axis=-1)
  probs = jnp.exp(mean)
  above = probs >= jnp.mean(probs, axis=-1, keepdims=True)
  found = {}
  for counted, mask, texts in ((ALL, None, None), (DISTINCT, first, ids)):
    found[VOTES, counted] = samplers.self_consistency_confidence(answers, mask=mask)
    found[CONSISTENCY, counted] = samplers.perplexity_consistency_confidence(
      answers, mean, path_ids=texts
    )
  found[PERPLEXITY, ALL] = probs
  found[ABOVE, ALL] = samplers.self_consistency_confidence(answers, mask=above)
  found[MEAN, ALL] = samplers.perplexity_consistency_confidence(answers, mean, mask=above)
  # A common factor changes nothing but where the fit starts; sums would be below what it looks at.
  total = total - jnp.max(total, axis=-1, keepdims=True)
  shuffled = jax.random.permutation(key, mean, axis=-1, independent=True)
  variants = {
    (RPC, ALL): (mean, own), (RPC, DISTINCT): (mean, ids), (RPC_SUM, ALL): (total, own),
    (SHUFFLED, ALL): (shuffled, own),
  }  # fmt: skip
  scores, texts = map(jnp.stack, zip(*variants.values()))
  repeated = jnp.broadcast_to(answers, scores.shape)
  options = {"path_ids": texts, "num_steps": num_steps}
  pruned = samplers.pruned_consistency_confidence(repeated, scores, **options)
  return found | dict(zip(variants, pruned))


def named(scores) -> dict[tuple[str, str], dict[str, np.ndarray]]:
  """The scores of `vote` by method and by which paths count."""
  return {tuple(name.split(": ")): values for name, values in scores.items()}
