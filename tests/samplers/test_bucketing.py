import jax
import numpy as np
import pytest

from jaxlab import samplers

RNG = np.random.default_rng(0)
N = 500
DURATIONS = np.concatenate([RNG.uniform(15, 40, N // 4), RNG.lognormal(1.6, 0.5, 3 * N // 4)])
TOKENS = np.maximum(1, np.round(4 * DURATIONS * RNG.lognormal(0, 0.45, N)))
PAIRS = np.stack([DURATIONS, TOKENS], axis=1)


def slow_bins(sizes, num_buckets):
  """The release's rule."""
  budget, total, bins = sum(sizes) / num_buckets, 0.0, []
  for size in sorted(sizes):
    if total > budget:
      bins.append(size)
      total = 0.0
    total += size
  return bins


def slow_token_bins(num_buckets, num_sub_buckets, threshold):
  bounds = [*slow_bins(DURATIONS, num_buckets), np.inf]
  low, rows = 0.0, []
  for high in bounds:
    members = [i for i in range(N) if low <= DURATIONS[i] < high]
    ratios = np.array([TOKENS[i] / DURATIONS[i] for i in members])
    z = (ratios - ratios.mean()) / ratios.std()
    kept = [i for i, value in zip(members, z) if value <= threshold]
    tokens = [TOKENS[i] for i in kept]
    top = max(TOKENS[i] / DURATIONS[i] for i in kept)
    bound = high if np.isfinite(high) else max(DURATIONS)
    interior = slow_bins(tokens, num_sub_buckets) if num_sub_buckets > 1 else []
    rows += [(bound, x, top) for x in [*interior, max(tokens)]]
    low = high
  return rows


@pytest.mark.parametrize("num_buckets", [2, 7, 30])
def test_bins_match_the_rule(num_buckets):
  bins = samplers.estimate_duration_bins(DURATIONS, num_buckets=num_buckets)
  assert bins == slow_bins(DURATIONS, num_buckets) and all(type(x) is float for x in bins)
  assert bins == sorted(bins) and len(bins) <= num_buckets - 1
  edges = [0, *bins, np.inf]
  for low, high in zip(edges, edges[1:]):
    total = sum(x for x in DURATIONS if low <= x < high)
    assert total <= DURATIONS.sum() / num_buckets + DURATIONS.max()


@pytest.mark.parametrize(("num_sub_buckets", "threshold"), [(1, 4.0), (2, 1.5), (3, 4.0)])
def test_token_bins_match_the_rule(num_sub_buckets, threshold):
  result = samplers.estimate_duration_token_bins(
    DURATIONS,
    TOKENS,
    num_buckets=6,
    num_sub_buckets=num_sub_buckets,
    outlier_threshold=threshold,
  )
  expected = np.array(slow_token_bins(6, num_sub_buckets, threshold))
  np.testing.assert_allclose(result.bins, expected[:, :2], rtol=1e-6)
  np.testing.assert_allclose(result.max_ratio, expected[:, 2], rtol=1e-6)
  assert result.bins.dtype == result.max_ratio.dtype == np.float32
  # Bounds are rounded up, so that the longest item has a bucket.
  assert result.bins[-1, 0] >= DURATIONS.max()
  if num_sub_buckets == 1:
    bounds = [*samplers.estimate_duration_bins(DURATIONS, num_buckets=6), DURATIONS.max()]
    np.testing.assert_allclose(result.bins[:, 0], bounds, rtol=1e-6)


def test_bins_of_the_default_sizes_hold_almost_everything():
  bins = samplers.estimate_duration_token_bins(DURATIONS, TOKENS)
  assert 30 < len(bins.bins) <= 60
  bucket = samplers.assign_buckets(PAIRS, bins.bins, max_ratio=bins.max_ratio)
  assert (bucket >= 0).mean() > 0.9


def test_equal_durations_give_equal_bounds():
  bins = samplers.estimate_duration_token_bins(
    np.full(40, 3.0), np.arange(1, 41), num_buckets=4, num_sub_buckets=2
  )
  assert np.all(bins.bins[:, 0] == 3)
  bucket = samplers.assign_buckets(np.stack([np.full(40, 3.0), np.arange(1, 41)], 1), bins.bins)
  assert np.all(bucket >= 0)
  same = samplers.estimate_duration_token_bins(np.full(9, 0.7), np.full(9, 3), num_buckets=2)
  assert np.all(same.bins[:, 1] == 3)


def test_assignment_in_one_dimension():
  bounds = [2.0, 5.0, 5.0, 9.0]
  result = samplers.assign_buckets([1.0, 2.0, 2.1, 5.0, 5.1, 9.0, 9.1], bounds)
  np.testing.assert_array_equal(result, [0, 0, 1, 1, 3, 3, -1])
  assert result.dtype == np.int32
  # An item of the length of its bound stays in its bucket.
  np.testing.assert_array_equal(samplers.assign_buckets(bounds, bounds), [0, 1, 1, 3])


@pytest.mark.parametrize("strict", [True, False])
def test_assignment_in_two_dimensions_matches_a_loop(strict):
  bins, ratios = samplers.estimate_duration_token_bins(
    DURATIONS, TOKENS, num_buckets=6, outlier_threshold=1.5
  )
  for limits in (None, ratios):
    expected = []
    for duration, tokens in PAIRS:
      fitting = [i for i, (d, t) in enumerate(bins) if duration <= d and tokens <= t]
      if strict:
        smallest = min((d for d, _ in bins if duration <= d), default=None)
        fitting = [i for i in fitting if bins[i, 0] == smallest]
        if limits is not None:
          fitting = [i for i in fitting[:1] if tokens / duration <= limits[i]]
      expected.append(fitting[0] if fitting else -1)
    result = samplers.assign_buckets(PAIRS, bins, strict=strict, max_ratio=limits)
    np.testing.assert_array_equal(result, expected)
  assert np.any(result == -1)


def test_effective_duration_and_padding():
  np.testing.assert_allclose(
    samplers.effective_duration([3.0, 6.0], quadratic_duration=15.0), [3.6, 8.4]
  )
  np.testing.assert_array_equal(samplers.effective_duration([3.0, 6.0]), [3.0, 6.0])
  lengths = np.array([[4, 2, 0], [5, 5, 5], [7, 0, 0], [0, 0, 0]])
  result = samplers.padding_fraction(lengths, mask=lengths > 0)
  np.testing.assert_allclose(result, [0.25, 0, 0, 0], atol=1e-12)
  assert samplers.padding_fraction([9.0]) == 0


def batches_of(seed, durations=DURATIONS, bounds=(3.0, 6.0, 12.0, 40.0), **options):
  return list(samplers.bucket_batches(seed, durations, np.array(bounds), **options))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("options", [{"batch_sizes": [16, 8, 4, 2]}, {"max_duration": 60.0}])
def test_an_epoch_has_every_item_once(options, shuffle):
  batches = batches_of(0, shuffle=shuffle, **options)
  np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(N))
  bucket = samplers.assign_buckets(DURATIONS, [3.0, 6.0, 12.0, 40.0])
  partial = 0
  for batch in batches:
    [own] = set(bucket[batch])
    if "batch_sizes" in options:
      size = options["batch_sizes"][own]
      assert len(batch) <= size
      partial += len(batch) < size
    else:
      assert len(batch) * DURATIONS[batch].max() <= 60
  assert partial <= 4
  kept = batches_of(0, shuffle=shuffle, drop_last=True, **options)
  assert len(batches) - 4 <= len(kept) < len(batches)
  for ours, theirs in zip(kept, batches):
    np.testing.assert_array_equal(ours, theirs)


def test_dynamic_batches_are_as_large_as_they_may_be():
  batches = batches_of(0, shuffle=False, drop_last=True, max_duration=60.0)
  order = np.concatenate(batches_of(0, shuffle=False, max_duration=60.0))
  bucket = samplers.assign_buckets(DURATIONS, [3.0, 6.0, 12.0, 40.0])
  for batch in batches:
    own = [i for i in order if bucket[i] == bucket[batch[0]]]
    following = own[own.index(batch[-1]) + 1]
    assert (len(batch) + 1) * max(DURATIONS[[*batch, following]]) > 60


def test_keys_decide_the_order():
  options = {"batch_sizes": [16, 8, 4, 2]}
  key = jax.random.key(3)
  first, again, other = (np.concatenate(batches_of(k, **options)) for k in (key, key, 4))
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)
  # Buckets come mixed, not one after the other.
  bucket = samplers.assign_buckets(DURATIONS, [3.0, 6.0, 12.0, 40.0])
  owners = [bucket[batch[0]] for batch in batches_of(key, **options)]
  assert np.sum(np.diff(owners) != 0) > 10


def test_items_without_a_bucket_are_left_out():
  batches = batches_of(0, PAIRS, [(6.0, 20.0), (12.0, 30.0)], batch_sizes=[4, 4])
  bucket = samplers.assign_buckets(PAIRS, [(6.0, 20.0), (12.0, 30.0)])
  np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.flatnonzero(bucket >= 0))


def test_equal_lengths_have_no_padding():
  same = np.full(N, 4.0)
  for options in ({"batch_sizes": [1, 5, 1, 1]}, {"max_duration": 20.0}):
    batches = batches_of(0, same, **options)
    assert {len(batch) for batch in batches} == {5}
    assert all(samplers.padding_fraction(same[batch]) == 0 for batch in batches)


def test_buckets_waste_less_than_random_batches():
  bounds = [*samplers.estimate_duration_bins(DURATIONS, num_buckets=8), DURATIONS.max()]
  random = RNG.permutation(N).reshape(-1, 10)

  def share(batches):
    computed = sum(len(batch) * DURATIONS[batch].max() for batch in batches)
    return 1 - DURATIONS.sum() / computed

  assert share(batches_of(0, bounds=bounds, max_duration=80.0)) < 0.3 * share(random)


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match=r"num_buckets must lie in \[2, 500\], got 1"):
    samplers.estimate_duration_bins(DURATIONS, num_buckets=1)
  with pytest.raises(ValueError, match=r"num_buckets must lie in \[2, 3\], got 30"):
    samplers.estimate_duration_token_bins([1.0, 2.0, 3.0], [1, 2, 3])
  with pytest.raises(ValueError, match=r"durations must lie in \(0, inf\)"):
    samplers.estimate_duration_bins([1.0, 0.0, 2.0], num_buckets=2)
  with pytest.raises(ValueError, match="durations must not be empty"):
    samplers.estimate_duration_bins([], num_buckets=2)
  with pytest.raises(ValueError, match="upper_bounds must be sorted, got .*2.* after .*3"):
    samplers.assign_buckets([1.0], [3.0, 2.0])
  with pytest.raises(ValueError, match="upper_bounds must be sorted"):
    samplers.assign_buckets([[1.0, 1.0]], [[3.0, 2.0], [3.0, 1.0]])
  with pytest.raises(ValueError, match="lengths must have shape"):
    samplers.assign_buckets([1.0], [[3.0, 2.0]])
  with pytest.raises(ValueError, match="max_ratio needs token counts"):
    samplers.assign_buckets([1.0], [3.0], max_ratio=[1.0])
  with pytest.raises(ValueError, match="one of batch_sizes and max_duration must be given"):
    batches_of(0)
  with pytest.raises(ValueError, match="every batch size must be at least 1, got 0"):
    batches_of(0, batch_sizes=[1, 1, 1, 0])
  with pytest.raises(ValueError, match="durations must be at most max_duration 20.0, got 39"):
    batches_of(0, max_duration=20.0)
  with pytest.raises(ValueError, match=r"quadratic_duration must lie in \(0, inf\), got 0"):
    samplers.effective_duration(DURATIONS, quadratic_duration=0)
