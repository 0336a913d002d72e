import functools
import importlib.util
import math
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import data
from jaxlab.data import learning_curves as lc
from jaxlab.uncertainty import basis_curve, combined_curve, is_learning_curve

LENGTH = 6


class Transformed:
  """exp U(low, high), or 1 - exp U(low, high)."""

  def __init__(self, low, high, flip=False):
    self.low, self.high, self.flip = low, high, flip

  def rvs(self, size, random_state):
    draw = np.exp(random_state.uniform(self.low, self.high, size))
    return 1 - draw if self.flip else draw


def _u(low, high):
  return stats.uniform(low, high - low)


def _ln(mean, std):
  return stats.lognorm(std, scale=math.exp(mean))


PEAKED = {
  "pow3": (_u(0, 1.25), _u(-0.6, 0.6), _ln(0, 2)),
  "ilog2": (_u(0, 1), _u(-0.5, 0.5)),
  "janoschek": (_u(0, 1), _u(0, 2), _ln(-2, 1), _ln(0, 0.5)),
  "log_power": (stats.norm(0.8, 0.1), stats.norm(1, 1), _u(-3, 0)),
  "weibull": (_u(0, 1.5), _u(0, 1), _ln(-2, 1), _ln(0, 0.5)),
  "mmf": (stats.norm(0.8, 0.1), stats.norm(0.2, 0.1), _ln(0, 2), _ln(0, 1)),
  "vap": (_u(-2, 0), _u(-4, 0), Transformed(-8, 0)),
  "loglog_linear": (_ln(-2, 1), Transformed(0, 1)),
  "exp4": (stats.norm(0.8, 0.1), _ln(-2, 1), _ln(0, 0.5), _ln(0, 1)),
  "pow4": (Transformed(-5, 0, flip=True), _ln(-3, 2), Transformed(0, 1), _ln(0, 1)),
  "dr_hill_zero_background": (stats.norm(0.8, 0.1), _ln(1, 1), _ln(1, 2)),
}
UNIFORM = PEAKED | {
  "pow3": (_u(0, 1), _u(-1, 1), _u(0, 1)),
  "ilog2": (_u(0, 1), _u(-1, 1)),
  "janoschek": (_u(0, 1), _u(0, 2), _u(0, 1), _u(-5, 5)),
}
DEFAULT = ("pow3", "ilog2", "janoschek")


def priors_of(components, table):
  families = [prior for name in components for prior in table[name]]
  return [*families, *[_u(0, 1)] * len(components), stats.norm(-4, 1)]


def slow_rejection(components, table, num_draws):
  """Accepted parameters of `num_draws` draws, one family after the other."""
  rng = np.random.default_rng(0)
  draws = [prior.rvs(num_draws, random_state=rng) for prior in priors_of(components, table)]
  params = np.stack(draws, 1).astype(np.float32)
  curves, start = 0.0, 0
  weights = params[:, -1 - len(components) : -1]
  for name, weight in zip(components, weights.T):
    end = start + len(table[name])
    values = basis_curve(name, np.arange(1.0, LENGTH + 1), params[:, None, start:end])
    curves, start = curves + weight[:, None] * np.asarray(values), end
  inside = (curves >= 0).all(1) & (curves <= 1).all(1)
  return params[inside & (curves[:, -1] > curves[:, 0])]


def assert_same_distribution(got, expected):
  for column in range(got.shape[1]):
    result = stats.ks_2samp(got[:, column], expected[:, column])
    assert result.pvalue > 1e-3, (column, result.pvalue)


def slow_normalize(v, lower, upper, soft_lower, soft_upper, minimize):
  def sigmoid(bound):
    return 1 / (1 + math.exp(1 - 2 * (bound - soft_lower) / (soft_upper - soft_lower)))

  s_l = 0.0 if lower is None else sigmoid(lower)
  s_u = 1.0 if upper is None else sigmoid(upper)
  y = (sigmoid(v) - s_l) / (s_u - s_l)
  return 1 - y if minimize else y


BOUNDS = [
  dict(lower=0.0, upper=1.0, soft_lower=0.0, soft_upper=1.0, minimize=False),
  dict(lower=0.0, upper=None, soft_lower=0.0, soft_upper=math.log(10), minimize=True),
  dict(lower=None, upper=2.0, soft_lower=-1.0, soft_upper=1.5, minimize=False),
  dict(lower=None, upper=None, soft_lower=-1.0, soft_upper=1.0, minimize=True),
]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_normalize_matches_loop_inverts_and_is_monotone(bounds):
  low = -2.0 if bounds["lower"] is None else bounds["lower"]
  high = 3.0 if bounds["upper"] is None else bounds["upper"]
  values = np.linspace(low, high, 41).astype(np.float32)
  y = np.asarray(lc.normalize_curve(values, **bounds))
  np.testing.assert_allclose(y, [slow_normalize(v, **bounds) for v in values], atol=1e-6)
  np.testing.assert_allclose(lc.denormalize_curve(y, **bounds), values, atol=2e-5)
  assert np.all(np.diff(y) < 0 if bounds["minimize"] else np.diff(y) > 0)
  worst, best = (y[-1], y[0]) if bounds["minimize"] else (y[0], y[-1])
  if bounds["lower"] is not None:
    np.testing.assert_allclose(best if bounds["minimize"] else worst, bounds["minimize"], atol=1e-6)
  if bounds["upper"] is not None:
    np.testing.assert_allclose(
      worst if bounds["minimize"] else best, not bounds["minimize"], atol=1e-6
    )


# Every number of classes is a program, and the budget wants the same ones each time.
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(st.floats(0.0, 40.0, width=32), st.integers(2, 50), st.booleans(), st.booleans())
def test_denormalize_inverts_normalize(loss, classes, minimize, jit):
  # Losses far above the soft bound map to values that a complement would round to zero.
  bounds = dict(lower=0.0, upper=None, soft_upper=math.log(classes), minimize=minimize)
  # Beyond this float32 rounds to the bound: see the next test.
  loss = min(loss, (40 if minimize else 2) * math.log(classes))

  def there_and_back(v):
    return lc.denormalize_curve(lc.normalize_curve(v, **bounds), **bounds)

  got = (jax.jit(there_and_back) if jit else there_and_back)(jnp.float32(loss))
  np.testing.assert_allclose(got, loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 50])
def test_extreme_values_are_rounded_to_the_bound(classes):
  bounds = dict(lower=0.0, upper=None, soft_upper=math.log(classes), minimize=True)
  near, far = (jnp.float32(ranges * math.log(classes)) for ranges in (43, 46))
  assert lc.normalize_curve(near, **bounds) > 0 and lc.normalize_curve(far, **bounds) == 0
  assert lc.denormalize_curve(jnp.float32(0), **bounds) == jnp.inf


def test_remote_lower_bound_counts_as_none():
  values = np.array([0.1, 0.5], np.float32)
  remote = lc.normalize_curve(values, lower=-1e6)
  np.testing.assert_array_equal(remote, lc.normalize_curve(values, lower=None))
  np.testing.assert_array_equal(remote, lc.normalize_curve(values, lower=-math.inf))
  assert lc.normalize_curve(values.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
  "bounds",
  [
    dict(soft_lower=1.0, soft_upper=1.0),
    dict(soft_lower=-0.1),
    dict(upper=0.9),
    dict(lower=None, upper=None, soft_lower=2.0),
  ],
)
def test_normalize_errors(bounds):
  for fn in (lc.normalize_curve, lc.denormalize_curve):
    with pytest.raises(ValueError, match="lower <= soft_lower < soft_upper <= upper"):
      fn(np.zeros(2), **bounds)


@pytest.mark.parametrize(("distribution", "table"), [("peaked", PEAKED), ("uniform", UNIFORM)])
def test_sample_curve_params_follows_the_priors(distribution, table):
  params = lc.sample_curve_params(jax.random.key(1), batch_size=4000, distribution=distribution)
  assert params.shape == (4000, 13) and params.dtype == jnp.float32
  for column, prior in zip(np.asarray(params).T, priors_of(DEFAULT, table)):
    assert stats.kstest(column, prior.cdf).pvalue > 1e-3
  correlation = stats.spearmanr(params).statistic - np.eye(13)
  assert np.abs(correlation).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize(
  ("components", "distribution"),
  [
    (DEFAULT, "peaked"),
    (DEFAULT, "uniform"),
    (("vap", "log_power"), "peaked"),
    (("pow4", "dr_hill_zero_background"), "uniform"),
    (("weibull", "loglog_linear"), "peaked"),
    (("mmf", "exp4"), "peaked"),
  ],
)
def test_accepted_curves_match_slow_rejection(components, distribution):
  batch = lc.sample_accepted_curves(
    jax.random.key(2),
    batch_size=2000,
    length=LENGTH,
    components=components,
    distribution=distribution,
  )
  assert np.all(batch.accepted) and np.all(is_learning_curve(batch.clean))
  curves = combined_curve(batch.params, length=LENGTH, components=components)
  np.testing.assert_allclose(batch.clean, curves, atol=1e-5)
  assert len(np.unique(batch.params[:, 0])) > 1990  # a draw fills one row
  table = PEAKED if distribution == "peaked" else UNIFORM
  assert_same_distribution(np.asarray(batch.params), slow_rejection(components, table, 20000))


def test_rows_of_small_batches_have_the_same_distribution():
  # Batches of two rows often need several rounds; under vmap finished ones must not change.
  sample = functools.partial(lc.sample_accepted_curves, batch_size=2, length=LENGTH)
  keys = jax.random.split(jax.random.key(3), 2000)
  params = np.asarray(jax.jit(jax.vmap(sample))(keys).params)
  expected = slow_rejection(DEFAULT, PEAKED, 20000)
  for row in range(2):
    assert_same_distribution(params[:, row], expected)
  assert abs(stats.spearmanr(params[:, 0, 0], params[:, 1, 0]).statistic) < 4 / math.sqrt(2000)
  np.testing.assert_allclose(params[7], sample(keys[7]).params, rtol=1e-5)


@pytest.fixture(scope="module")
def batch():
  sample = functools.partial(lc.sample_learning_curves, batch_size=4000, length=LENGTH)
  return jax.jit(sample)(jax.random.key(4))


def test_sampled_curves(batch):
  clean, y = np.asarray(batch.clean), np.asarray(batch.y)
  assert clean.min() >= 0 and clean.max() <= 1 and np.all(clean[:, -1] > clean[:, 0])
  assert batch.x.shape == (4000, LENGTH, 1) and batch.x.dtype == jnp.float32
  np.testing.assert_array_equal(batch.x[17, :, 0], np.arange(1, LENGTH + 1))
  np.testing.assert_array_equal(batch.targets, y)
  noise = (y - clean) / np.asarray(batch.noise_std)[:, None]
  assert abs(noise.mean()) < 4 / math.sqrt(noise.size)
  assert abs(noise.std() - 1) < 4 / math.sqrt(2 * noise.size)
  assert y.max() > 1  # the noise is not clipped


def test_curves_over_other_steps(batch):
  sizes = [16 * 2 ** (k / 2) for k in range(LENGTH)]
  sample = functools.partial(lc.sample_learning_curves, batch_size=64, length=LENGTH, steps=sizes)
  drawn = jax.jit(sample)(jax.random.key(4))
  np.testing.assert_allclose(drawn.x[5, :, 0], sizes)
  clean = np.asarray(drawn.clean)
  assert clean.min() >= 0 and clean.max() <= 1 and np.all(clean[:, -1] > clean[:, 0])
  # At 16 rows and more the curves have risen further than at steps 1, 2, ...
  assert np.ptp(clean, axis=1).mean() < np.ptp(batch.clean, axis=1).mean()


def test_noise_levels(batch):
  log_noise = np.log(np.asarray(batch.noise_std))
  assert stats.kstest(log_noise, stats.norm(-4, 1).cdf).pvalue > 1e-3
  # The hyper-parameters may be traced; a std of zero fixes the level.
  sample = jax.jit(
    lambda mean: lc.sample_learning_curves(
      jax.random.key(0), batch_size=4, length=LENGTH, log_noise_mean=mean, log_noise_std=0.0
    )
  )
  np.testing.assert_allclose(sample(-2.0).noise_std, math.exp(-2), rtol=1e-6)
  std = jnp.float32(0.0)  # closed over, which makes its comparisons traced
  closed = jax.jit(
    lambda key: lc.sample_learning_curves(key, batch_size=4, length=LENGTH, log_noise_std=std)
  )
  np.testing.assert_allclose(closed(jax.random.key(0)).noise_std, math.exp(-4), rtol=1e-6)


def test_rows_never_accepted_become_the_constant_half(monkeypatch):
  lc._reject.clear_cache()
  monkeypatch.setattr(lc, "_MAX_ROUNDS", 0)
  batch = lc.sample_learning_curves(jax.random.key(5), batch_size=3, length=LENGTH)
  np.testing.assert_array_equal(batch.clean, 0.5)
  assert np.all(np.isfinite(batch.y))
  monkeypatch.setattr(lc, "_MAX_ROUNDS", 1)
  monkeypatch.setattr(lc, "_CANDIDATES_PER_ROW", 1)
  rows = lc.sample_accepted_curves(jax.random.key(5), batch_size=50, length=LENGTH)
  accepted = np.asarray(rows.accepted)
  assert 0 < accepted.sum() < 50
  np.testing.assert_array_equal(accepted, np.sort(accepted)[::-1])
  np.testing.assert_array_equal(np.isnan(rows.params).all(1), ~accepted)
  assert np.all(rows.clean[~accepted] == 0.5) and np.all(is_learning_curve(rows.clean[accepted]))
  lc._reject.clear_cache()


def test_sampling_errors():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="family.*'pow5'"):
    lc.sample_learning_curves(key, batch_size=2, components=("pow3", "pow5"))
  with pytest.raises(ValueError, match="distribution.*'flat'"):
    lc.sample_curve_params(key, batch_size=2, distribution="flat")
  with pytest.raises(ValueError, match="length.*got 1"):
    lc.sample_learning_curves(key, batch_size=2, length=1)
  with pytest.raises(ValueError, match="components"):
    lc.sample_accepted_curves(key, batch_size=2, components=())
  with pytest.raises(ValueError, match="log_noise_std.*-1"):
    lc.sample_learning_curves(key, batch_size=2, log_noise_std=-1.0)


@pytest.fixture
def small_lcdb(tmp_path, monkeypatch):
  """An lcdb package of a few rows that cannot be imported."""
  pytest.importorskip("pandas")
  package = tmp_path / "lcdb"
  package.mkdir()
  (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
  columns = "openmlid,learner,size_train,size_test,outer_seed,inner_seed,traintime,"
  rows = [
    (12, "tree", 32, 0.5),
    (3, "svm", 64, 0.75),
    (3, "svm", 16, 0.25),
    (12, "tree", 16, 0.125),
    (3, "svm", 32, 0.5),
    (3, "svm", 16, 0.5),
    (3, "tree", 16, 0.9),
  ]
  lines = [columns + "score_train,score_valid,score_test"]
  lines += [f"{i},{learner},{size},1,0,0,0.1,9,9,{score}" for i, learner, size, score in rows]
  (package / "database-accuracy.csv").write_text("\n".join(lines) + "\n")
  monkeypatch.delitem(sys.modules, "lcdb", raising=False)
  monkeypatch.syspath_prepend(str(tmp_path))


def test_load_lcdb_averages_seeds_and_sorts_anchors(small_lcdb):
  curves = data.load_lcdb(min_anchors=1)
  np.testing.assert_array_equal(curves.dataset_ids, [3, 3, 12])
  assert curves.learners.tolist() == ["svm", "tree", "tree"]
  np.testing.assert_array_equal(curves.lengths, [3, 1, 2])
  np.testing.assert_array_equal(curves.anchors, [[16, 32, 64], [16, 0, 0], [16, 32, 0]])
  nan = np.nan
  expected = np.array([[0.375, 0.5, 0.75], [0.9, nan, nan], [0.125, 0.5, nan]], np.float32)
  np.testing.assert_array_equal(curves.values, expected)
  assert data.load_lcdb(min_anchors=2).learners.tolist() == ["svm", "tree"]


def test_load_lcdb_errors(monkeypatch):
  with pytest.raises(ValueError, match="metric.*'f1'"):
    data.load_lcdb(metric="f1")
  with pytest.raises(ValueError, match="min_anchors.*0"):
    data.load_lcdb(min_anchors=0)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match=r"jaxlab\[series\]"):
    data.load_lcdb()


def test_load_lcdb_counts():
  pytest.importorskip("pandas")
  if importlib.util.find_spec("lcdb") is None:
    pytest.skip("lcdb is not installed")
  curves = data.load_lcdb()
  assert len(curves.lengths) == 3988 and curves.lengths.min() == 10
  assert len(np.unique(curves.learners)) == 20 and curves.values.dtype == np.float32
  np.testing.assert_array_equal(np.isfinite(curves.values).sum(1), curves.lengths)
  steps = np.diff(curves.anchors, axis=1)
  assert np.all(steps[np.isfinite(curves.values[:, 1:])] > 0)
  values = curves.values[np.isfinite(curves.values)]
  assert values.min() >= 0 and values.max() <= 1
