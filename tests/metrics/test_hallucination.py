import functools
import itertools

import jax
import numpy as np
import pytest

from jaxlab import metrics

Y, FACTS, N, WORLDS = 240, 60, 100, 500
RNG = np.random.default_rng(0)
TRUTH = np.zeros(Y, np.float32)
TRUTH[:FACTS] = 1.0 / np.arange(1, FACTS + 1) ** 0.7
TRUTH /= TRUTH.sum()
COUNTS = RNG.multinomial(N, TRUTH.astype(np.float64) / TRUTH.sum(dtype=np.float64), WORLDS)
BINS = (None, 1, 4, 20)
distance = jax.jit(metrics.miscalibration, static_argnames="num_bins")
gap = jax.jit(metrics.calibration_gap, static_argnames="num_bins")


def models():
  """Distributions over statements: of distinct values, of few values, uniform, the truth."""
  smooth = RNG.dirichlet(np.full(Y, 0.3))
  few = RNG.choice([0.0, 1.0, 3.0, 10.0], Y)
  several = (smooth, few / few.sum(), np.full(Y, 1 / Y), TRUTH)
  return [x.astype(np.float32) for x in several]


def slow_bins(model, num_bins):
  if num_bins is None:
    return [tuple(np.flatnonzero(model == level)) for level in np.unique(model)]
  numbers = []
  for value in model:
    below = model[model < value].sum(dtype=np.float64)
    numbers.append(sum(below > i / num_bins for i in range(1, num_bins)))
  return [tuple(np.flatnonzero(np.array(numbers) == number)) for number in set(numbers)]


@pytest.mark.parametrize("num_bins", BINS)
def test_both_distances_match_a_loop(num_bins):
  order = RNG.permutation(Y)
  for model in models():
    total = coarse = 0.0
    for members in slow_bins(model, num_bins):
      mass = TRUTH[list(members)].sum(dtype=np.float64)
      coarse += abs(mass - model[list(members)].sum(dtype=np.float64)) / 2
      total += sum(abs(mass / len(members) - model[y]) for y in members) / 2
    ours = distance(model, TRUTH, num_bins=num_bins), gap(model, TRUTH, num_bins=num_bins)
    np.testing.assert_allclose(ours, (total, coarse), atol=2e-6)
    assert ours[1] <= ours[0] + 1e-6 and ours[0] <= 1
    moved = distance(model[order], TRUTH[order], num_bins=num_bins)
    np.testing.assert_allclose(moved, ours[0], atol=1e-6)


def test_special_models():
  smooth, _, uniform, truth = models()
  np.testing.assert_allclose(distance(truth, TRUTH), 0.0, atol=1e-6)
  np.testing.assert_allclose(distance(uniform, TRUTH), 0.0, atol=1e-6)
  one_bin = np.abs(smooth - 1 / Y).sum() / 2
  np.testing.assert_allclose(distance(smooth, TRUTH, num_bins=1), one_bin, rtol=1e-5)
  np.testing.assert_allclose(gap(smooth, TRUTH, num_bins=1), 0.0, atol=1e-6)


def test_gradients_are_finite():
  slopes = jax.jit(jax.grad(metrics.miscalibration, argnums=(0, 1)))
  for model in models():
    assert all(np.isfinite(slope).all() for slope in slopes(model, TRUTH))


@jax.jit
@jax.vmap
def study(counts, model):
  rates = metrics.monofact_rate(counts), metrics.missing_mass(TRUTH, counts)
  return *rates, metrics.hallucination_rate(model, TRUTH > 0), metrics.miscalibration(model, TRUTH)


@jax.jit
def lower_bound(monofact_rate, miscalibration):
  return metrics.hallucination_lower_bound(
    monofact_rate, miscalibration, num_samples=N, fact_ratio=FACTS / (Y - FACTS)
  )


def averaged(groups):
  """The truth averaged over groups of statements."""
  sums = np.bincount(groups, TRUTH, Y) / np.maximum(np.bincount(groups, minlength=Y), 1)
  return sums[groups].astype(np.float32)


def test_calibrated_models_keep_the_bound():
  random = np.stack([averaged(RNG.integers(0, 30, Y)) for _ in range(WORLDS)])
  # The least falsehoods: seen facts as they are, the same for all that was not seen.
  least = np.stack([averaged(np.where(counts > 0, np.arange(Y), Y - 1)) for counts in COUNTS])
  for model in (random, least):
    monofacts, missing, rate, error = map(np.asarray, study(COUNTS, model))
    np.testing.assert_allclose(error, 0.0, atol=1e-6)
    assert np.mean(rate >= np.asarray(lower_bound(monofacts, error))) >= 0.95
    share = (Y - FACTS) / (Y - np.count_nonzero(COUNTS, axis=1))
  np.testing.assert_allclose(rate, missing * share, rtol=1e-4)


def test_expected_rates_match_their_formulas():
  monofacts, missing, *_ = map(np.asarray, study(COUNTS, np.tile(TRUTH, (WORLDS, 1))))
  np.testing.assert_allclose(monofacts, (COUNTS == 1).sum(1) / N, rtol=1e-6)
  expected = np.sum(TRUTH * (1 - TRUTH) ** (N - 1)), np.sum(TRUTH * (1 - TRUTH) ** N)
  assert 0 <= expected[0] - expected[1] <= 1 / N
  for values, mean in zip((monofacts, missing), expected):
    assert abs(values.mean() - mean) < 4 * values.std() / np.sqrt(WORLDS)
  assert metrics.monofact_rate(np.zeros(Y, int)) == 0


def test_a_memorizer_states_no_falsehood_and_is_not_calibrated():
  memory = (COUNTS / N).astype(np.float32)
  monofacts, _, rate, error = map(np.asarray, study(COUNTS, memory))
  assert (rate == 0).all() and (error >= monofacts - 3 / np.sqrt(N)).all()


def test_bound_matches_its_formula():
  compiled = jax.jit(metrics.hallucination_lower_bound)
  bound = compiled(0.36, 0.06, num_samples=2000, fact_ratio=0.001, delta=0.01)
  np.testing.assert_allclose(bound, 0.36 - 0.06 - 0.3 - np.sqrt(6 * np.log(600) / 2000), rtol=1e-4)


@pytest.mark.parametrize("model", models()[:2])
def test_sampled_gap_approaches_the_exact_one(model):
  samples = RNG.choice(Y, 200_000, p=model.astype(np.float64) / model.sum(dtype=np.float64))
  with np.errstate(divide="ignore"):
    logs = np.log(model)
  sampled = jax.jit(functools.partial(metrics.sampled_calibration_gap, num_bins=4))
  result = sampled(logs[samples], logs[:FACTS], TRUTH[:FACTS])
  # The statement at an edge may fall on its other side.
  exact = gap(model, TRUTH, num_bins=4)
  np.testing.assert_allclose(result, exact, atol=0.005 + max(model.max(), TRUTH.max()) / 2)
  assert np.isnan(
    sampled(np.where(samples == 3, np.nan, logs[samples]), logs[:FACTS], TRUTH[:FACTS])
  )


def test_nan_reaches_every_result():
  model = models()[0]
  model[7] = np.nan
  results = *(study(COUNTS[:1], model[None])[2:]), distance(model, TRUTH, num_bins=4)
  assert np.isnan(np.concatenate([np.ravel(x) for x in results])).all()
  assert np.isnan(gap(model, TRUTH)) and np.isnan(distance(TRUTH, model))


def test_categories_follow_the_table():
  cases = list(itertools.product([0, 1], repeat=4))
  sampled, greedy, provoked = np.split(np.array(cases, bool), [2, 3], axis=1)
  expected = []
  for *answers, right in cases:
    known = 0 if right else 1
    expected.append(known if sum(answers) == 3 else 2 if sum(answers) == 0 else 3)
  category = jax.jit(metrics.knowledge_category)
  result = category(sampled, greedy[:, 0], provoked[:, 0])
  np.testing.assert_array_equal(result, expected)
  assert result.dtype == np.int32
  unknown = np.where(np.arange(16)[:, None] == 15, np.nan, sampled)
  assert category(unknown, greedy[:, 0], provoked[:, 0])[15] == 3


def test_overlap_of_sets():
  ours, theirs = RNG.random((2, Y)) < 0.4
  overlap = jax.jit(metrics.set_overlap)
  expected = len({*np.flatnonzero(ours)} & {*np.flatnonzero(theirs)}) / np.sum(ours | theirs)
  np.testing.assert_allclose(overlap(ours, theirs), expected, rtol=1e-6)
  assert overlap(ours, ours) == 1 and overlap(ours, ~ours) == 0
  assert overlap(np.zeros(Y, bool), np.zeros(Y, bool)) == 0


def test_errors():
  with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
    metrics.miscalibration(TRUTH, TRUTH, num_bins=0)
  with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
    metrics.sampled_calibration_gap(TRUTH, TRUTH, TRUTH, num_bins=0)
  with pytest.raises(ValueError, match="true_probs must have shape"):
    metrics.calibration_gap(TRUTH, TRUTH[1:])
  with pytest.raises(ValueError, match=r"counts must lie in \[0, inf\)"):
    metrics.monofact_rate(np.array([1, -1]))
  for name, value in (("delta", 0.0), ("delta", 1.0), ("num_samples", 0), ("fact_ratio", -0.1)):
    options = {"num_samples": 10, "fact_ratio": 0.1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must lie in .*{value}"):
      metrics.hallucination_lower_bound(0.1, 0.1, **options)
  with pytest.raises(ValueError, match="greedy_correct must have shape"):
    metrics.knowledge_category(np.ones((3, 2)), np.ones(2), np.ones(3))
