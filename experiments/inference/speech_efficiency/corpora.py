"""Simulated corpora, ways to put utterances into batches, and what padding costs in each."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from jaxlab import samplers

RANDOM, DYNAMIC = "random, fixed size", "random, dynamic size"
POOL, SORTED, ORACLE = "sorted pool", "sorted corpus", "no padding"
KEPT, DROPPED = "kept", "dropped"  # Outliers.
MEASURES = "audio padding", "token padding", "mean batch", "log batch", "batches", "compute"
ONCE = "samplers that see every utterance once"
_LONG_SHARE, _LONG, _SHORT, _SPREAD = 0.3, (15.0, 40.0), 5.0, 0.6  # Seconds.
_TOKEN_RATE, _RATE_SPREAD = 4.0, 0.45  # Tokens a second.


class Corpus(NamedTuple):
  """Utterances: seconds and tokens of each, `[n]`."""

  durations: np.ndarray
  tokens: np.ndarray


def draw_corpus(seed: int, num: int) -> Corpus:
  """Draws a corpus; its most tokens a second are far from the usual."""
  rng = np.random.default_rng(seed)
  short = np.clip(_SHORT * np.exp(_SPREAD * rng.standard_normal(num)), 0.5, _LONG[1])
  durations = np.where(rng.random(num) < _LONG_SHARE, rng.uniform(*_LONG, num), short)
  rates = _TOKEN_RATE * np.exp(_RATE_SPREAD * rng.standard_normal(num))
  return Corpus(durations, np.maximum(np.round(rates * durations), 1))


def memory(durations: np.ndarray, tokens: np.ndarray) -> np.ndarray:
  """What an utterance takes, padded to these sizes, in seconds of short audio."""
  return durations + durations**2 / 60 + 0.15 * tokens + tokens**2 / 3000


def cut(order: Iterable[int], corpus: Corpus, budget: float) -> list[np.ndarray]:
  """Cuts utterances, in an order, into batches that just fit the budget when padded."""
  batches, batch, longest, most = [], [], 0.0, 0.0
  for i in order:
    size = max(longest, corpus.durations[i]), max(most, corpus.tokens[i])
    if batch and (len(batch) + 1) * memory(*size) > budget:
      batches.append(np.array(batch))
      batch, size = [], (corpus.durations[i], corpus.tokens[i])
    batch.append(i)
    longest, most = size
  return [*batches, np.array(batch)]


def largest_batches(costs: np.ndarray, budget: float) -> list[int]:
  """The largest batch of each bucket, by the search that a compiler's memory needs too."""
  options = {"budget": budget, "relative_gap": 0.01}
  found = [samplers.search_batch_size_linear(cost_per_example=x, **options) for x in costs]
  return [max(x.batch_size, 1) for x in found]


def in_buckets(seed, corpus: Corpus, budget: float, num: int, num_sub: int = 0, *, whole=False):
  """Batches of buckets by duration, with `num_sub` also by tokens; what fits into none at random.

  Buckets by duration expect their most tokens, or those of the `whole` corpus.
  """
  lengths, longest = np.stack(corpus, axis=1), corpus.durations.max()
  if num_sub:
    options = {"num_buckets": num, "num_sub_buckets": num_sub}
    bounds = sizes = samplers.estimate_duration_token_bins(*corpus, **options).bins.astype(float)
  else:
    lengths = corpus.durations
    bounds = np.unique([*samplers.estimate_duration_bins(lengths, num_buckets=num), longest])
    bucket = samplers.assign_buckets(lengths, bounds)
    most = [corpus.tokens[(bucket == i) | whole].max(initial=1) for i in range(len(bounds))]
    sizes = np.stack([bounds, most], axis=1)
  rest = np.flatnonzero(samplers.assign_buckets(lengths, bounds) < 0)
  rows = largest_batches(memory(*sizes.T), budget)
  batches = list(samplers.bucket_batches(seed, lengths, bounds, batch_sizes=rows))
  return batches + (cut(rest, corpus, budget) if len(rest) else [])


def all_batches(config, seed: int, corpus: Corpus, budget: float) -> dict[str, list[np.ndarray]]:
  """One epoch of every sampler; a random batch has a fixed size."""
  rng, num, size = np.random.default_rng(seed), len(corpus.durations), config.random_batch
  order, few, (sub, *more) = rng.permutation(num), config.num_buckets, config.sub_buckets
  pools = [order[i : i + config.pool] for i in range(0, num, config.pool)]
  pools = np.concatenate([pool[np.argsort(corpus.durations[pool])] for pool in pools])
  made = functools.partial(in_buckets, seed, corpus, budget)
  return {
    RANDOM: [order[i : i + size] for i in range(0, num, size)],
    DYNAMIC: cut(order, corpus, budget),
    POOL: cut(pools, corpus, budget),
    SORTED: cut(np.argsort(corpus.durations), corpus, budget),
    f"1-D, {few}, tokens of the corpus": made(few, whole=True),
    **{f"1-D, {n}": made(n) for n in (few, few * sub)},
    **{f"2-D, {few} x {n}": made(few, n) for n in (sub, *more)},
  }


def describe(corpus: Corpus, batches: list[np.ndarray]) -> dict[str, float]:
  """Shares of padding, the mean batch, and the padded compute of an utterance."""
  counts = np.array([len(batch) for batch in batches])
  longest, most = (np.array([x[batch].max() for batch in batches]) for x in corpus)
  total, num = counts.sum(), len(batches)
  paddings = (1 - x.sum() / (counts @ y) for x, y in zip(corpus, (longest, most)))
  compute = counts @ memory(longest, most) / total
  return dict(zip(MEASURES, (*paddings, total / num, np.log(total / num), num, compute)))


def compare_samplers(config, seed: int) -> dict[str, dict[str, dict[str, float]]]:
  """What `describe` says of all samplers, outliers kept and dropped: means over corpora."""
  found = {KEPT: [], DROPPED: []}
  for i in range(config.num_corpora):
    number = seed * config.num_corpora + i
    corpus = draw_corpus(number, config.num_utterances)
    for of_corpora in found.values():
      # Of one draw, so that the second time unusual rates are left out.
      budget = config.random_batch * memory(*(x.max() for x in corpus))
      every = all_batches(config, number, corpus, budget)
      rows = {name: describe(corpus, batches) for name, batches in every.items()}
      num, least = len(corpus.durations), memory(*corpus).mean()
      ideal = budget / least
      rows[ORACLE] = dict(zip(MEASURES, (0.0, 0.0, ideal, np.log(ideal), num / ideal, least)))
      seen = [np.array_equal(np.sort(np.concatenate(x)), range(num)) for x in every.values()]
      rows[ORACLE] |= {"correlation": np.corrcoef(*corpus)[0, 1], ONCE: np.mean(seen)}
      of_corpora.append(rows)
      rates = corpus.tokens / corpus.durations
      usual = rates <= rates.mean() + config.outlier * rates.std()
      corpus = Corpus(*(x[usual] for x in corpus))
  return {name: jax.tree.map(lambda *x: float(np.mean(x)), *rows) for name, rows in found.items()}
