import jax
import numpy as np
import pytest
import scipy.stats

from jaxlab import metrics

N = 400
RNG = np.random.default_rng(0)
mcnemar = jax.jit(metrics.mcnemar_test, static_argnames=("exact", "correction"))
overfit_test = jax.jit(metrics.benchmark_overfit_test)
adjust = jax.jit(metrics.holm_adjust)


def answers(only_first, only_second, both=0, size=N):
  """Answers with given counts, in random order."""
  counts = [only_first, only_second, both, size - only_first - only_second - both]
  first, second = (np.repeat(rights, counts) for rights in ([1, 0, 1, 0], [0, 1, 1, 0]))
  order = RNG.permutation(size)
  return first[order].astype(bool), second[order].astype(bool)


@pytest.mark.parametrize("counts", [(0, 0), (3, 9), (9, 3), (1, 0), (40, 41), (60, 140), (0, 400)])
def test_it_agrees_with_scipy(counts):
  first, second = answers(*counts)
  (b, c), total = counts, max(sum(counts), 1)
  for correction in (False, True):
    result = mcnemar(first, second, correction=correction)
    statistic = (abs(b - c) - correction) ** 2 / total * (b + c > 0)
    np.testing.assert_allclose(result.statistic, statistic, rtol=1e-6)
    expected = scipy.stats.chi2.sf(statistic, 1)
    np.testing.assert_allclose(result.p_value, expected, rtol=2e-5, atol=1e-37)
    assert (result.only_first, result.only_second) == counts
  result = mcnemar(first, second, exact=True)
  expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
  np.testing.assert_allclose(result.p_value, expected, rtol=2e-5, atol=1e-37)
  assert result.statistic == min(counts)


def test_exchanged_answers_change_the_sign_alone():
  first, second = answers(70, 40, both=200)
  ours, theirs = overfit_test(first, second), overfit_test(second, first)
  assert ours.p_value == theirs.p_value and ours.statistic == theirs.statistic
  assert ours.difference == -theirs.difference
  assert bool(ours.overfit) and bool(theirs.significant) and not bool(theirs.overfit)


def test_fields_match_their_definitions():
  first, second = answers(30, 10, both=250)
  result = overfit_test(first, second)
  expected = first.mean(), second.mean(), 20 / N, 20 / 280, 20**2 / 40, 0.0015654
  np.testing.assert_allclose(result[:6], expected, rtol=2e-5)
  assert not bool(overfit_test(first, second, alpha=0.001).significant)
  same = overfit_test(first, first)
  assert same.p_value == 1 and same.statistic == 0 and not bool(same.significant)
  nothing = overfit_test(np.zeros(N, bool), second)
  assert nothing.relative_difference == 0 and nothing.difference < 0


def test_equally_good_answers_are_rarely_significant():
  first, second = RNG.random((2, 2000, N)) < 0.7
  result = jax.jit(jax.vmap(metrics.benchmark_overfit_test))(first, second)
  assert abs(np.mean(result.significant) - 0.05) < 0.015
  assert abs(np.mean(result.overfit) - 0.025) < 0.01


def test_other_numbers_than_0_and_1_give_nan():
  first, second = (x.astype(np.float32) for x in answers(5, 2))
  first[3], second[0] = np.nan, 0.5
  result = overfit_test(first, np.zeros(N, bool))
  assert np.isnan(result[:6]).all() and not bool(result.significant)
  assert np.isnan(mcnemar(np.zeros(N, bool), second, exact=True).p_value)


def slow_holm(p_values):
  order, running, result = np.argsort(p_values), 0.0, np.empty(len(p_values))
  for rank, i in enumerate(order):
    running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
    result[i] = running
  return result


def test_holm_matches_a_loop():
  for scale in (0.02, 0.2, 1.0):
    p_values = np.float32(scale * RNG.random(12))
    p_values[3] = p_values[7]
    result = np.asarray(adjust(p_values))
    np.testing.assert_allclose(result, slow_holm(p_values), rtol=1e-6)
    assert (result >= p_values).all() and result[3] == result[7]
    assert (np.diff(result[np.argsort(p_values)]) >= 0).all()


def test_holm_counts_an_unknown_test():
  p_values = np.float32(0.05 * RNG.random(12))
  p_values[4] = 1.0
  expected = np.where(np.arange(12) == 4, np.nan, adjust(p_values))
  p_values[4] = np.nan
  np.testing.assert_array_equal(adjust(p_values), expected)


def test_trend_is_the_least_squares_line():
  covariate, noise = RNG.normal(size=(2, 12)).astype(np.float32)
  differences = np.float32(0.3 * covariate + 0.1 + 0.1 * noise)
  trend = jax.jit(metrics.overfit_trend)
  line = scipy.stats.linregress(covariate, differences)
  expected = line.slope, line.intercept, line.rvalue**2
  np.testing.assert_allclose(trend(differences, covariate), expected, rtol=1e-4)
  flat = trend(differences, np.full(12, 0.7, np.float32))
  np.testing.assert_allclose(flat, (0.0, differences.mean(), 0.0), rtol=1e-5, atol=1e-6)


def test_errors():
  first, second = answers(5, 2)
  for alpha in (0.0, 1.0):
    with pytest.raises(ValueError, match=rf"alpha must lie in \(0, 1\), got {alpha}"):
      metrics.benchmark_overfit_test(first, second, alpha=alpha)
  with pytest.raises(ValueError, match="original_correct must not be empty"):
    metrics.benchmark_overfit_test(first[:0], second[:0])
  with pytest.raises(ValueError, match="second_correct must have shape"):
    metrics.mcnemar_test(first, second[1:])
  with pytest.raises(ValueError, match=r"first_correct must be 0 or 1, got the values"):
    metrics.mcnemar_test(2 * first, second)
  with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
    metrics.holm_adjust(np.array([0.1, 1.2]))
  with pytest.raises(ValueError, match="number of differences must be at least 2, got 1"):
    metrics.overfit_trend(np.ones(1), np.ones(1))
