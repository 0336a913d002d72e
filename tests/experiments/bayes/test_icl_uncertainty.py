import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.bayes.icl_uncertainty import laws, prediction
from experiments.bayes.icl_uncertainty.__main__ import PRESETS, validate
from experiments.bayes.icl_uncertainty.laws import FRESH, LAWS, NOISE, POOL, SCALE, WIDE
from jaxlab.uncertainty import GaussianPredictive

CONFIG = PRESETS["laptop"]


@pytest.fixture(scope="module")
def drawn():
  """Many sequences of all conditions, and what the wide law's predictor says of a few."""
  config = dataclasses.replace(CONFIG, num_test=20_000)

  @jax.jit
  def draw(key):
    tests = prediction.test_batches(config, key)
    few = jax.tree.map(lambda x: x[laws.CONDITIONS.index(WIDE), :20], tests)
    pool = prediction.pool_of(config, key)
    return tests, pool, few, laws.exact(config, WIDE, few, pool)

  return jax.tree.map(np.asarray, draw(jax.random.key(0)))


def test_conditions_have_their_moments(drawn):
  stacked, pool, *_ = drawn
  tests = {name: type(stacked)(*rows) for name, *rows in zip(laws.CONDITIONS, *stacked)}
  scales = {name: batch.x.std() for name, batch in tests.items()}
  widths = np.sqrt(np.mean(np.square(CONFIG.input_scales)))
  for name in (FRESH, POOL, NOISE):
    assert scales[name] == pytest.approx(1, rel=0.01)
  assert scales[SCALE] == pytest.approx(2, rel=0.01)
  assert scales[WIDE] == pytest.approx(widths, rel=0.02)
  squares = {name: np.mean(np.square(batch.y)) for name, batch in tests.items()}
  # Noise of mean variance 1, and weights of variance 1/2 for each of two inputs.
  assert squares[FRESH] == pytest.approx(2, rel=0.1)
  assert squares[SCALE] == pytest.approx(1 + 4, rel=0.1)
  assert squares[WIDE] == pytest.approx((1 + 16) / 2 + widths**2, rel=0.1)
  assert squares[NOISE] == pytest.approx(16 + 1, rel=0.03)
  # Sequences of the pool are those of its functions.
  x, y = tests[POOL]
  residuals = np.einsum("btf,pf->bpt", x, pool.weights) - y[:, None]
  logs = stats.norm.logpdf(residuals, 0, pool.noise_stds[:, None]).sum(-1)
  shares = np.bincount(logs.argmax(1), minlength=len(pool.weights)) / len(y)
  ratio = np.square(residuals).mean(-1)[np.arange(len(y)), logs.argmax(1)]
  assert shares.min() > 0.1
  assert ratio.mean() < 1.2 * np.square(pool.noise_stds).max()


def test_the_wide_predictor_is_the_mixture_of_its_halves(drawn):
  """Evidence by the dense Student distribution of all values."""
  *_, (x, y), found = drawn
  for row in range(20):
    for n in (0, 1, 4, 9):
      seen, values = x[row, :n].astype(np.float64), y[row, :n].astype(np.float64)
      logs, means, variances = [], [], []
      for factor in (1.0, 16.0):
        shape, rate, precision = 3.0, 2.0 * factor, 2.0 * factor
        gram = np.eye(n) + seen @ seen.T / precision
        logs.append(
          stats.multivariate_t(np.zeros(n), rate / shape * gram, df=2 * shape).logpdf(values)
          if n
          else 0.0
        )
        inverse = np.linalg.inv(seen.T @ seen + precision * np.eye(2))
        weights = inverse @ seen.T @ values
        spread = rate + (values @ values - weights @ (seen.T @ values)) / 2
        query = x[row, n]
        means.append(query @ weights)
        variances.append(spread / (shape + n / 2 - 1) * (1 + query @ inverse @ query))
      share = np.exp(logs - np.logaddexp(*logs))
      mean = share @ means
      np.testing.assert_allclose(found.mean[row, n], mean, rtol=2e-3, atol=2e-4)
      variance = share @ (variances + (means - mean) ** 2)
      np.testing.assert_allclose(found.variance[row, n], variance, rtol=2e-3)


def test_scores_are_means():
  rng = np.random.default_rng(0)
  means, variances = rng.normal(size=(3, 50, 4)), rng.uniform(0.5, 2.0, (3, 50, 4))
  ours, bayes, prior = (GaussianPredictive(*x) for x in zip(means, variances))
  targets = rng.normal(size=(50, 4))
  found = jax.jit(prediction.score)(ours, bayes, prior, targets)
  losses = [-stats.norm(p.mean, np.sqrt(p.variance)).logpdf(targets) for p in (ours, bayes)]
  (m, v), (mu, w) = ([x[:, -1] for x in p] for p in (ours, bayes))
  divergence = (np.log(v / w) + (w + (m - mu) ** 2) / v - 1) / 2
  held = np.abs(targets - means[0]) < stats.norm.ppf(0.95) * np.sqrt(variances[0])
  expected = {
    "NLL": losses[0].mean(0),
    "excess": np.mean(losses[0] - losses[1]),
    "90% coverage": held.mean(),
    "KL": divergence.mean(),
    "median KL": np.median(divergence),
    "distance to own Bayes": np.sqrt(np.mean((means[0] - means[1]) ** 2)),
    "distance to prior's Bayes": np.sqrt(np.mean((means[0] - means[2]) ** 2)),
    "distance of log-variances": np.sqrt(np.mean(np.log(v / w) ** 2)),
  }
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def measured():
  """Exact predictors and baselines of one seed."""
  run = jax.jit(lambda key: (prediction.references(CONFIG, key), prediction.baselines(CONFIG, key)))
  return jax.tree.map(np.asarray, run(jax.random.key(1)))


def test_exact_predictors_are_exact(measured):
  """The implementation check."""
  rows, _ = measured
  for law in LAWS:
    place, row = laws.CONDITIONS.index(law), rows[f"exact, {law}"]
    for name in ("excess", "KL", "distance to own Bayes", "distance of log-variances"):
      np.testing.assert_allclose(row[name], 0, atol=1e-6)
    # Mixtures and Student's t hold a little more than 90% in a normal interval.
    assert row["90% coverage"][place] == pytest.approx(0.9, abs=0.015)
    # No other predictor is better where the law is true.
    best = min(other["NLL"][place].mean() for other in rows.values())
    assert row["NLL"][place].mean() == best
  pool, fresh = (rows[f"exact, {law}"] for law in (POOL, FRESH))
  assert pool["distance to prior's Bayes"][0] > 0.1
  np.testing.assert_allclose(fresh["distance to prior's Bayes"], 0, atol=1e-6)
  assert pool["90% coverage"][0] < 0.88


def test_baselines_and_the_floor(measured):
  rows, found = measured
  exact = rows[f"exact, {FRESH}"]["NLL"][0]
  ridge, plain, floor = (
    found[name]["NLL"] for name in (prediction.RIDGE, prediction.LEAST_SQUARES, prediction.STUDENT)
  )
  # Student's t is the law itself; its normal distribution of equal moments costs less and less.
  cost = exact - floor
  assert (cost > -0.003).all() and cost[0] > 0.01 > cost[-1]
  assert 0.04 < (ridge - exact)[4:].mean() < 0.11
  assert found[prediction.RIDGE]["chosen/penalty"] in (1.0, 2.0, 4.0)
  assert np.isnan(plain[:3]).all() and (plain[4:] > ridge[4:]).all()


@pytest.mark.parametrize(
  "change", [{"shape": 1.0}, {"num_steps": 5}, {"from_prefix": 10}, {"num_features": 9}]
)
def test_impossible_sizes_are_named(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    validate(dataclasses.replace(CONFIG, **change))
