"""Batches of sequences of like length: buckets by duration and token count, on the host.

Padding is computed as if it were data. Buckets that hold equal total durations, with a batch size
of their own each, keep it small; a second dimension does so for the tokens of the decoder.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_arrays, check_at_least, check_filled, check_range


class DurationTokenBins(NamedTuple):
  """Buckets of two dimensions, sorted by duration and then by tokens.

  Attributes:
    bins: largest duration and largest token count of each bucket, float32 `[m, 2]`, rounded up.
    max_ratio: most tokens a second among the items of the duration's bucket, float32 `[m]`, rounded
      up.
  """

  bins: np.ndarray
  max_ratio: np.ndarray


def estimate_duration_bins(durations: chex.Array, *, num_buckets: int) -> list[float]:
  """Boundaries between buckets of equal total duration.

  Durations are walked through in ascending order. A bucket ends before the first item that finds
  the sum above the share of a bucket, and that item's duration is the boundary.

  Args:
    durations: durations of n items, `[n]`, > 0.
    num_buckets: number of buckets, in [2, n].

  Returns:
    At most `num_buckets - 1` boundaries in ascending order; equal ones if items are equally long.
    With the largest duration behind them they are upper bounds for `assign_buckets`.

  Raises:
    ValueError: if `num_buckets` lies outside [2, n], or a duration is not positive.

  Reference: Żelasko et al., Training and Inference Efficiency of Encoder-Decoder Speech Models,
  2025, section 3, https://arxiv.org/abs/2503.05931, as in the package lhotse.
  """
  durations = _lengths("durations", durations, "[n]")
  _check_num_buckets(num_buckets, len(durations))
  ordered = np.sort(durations)
  return [float(ordered[i]) for i in _starts(ordered, num_buckets)[1:]]


def estimate_duration_token_bins(
  durations: chex.Array,
  num_tokens: chex.Array,
  *,
  num_buckets: int = 30,
  num_sub_buckets: int = 2,
  outlier_threshold: float = 4.0,
) -> DurationTokenBins:
  """Buckets by duration, each cut into buckets of equal total token count.

  Within a bucket of durations, items of unusually many tokens a second are left out; the rule of
  `estimate_duration_bins` then cuts the token counts.

  Args:
    durations: durations of n items, `[n]`, > 0.
    num_tokens: their token counts, `[n]`, > 0.
    num_buckets: number of buckets of durations, in [2, n].
    num_sub_buckets: number of buckets of tokens in each of them, at least 1.
    outlier_threshold: standard deviations above the bucket's mean of tokens a second from which on
      an item is left out, > 0.

  Returns:
    The `DurationTokenBins`.

  Raises:
    ValueError: if `num_buckets` lies outside [2, n], `num_sub_buckets` < 1, `outlier_threshold` <=
      0, or a duration or token count is not positive.

  Reference: Żelasko et al., Training and Inference Efficiency of Encoder-Decoder Speech Models,
  2025, section 3, https://arxiv.org/abs/2503.05931. The authors' script takes the tokens of all
  items from a bucket's start on; here they are those of the bucket.
  """
  durations = _lengths("durations", durations, "[n]")
  num_tokens = _lengths("num_tokens", num_tokens, f"[{len(durations)}]")
  _check_num_buckets(num_buckets, len(durations))
  check_at_least(1, num_sub_buckets=num_sub_buckets)
  check_range("outlier_threshold", outlier_threshold, "(0, inf)")
  order = np.argsort(durations, kind="stable")
  durations, num_tokens = durations[order], num_tokens[order]
  starts = [*_starts(durations, num_buckets), len(durations)]
  rows = []
  for start, stop in zip(starts, starts[1:]):
    bound = durations[stop] if stop < len(durations) else durations[-1]
    tokens, ratios = num_tokens[start:stop], num_tokens[start:stop] / durations[start:stop]
    kept = ratios <= ratios.mean() + outlier_threshold * ratios.std()
    # Rounding can put the mean of equal ratios below them.
    kept |= ratios == ratios.min()
    tokens = np.sort(tokens[kept])
    bounds = [tokens[i] for i in _starts(tokens, num_sub_buckets)[1:]] + [tokens[-1]]
    rows += [(bound, tokens_bound, ratios[kept].max()) for tokens_bound in bounds]
  rows.sort()
  table = _rounded_up(np.array(rows))
  return DurationTokenBins(table[:, :2], table[:, 2])


def assign_buckets(
  lengths: chex.Array,
  upper_bounds: chex.Array,
  *,
  strict: bool = True,
  max_ratio: chex.Array | None = None,
) -> np.ndarray:
  """The bucket of each item; bounds are inclusive.

  Args:
    lengths: durations `[n]`, or durations and token counts `[n, 2]`, > 0.
    upper_bounds: bounds of m buckets, `[m]` or `[m, 2]`, in ascending order (first by duration).
    strict: in two dimensions, whether only buckets of the smallest duration bound that fits are
      searched, for the smallest token bound that fits; else the first bucket that fits is taken.
    max_ratio: for strict assignment, most tokens per duration in each bucket, `[m]`; an item with
      more than its bucket allows has none. None for no limit.

  Returns:
    Index of the bucket, int32 `[n]`; -1 where there is none.

  Raises:
    ValueError: if bounds are not sorted, a length is not positive, or shapes differ.

  Reference: Żelasko et al., 2025, section 3, https://arxiv.org/abs/2503.05931.
  """
  dims = "" if np.ndim(upper_bounds) < 2 else ", 2"
  lengths = _lengths("lengths", lengths, f"[n{dims}]")
  bounds = _bounds(upper_bounds, f"[m{dims}]")
  if not dims:
    if max_ratio is not None:
      raise ValueError("max_ratio needs token counts: lengths and upper_bounds of two columns.")
    bucket = np.searchsorted(bounds, lengths)
    return np.where(bucket < len(bounds), bucket, -1).astype(np.int32)
  bucket = np.full(len(lengths), -1, np.int32)
  first = np.searchsorted(bounds[:, 0], lengths[:, 0])
  inside = first < len(bounds)
  smallest = bounds[np.minimum(first, len(bounds) - 1), 0]
  # From the last bucket to the first, so that the first that fits stays.
  for i in reversed(range(len(bounds))):
    fits = inside & np.all(lengths <= bounds[i][None], axis=1)
    if strict:
      fits &= smallest == bounds[i, 0]
    bucket[fits] = i
  if strict and max_ratio is not None:
    limits = np.asarray(max_ratio, np.float64)
    check_arrays(max_ratio=(limits, f"[{len(bounds)}]"))
    bucket[lengths[:, 1] / lengths[:, 0] > limits[bucket]] = -1
  return bucket


def effective_duration(
  durations: chex.Array, *, quadratic_duration: float | None = None
) -> np.ndarray:
  """Durations that grow as memory does in models with attention.

  Args:
    durations: `[...]`.
    quadratic_duration: the duration q at which quadratic cost equals the linear one, > 0, in the
      unit of durations (15 to 40 seconds are usual); None for linear cost alone.

  Returns:
    `d + d^2 / q`, float64 `[...]`.

  Raises:
    ValueError: if `quadratic_duration` <= 0.

  Reference: Żelasko et al., 2025, section 3, https://arxiv.org/abs/2503.05931.
  """
  durations = np.asarray(durations, np.float64)
  if quadratic_duration is None:
    return durations
  check_range("quadratic_duration", quadratic_duration, "(0, inf)")
  return durations + np.square(durations) / quadratic_duration


def padding_fraction(lengths: chex.Array, *, mask: chex.Array | None = None) -> np.ndarray:
  """Share of padding in batches that are padded to their longest item.

  Args:
    lengths: lengths of the items of each batch, `[..., n]`, > 0 where they count.
    mask: which items there are, bool `[..., n]`; None for all.

  Returns:
    `1 - sum of lengths / (count * longest)`, float64 `[...]`; 0 for an empty batch.

  Raises:
    ValueError: if a length that counts is not positive, or shapes differ.

  Reference: Żelasko et al., 2025, section 2, https://arxiv.org/abs/2503.05931.
  """
  check_arrays(lengths=(lengths, "[..., n]"), mask=(mask, "bool [..., n]"))
  lengths = np.asarray(lengths, np.float64)
  counts = np.ones(lengths.shape, bool) if mask is None else np.asarray(mask)
  check_range("lengths", lengths[counts], "(0, inf)")
  lengths = np.where(counts, lengths, 0.0)
  computed = counts.sum(axis=-1) * lengths.max(axis=-1, initial=0.0)
  return 1.0 - np.where(computed > 0, lengths.sum(axis=-1) / np.maximum(computed, 1e-300), 1.0)


def bucket_batches(
  key: chex.PRNGKey | int,
  durations: chex.Array,
  bounds: chex.Array,
  *,
  batch_sizes: Sequence[int] | None = None,
  max_duration: float | None = None,
  drop_last: bool = False,
  shuffle: bool = True,
) -> Iterator[np.ndarray]:
  """One epoch of batches, each from one bucket.

  A bucket is drawn among those that have a full batch; what is left of each bucket comes last. The
  draws depend on the key alone, so that workers with one key and durations of like distribution
  take batches of like length at the same time.

  Args:
    key: random key, or a seed.
    durations: durations `[n]`, or durations and token counts `[n, 2]`, > 0; `effective_duration`
      for batches that fill a memory (then the bounds too).
    bounds: upper bounds of m buckets, as in `assign_buckets`; items that fit in none are left out.
    batch_sizes: items of a batch of each bucket, `[m]`.
    max_duration: in place of batch sizes, what the longest duration times the count may reach, > 0.
    drop_last: whether batches that are not full are left out.
    shuffle: whether items and buckets come in random order; else a batch comes as soon as the
      items, in their order, have filled it.

  Returns:
    An iterator of indices of items, int64 arrays.

  Raises:
    ValueError: unless exactly one of `batch_sizes` and `max_duration` is given; if a batch size is
      below 1, a duration exceeds `max_duration`, bounds are not sorted, or shapes differ.

  Reference: Żelasko et al., 2025, section 3, https://arxiv.org/abs/2503.05931.
  """
  if (batch_sizes is None) == (max_duration is None):
    raise ValueError(
      f"one of batch_sizes and max_duration must be given, got {batch_sizes} and {max_duration}."
    )
  bucket = assign_buckets(durations, bounds)
  longest = np.asarray(durations, np.float64).reshape(len(bucket), -1)[:, 0]
  if max_duration is not None:
    check_range("max_duration", max_duration, "(0, inf)")
    if np.any(longest[bucket >= 0] > max_duration):
      raise ValueError(
        f"durations must be at most max_duration {max_duration}, got {longest[bucket >= 0].max()}."
      )
  else:
    check_arrays(batch_sizes=(np.asarray(batch_sizes), f"int [{len(bounds)}]"))
    check_at_least(1, **{"every batch size": min(batch_sizes)})

  if shuffle:
    rng = np.random.default_rng(_seed(key))
    order = rng.permutation(len(bucket))
  else:
    order = np.arange(len(bucket))
  full, rest = _fill(order, bucket, longest, batch_sizes, max_duration)
  rest = [] if drop_last else rest
  if not shuffle:
    return iter([np.array(batch, np.int64) for _, batch in full + rest])
  return _drawn(rng, full, rest)


def _fill(order, bucket, longest, batch_sizes, max_duration) -> tuple[list, list]:
  """Batches with their bucket: full ones as they fill up, and one per bucket that is left."""
  full, open_batches, peaks = [], {}, {}
  for item in order:
    i = int(bucket[item])
    if i < 0:
      continue
    batch, peak = open_batches.setdefault(i, []), max(peaks.get(i, 0.0), longest[item])
    if max_duration is not None and (len(batch) + 1) * peak > max_duration:
      full.append((i, batch))
      batch, peak = [], longest[item]
    batch.append(item)
    open_batches[i], peaks[i] = batch, peak
    if batch_sizes is not None and len(batch) == batch_sizes[i]:
      full.append((i, open_batches.pop(i)))
  return full, sorted(open_batches.items())


def _drawn(rng: np.random.Generator, full: list, rest: list) -> Iterator[np.ndarray]:
  """Batches of uniformly drawn buckets, then the rest in random order."""
  waiting: dict[int, list] = {}
  for i, batch in full:
    waiting.setdefault(i, []).append(batch)
  buckets = sorted(waiting)
  while buckets:
    i = buckets[rng.integers(len(buckets))]
    yield np.array(waiting[i].pop(), np.int64)
    if not waiting[i]:
      buckets.remove(i)
  for i in rng.permutation(len(rest)):
    yield np.array(rest[i][1], np.int64)


def _seed(key: chex.PRNGKey | int) -> int | np.ndarray:
  if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  return np.asarray(key).astype(np.uint32) if np.ndim(key) else int(key)


def _starts(ordered: np.ndarray, num_buckets: int) -> list[int]:
  """Where buckets of equal total size start."""
  budget = ordered.sum() / num_buckets
  starts, total = [0], 0.0
  for i, size in enumerate(ordered):
    if total > budget:
      starts.append(i)
      total = 0.0
    total += size
  return starts


def _rounded_up(values: np.ndarray) -> np.ndarray:
  """Float32 that is not below the values, so that a bound holds what it was taken from."""
  rounded = values.astype(np.float32)
  return np.where(rounded < values, np.nextafter(rounded, np.float32(np.inf)), rounded)


def _lengths(name: str, values: chex.Array, form: str, interval="(0, inf)") -> np.ndarray:
  array = np.asarray(values, np.float64)
  check_arrays(**{name: (array, form)})
  check_filled(**{name: array})
  check_range(name, array, interval)
  return array


def _bounds(values: chex.Array, form: str) -> np.ndarray:
  bounds = _lengths("upper_bounds", values, form, "(0, inf]")
  rows = [tuple(np.atleast_1d(bound)) for bound in bounds]
  for low, high in zip(rows, rows[1:]):
    if high < low:
      raise ValueError(f"upper_bounds must be sorted, got {high} after {low}.")
  return bounds


def _check_num_buckets(num_buckets: int, num: int) -> None:
  if not 2 <= num_buckets <= num:
    raise ValueError(f"num_buckets must lie in [2, {num}], got {num_buckets}.")
