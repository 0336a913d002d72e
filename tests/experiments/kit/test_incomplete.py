import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.kit import incomplete as kit

RNG = np.random.default_rng(0)
LENGTH, CHANNELS = 3, 2


@pytest.fixture(scope="module")
def drawn():
  """Series of three classes, of which some values are missing, and their law."""
  waves, labels = RNG.normal(size=(3, LENGTH, 2)), RNG.integers(0, 3, 40)
  options = {"num_channels": CHANNELS, "lengthscale": 2.0, "noise": 0.5}
  values, law = kit.gaussian_series(RNG, waves, labels, **options)
  mask = RNG.random(values.shape) < 0.5
  mask[0] = False
  return kit.Rows(values.astype(np.float32), mask, labels), law


def single(law):
  """The law of the first class alone."""
  return law._replace(means=law.means[:1])


def test_the_law_is_that_of_the_series():
  waves, labels = RNG.normal(size=(2, LENGTH, 2)), np.repeat([0, 1], 20_000)
  options = {"num_channels": CHANNELS, "lengthscale": 2.0, "noise": 0.5}
  values, law = kit.gaussian_series(RNG, waves, labels, **options)
  flat = values.reshape(len(labels), -1)
  for label in range(2):
    own = flat[labels == label]
    np.testing.assert_allclose(own.mean(0), law.means[label], atol=0.06)
    np.testing.assert_allclose(np.cov(own.T), law.covariance, atol=0.1)


def expected_series(mean, covariance, values, mask):
  """By the textbook's formula for one row."""
  filled, seen = mean.copy(), np.flatnonzero(mask)
  if len(seen):
    block = covariance[np.ix_(seen, seen)]
    filled += covariance[:, seen] @ np.linalg.solve(block, values[seen] - mean[seen])
  return filled


def test_exact_answers_are_bayes_rule(drawn):
  rows, law = drawn
  log_probs, expected = kit.exact_answers(law, rows)
  for i, (values, mask, _) in enumerate(zip(*rows)):
    values, mask = values.ravel(), mask.ravel()
    seen = np.flatnonzero(mask)
    densities = [
      stats.multivariate_normal.logpdf(
        values[seen], mean[seen], law.covariance[np.ix_(seen, seen)]
      )
      for mean in law.means
    ] if len(seen) else np.zeros(3)  # fmt: skip
    probs = np.exp(densities - np.logaddexp.reduce(densities))
    np.testing.assert_allclose(np.exp(log_probs[i]), probs, atol=1e-5)
    fills = [expected_series(mean, law.covariance, values, mask) for mean in law.means]
    np.testing.assert_allclose(np.ravel(expected[i]), probs @ fills, atol=1e-3)


def test_completions_keep_what_is_observed_and_have_the_conditional_law(drawn):
  rows, law = drawn
  mean, draws = kit.completions(RNG, single(law), rows, 4000)
  assert draws.shape == (40, 4000, LENGTH, CHANNELS) and mean.shape == (40, 1, LENGTH, CHANNELS)
  for i in range(3):
    values, mask = rows.values[i].ravel(), rows.mask[i].ravel()
    expected = expected_series(law.means[0], law.covariance, values, mask)
    np.testing.assert_allclose(np.ravel(mean[i]), expected, atol=1e-3)
    own = np.asarray(draws[i]).reshape(4000, -1)
    np.testing.assert_allclose(own[:, mask], np.tile(values[mask], (4000, 1)), atol=2e-3)
    np.testing.assert_allclose(own.mean(0), expected, atol=0.1)
    hidden, seen = np.flatnonzero(~mask), np.flatnonzero(mask)
    cross = law.covariance[np.ix_(hidden, seen)]
    block = law.covariance[np.ix_(seen, seen)]
    left = law.covariance[np.ix_(hidden, hidden)] - cross @ np.linalg.solve(block, cross.T)
    np.testing.assert_allclose(np.cov(own[:, hidden].T), left, atol=0.15)


def test_a_law_is_fitted_by_expectation_maximization(drawn):
  rows, _ = drawn
  strength, dim = 8.0, LENGTH * CHANNELS
  mean, covariance = np.zeros(dim), np.eye(dim)
  for _ in range(3):
    filled, left = [], np.zeros((dim, dim))
    for values, mask in zip(rows.values, rows.mask):
      values, mask = values.ravel(), mask.ravel()
      filled.append(expected_series(mean, covariance, values, mask))
      hidden, seen = np.flatnonzero(~mask), np.flatnonzero(mask)
      cross = covariance[np.ix_(hidden, seen)]
      block = covariance[np.ix_(seen, seen)]
      gain = np.linalg.solve(block, cross.T) if len(seen) else np.zeros((0, len(hidden)))
      left[np.ix_(hidden, hidden)] += covariance[np.ix_(hidden, hidden)] - cross @ gain
    mean = np.mean(filled, axis=0)
    rest = filled - mean
    covariance = (rest.T @ rest + left + strength * np.eye(dim)) / (len(filled) + strength)
  options = {"strengths": (strength, 1e6), "num_steps": 3}
  law = kit.fit_law(rows, rows, **options)
  np.testing.assert_allclose(law.means[0], mean, atol=1e-3)
  np.testing.assert_allclose(law.covariance, covariance, atol=1e-3)


@pytest.mark.parametrize("method", kit.SHOWN)
def test_simple_completions(drawn, method):
  rows, _ = drawn
  kept = rows.mask & (RNG.random(rows.mask.shape) < 0.7)
  decay = {"rate": np.array([0.5, 0.0], np.float32), "bias": np.array([0.1, 0.3], np.float32)}
  given = np.broadcast_to(np.array([7, 8, 9], np.float32)[:, None, None, None], (3, *kept.shape))
  found = np.asarray(_shown(kit.SHOWN.index(method), decay, rows, kept, given))
  assert found.shape == (3, *kept.shape[:2], 2 * CHANNELS)
  if method == kit.GIVEN:
    np.testing.assert_array_equal(found[..., :CHANNELS], given)
  else:
    np.testing.assert_array_equal(found[0], found[2])
  is_shown = method in (kit.MASKED, kit.MASK)
  np.testing.assert_array_equal(found[0, ..., CHANNELS:], kept * is_shown)
  found = found[0]
  for i in range(len(rows.labels)):
    for c in range(CHANNELS):
      last, since = 0.0, 0.0
      for t in range(LENGTH):
        time = t / (LENGTH - 1)
        if kept[i, t, c]:
          last, since = rows.values[i, t, c], time
        share = np.exp(-(decay["rate"][c] * (time - since) + decay["bias"][c]))
        here = rows.values[i, t, c] if kept[i, t, c] else 0.0
        expected = {
          kit.ZERO: here,
          kit.FORWARD: last,
          kit.DECAY: here if kept[i, t, c] else share * last,
          kit.MASKED: here,
          kit.MASK: 0,
          kit.COMPLETE: rows.values[i, t, c],
          kit.GIVEN: 7,
        }[method]
        np.testing.assert_allclose(found[i, t, c], expected, atol=1e-5)


_shown = jax.jit(kit.shown)


def test_errors_count_missing_values_alone(drawn):
  rows, _ = drawn
  completed = jnp.where(rows.mask, 100.0, rows.values + 0.25)
  np.testing.assert_allclose(kit.mean_error(completed, rows), 0.25, rtol=1e-5)


def test_exact_scores_are_those_of_exact_answers(drawn):
  rows, law = drawn
  log_probs, expected = kit.exact_answers(law, rows)
  found = kit.exact_scores(law, rows)
  np.testing.assert_allclose(found["NLL"], -log_probs[np.arange(40), rows.labels].mean(), rtol=1e-4)
  np.testing.assert_allclose(found["MAE"], kit.mean_error(expected, rows), rtol=1e-4)
