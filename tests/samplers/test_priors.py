import functools

import jax
import numpy as np
import pytest

from jaxlab import samplers
from jaxlab.samplers import priors
from jaxlab.uncertainty import kernel_matrix

KEY = jax.random.key(0)


TABULAR = {"batch_size": 64, "num_points": 30, "num_features": 6, "max_hidden": 20}


@functools.cache
def program(prior, **settings):
  """The whole prior as one program, as a training step would call it."""
  return jax.jit(functools.partial(prior, **settings))


def draw(prior, key=KEY, **settings):
  return program(prior, **settings)(key)


@functools.cache
def pairs_program(kernel):
  """Pairs of points under given hyper-samplers."""

  def pairs(lengthscale, outputscale, noise, min_noise=1e-4):
    return samplers.gp_hyper_prior(
      KEY,
      batch_size=20_000,
      num_points=2,
      lengthscale_gamma=lengthscale,
      outputscale_gamma=outputscale,
      noise_gamma=noise,
      min_noise=min_noise,
      kernel=kernel,
    )

  return jax.jit(pairs)


def assert_mean(samples, value):
  """Mean over the first axis within 4.5 standard errors."""
  samples = np.asarray(samples, np.float64)
  error = samples.std(0) / np.sqrt(len(samples))
  np.testing.assert_array_less(np.abs(samples.mean(0) - value), 4.5 * error + 1e-9)


@pytest.mark.parametrize(
  "prior", [samplers.gp_prior, samplers.gp_hyper_prior, samplers.ridge_prior, samplers.bnn_prior]
)
def test_shapes_and_determinism(prior):
  settings = {"batch_size": 64, "num_points": 30, "num_features": 6}
  settings = TABULAR if prior is samplers.bnn_prior else settings
  batch = draw(prior, **settings)
  assert batch.x.shape == (64, 30, 6) and batch.y.shape == batch.targets.shape == (64, 30)
  assert all(np.all(np.isfinite(a)) and a.dtype == np.float32 for a in batch)
  again = draw(prior, **settings)
  other = draw(prior, key=jax.random.key(1), **settings)
  np.testing.assert_array_equal(batch.x, again.x)
  np.testing.assert_array_equal(batch.y, again.y)
  assert np.any(batch.x != other.x) and np.any(batch.y != other.y)
  assert np.any(batch.x[0] != batch.x[1])
  if prior is not samplers.ridge_prior:
    np.testing.assert_array_equal(batch.y, batch.targets)


@pytest.mark.parametrize("kernel", ["rbf", "matern12"])
def test_equidistant_gp_has_the_covariance_of_its_kernel(kernel):
  setting = {"lengthscale": 0.3, "outputscale": 2.0, "kernel": kernel}
  batch = draw(
    samplers.gp_prior, batch_size=20_000, num_points=4, noise=0.1, equidistant=True, **setting
  )
  np.testing.assert_allclose(batch.x[0, :, 0], np.linspace(0, 1, 4), rtol=1e-6)
  np.testing.assert_array_equal(batch.x[0], batch.x[-1])
  x = batch.x[0]
  y = np.asarray(batch.y)
  assert_mean(y, 0.0)
  covariance = kernel_matrix(x, x, **setting) + 0.1 * np.eye(4)
  assert_mean(y[:, :, None] * y[:, None, :], covariance)


def test_gp_on_random_points_has_the_covariance_of_its_kernel():
  batch = draw(
    samplers.gp_prior,
    batch_size=20_000,
    num_points=3,
    num_features=2,
    lengthscale=(0.2, 0.9),
    noise=0.05,
  )
  x, y = np.asarray(batch.x, np.float64), np.asarray(batch.y)
  assert x.min() >= 0 and x.max() < 1
  assert_mean(x.reshape(-1, 2), 0.5)
  scaled = (x[:, 0] - x[:, 1]) / np.array([0.2, 0.9])
  residual = y[:, 0] * y[:, 1] - np.exp(-(scaled**2).sum(-1) / 2)
  assert_mean(residual, 0.0)
  assert_mean(y[:, 0] ** 2, 1.05)
  # Exchanged lengthscales are outside the tolerance.
  wrong = (x[:, 0] - x[:, 1]) / np.array([0.9, 0.2])
  residual = (y[:, 0] * y[:, 1] - np.exp(-(wrong**2).sum(-1) / 2)) * np.sign(
    np.abs(scaled).sum(-1) - np.abs(wrong).sum(-1)
  )
  assert abs(residual.mean()) > 10 * residual.std() / np.sqrt(len(residual))


def test_gp_stays_finite_at_the_published_setting():
  batch = draw(samplers.gp_prior, batch_size=2, num_points=200)
  assert np.all(np.isfinite(batch.y))


@pytest.mark.parametrize("kernel", ["rbf", "matern52"])
def test_gp_without_noise_stays_finite(kernel):
  # A smooth kernel of 100 points is singular in float32.
  settings = {"batch_size": 8, "num_points": 100, "lengthscale": 2.0, "noise": 0.0}
  y = np.asarray(draw(samplers.gp_prior, kernel=kernel, **settings).y)
  assert np.all(np.isfinite(y)) and y.std() > 0.1


def test_hyper_prior_has_its_moments():
  y = np.asarray(pairs_program("matern52")((3.0, 6.0), (2.0, 0.15), (1.1, 0.05)).y, np.float64)
  assert_mean(y**2, 2 / 0.15 + 1.1 / 0.05)  # E[outputscale] + E[noise]
  # Hyper-parameters per data set give the marginal heavier tails than a normal's.
  assert np.mean(y**4) / np.mean(y**2) ** 2 > 4


def test_hyper_prior_floors_the_noise_and_uses_its_kernel():
  batch = pairs_program("matern52")((1e6, 2e6), (1e6, 1e6), (1.0, 1e9), 0.5)
  x, y = np.asarray(batch.x[..., 0], np.float64), np.asarray(batch.y)
  assert_mean(y**2, 1.5)
  r = 5**0.5 * np.abs(x[:, 0] - x[:, 1]) / 0.5
  assert_mean(y[:, 0] * y[:, 1] - (1 + r + r**2 / 3) * np.exp(-r), 0.0)


def test_hyper_prior_mixes_kernels():
  batch = pairs_program(("rbf", "matern12"))((1e6, 4e6), (1e6, 1e6), (1.0, 1e9))
  x, y = np.asarray(batch.x[..., 0], np.float64), np.asarray(batch.y)
  r = np.abs(x[:, 0] - x[:, 1]) / 0.25
  rbf, matern = np.exp(-(r**2) / 2), np.exp(-r)
  residual = (y[:, 0] * y[:, 1] - (rbf + matern) / 2) * np.sign(rbf - matern)
  assert_mean(residual, 0.0)
  # One kernel alone would lie far outside these errors.
  assert np.mean(np.abs(rbf - matern)) / 2 > 5 * residual.std() / np.sqrt(len(residual))


def test_standardized_gp_has_unit_targets_of_the_inputs_it_uses():
  prior = functools.partial(samplers.standardized_gp_prior, num_points=40, num_features=4)
  many = jax.jit(lambda key: samplers.draw_data_sets(jax.random.split(key, 200), prior))
  x, y, targets = jax.device_get(many(KEY))
  np.testing.assert_array_equal(targets, y)
  np.testing.assert_allclose(y.mean(1), 0.0, atol=1e-4)
  np.testing.assert_allclose(y.std(1), 1.0, atol=1e-4)
  used = x.std(1) > 0
  assert (np.diff(used.astype(int), axis=1) <= 0).all()  # The first ones.
  np.testing.assert_allclose(np.bincount(used.sum(1), minlength=5)[1:] / 200, 0.25, atol=0.1)
  # Mean squared steps between neighbors along a single input: 2 for noise, near 0 for a function.
  rows = np.flatnonzero(used.sum(1) == 1)
  order = np.argsort(x[rows, :, 0], axis=1)
  steps = np.diff(np.take_along_axis(y[rows], order, 1), axis=1)
  low, high = np.quantile((steps**2).mean(1), [0.05, 0.95])
  assert low < 0.6 and high > 1.5


def test_standardized_gp_kernel_is_linear_or_bent_with_noise_of_mean_one():
  x, x2 = np.random.default_rng(0).uniform(size=(2, 5, 3)).astype(np.float32)
  draw = jax.jit(jax.vmap(lambda key: samplers.standardized_gp_kernel(key, x, x2, num_used=3)))
  covariance, noise = jax.device_get(draw(jax.random.split(KEY, 2000)))
  assert_mean(noise, 1.001)
  linear = 4 * (x - 0.5) @ (x2 - 0.5).T
  slopes = (covariance * linear).sum((1, 2)) / (linear**2).sum()
  bent = np.abs(covariance - slopes[:, None, None] * linear).max((1, 2)) > 1e-4
  assert_mean(bent, 0.5)
  assert_mean(slopes[~bent], 1.0)


def test_ridge_prior():
  batch = draw(
    samplers.ridge_prior,
    batch_size=20_000,
    num_points=4,
    num_features=2,
    weight_std=0.5,
    noise_std=0.2,
  )
  x, y, targets = (np.asarray(a, np.float64) for a in batch)
  # One weight vector explains all noiseless targets of a data set.
  weights = np.linalg.solve(x[:200, :2], targets[:200, :2, None])
  fit = (x[:200] @ weights)[..., 0]
  well = np.linalg.cond(x[:200, :2]) < 20
  np.testing.assert_allclose(fit[well], targets[:200][well], atol=1e-5)
  assert_mean(targets, 0.0)
  assert_mean(targets**2, 0.5**2 * 2 / 3)  # E[x^2] = 1/3
  assert_mean((y - targets) ** 2, 0.2**2)
  assert_mean((y - targets)[:, 0] * (y - targets)[:, 1], 0.0)


def test_ridge_prior_defaults():
  batch = draw(samplers.ridge_prior, batch_size=20_000, num_points=1)
  assert_mean(np.asarray(batch.targets) ** 2, 0.01 / 3)
  assert_mean((np.asarray(batch.y) - np.asarray(batch.targets)) ** 2, 0.01)


@pytest.fixture(scope="module")
def tabular():
  return {
    "binary": draw(samplers.bnn_prior, **TABULAR),
    "real": draw(samplers.bnn_prior, binary=False, **TABULAR),
    "classes": draw(samplers.bnn_prior, num_classes=4, **TABULAR),
  }


def test_bnn_features_are_standardized_or_unused(tabular):
  x = np.asarray(tabular["binary"].x, np.float64)
  used = np.any(x != 0, axis=1)
  np.testing.assert_allclose(x.mean(1), 0, atol=1e-5)
  np.testing.assert_allclose(x.std(1, ddof=1)[used], 1, atol=1e-4)
  # Unused features come last, and the data sets of a group agree on them.
  assert np.all(np.diff(used.astype(int), axis=1) <= 0) and np.all(used[:, 0])
  np.testing.assert_array_equal(used.reshape(8, 8, 6), np.repeat(used[::8, None], 8, axis=1))
  assert len(np.unique(used.sum(1))) > 1
  assert np.any(x[0] != x[1])


def test_bnn_binary_labels_cut_at_the_lower_median(tabular):
  label, value = np.asarray(tabular["binary"].y), np.asarray(tabular["real"].y, np.float64)
  np.testing.assert_allclose(value.mean(1), 0, atol=1e-5)
  np.testing.assert_allclose(value.std(1, ddof=1), 1, atol=1e-3)
  median = np.sort(value, axis=1)[:, 14:15]  # the lower one of two
  np.testing.assert_array_equal(label, value > median)
  np.testing.assert_array_equal(label.sum(1), 15)


def test_bnn_classes_are_permuted_quantiles(tabular):
  classes, value = np.asarray(tabular["classes"].y), np.asarray(tabular["real"].y)
  orders = set()
  for row, values in zip(classes, value):
    sorted_classes = row[np.argsort(values)]
    changes = np.flatnonzero(np.diff(sorted_classes))
    assert len(changes) == 3  # four runs, one per class
    order = sorted_classes[np.append(changes, -1)].astype(int)
    assert sorted(order) == [0, 1, 2, 3]
    assert set(np.bincount(row.astype(int))) <= {7, 8}
    orders.add(tuple(order))
  assert len(orders) > 10


def test_bnn_sizes_and_scales_follow_their_distributions():
  used, hidden, weight_std, noise_std = jax.jit(
    lambda key: priors._network_hyperparameters(
      key, 20_000, 6, 150, (3.6188, 0.067737), (1.8663, 0.052755)
    )
  )(KEY)
  assert_mean(weight_std, 3.6188 * 0.067737)
  assert_mean(noise_std, 1.8663 * 0.052755)
  assert_mean(np.square(noise_std), 1.8663 * 2.8663 * 0.052755**2)
  rng = np.random.default_rng(0)
  sizes = np.clip(2 + np.round(rng.beta(1, 1.6, size=1_000_000) * 5 - 0.5), 1, 6)
  probs = [(sizes == size).mean() for size in range(1, 7)]
  assert_mean(np.asarray(used)[:, None] == np.arange(1, 7), probs)
  widths = np.clip(2 + np.round(rng.beta(2, 4, size=1_000_000) * 149 - 0.5), 2, 150)
  assert_mean(hidden, widths.mean())
  assert_mean((np.asarray(hidden) - widths.mean()) ** 2, widths.var())


@pytest.fixture(scope="module")
def small_networks():
  """Two groups of 8 networks with weights near 0.1, given the distribution of the noise."""

  def networks(noise_std_gamma):
    return samplers.bnn_prior(
      KEY,
      batch_size=16,
      num_points=300,
      num_features=3,
      max_hidden=10,
      weight_std_gamma=(1e4, 1e-5),
      noise_std_gamma=noise_std_gamma,
      binary=False,
    )

  jitted = jax.jit(networks)

  def fit(noise_std_gamma):
    x, y, _ = (np.asarray(a, np.float64) for a in jitted(noise_std_gamma))
    slopes = np.stack([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(x, y)])
    return slopes, np.einsum("btf,bf->bt", x, slopes), y

  return fit


def test_bnn_with_small_weights_is_linear_and_shared_in_a_group(small_networks):
  slopes, fit, y = small_networks((1.0, 0.0))
  assert (y - fit).std() < 0.1
  for group in (slopes[:8], slopes[8:]):
    np.testing.assert_allclose(group, np.broadcast_to(group.mean(0), (8, 3)), atol=0.15)
  assert np.abs(slopes[:8].mean(0) - slopes[8:].mean(0)).max() > 0.2


def test_bnn_last_group_may_be_smaller():
  batch = draw(samplers.bnn_prior, **{**TABULAR, "batch_size": 12})
  x = np.asarray(batch.x)
  assert x.shape == (12, 30, 6) and batch.y.shape == (12, 30) and np.all(np.isfinite(batch.y))
  used = np.any(x != 0, axis=1)
  for group in (used[:8], used[8:]):
    np.testing.assert_array_equal(group, np.broadcast_to(group[0], group.shape))


def test_bnn_noise_hides_the_function(small_networks):
  _, fit, _ = small_networks((1e4, 1e-3))
  assert np.mean(fit**2) < 0.1


@pytest.mark.parametrize("one_by_one", [False, True])
def test_data_sets_of_several_keys_are_joined(one_by_one):
  prior_fn = functools.partial(samplers.ridge_prior, batch_size=2, num_points=5, num_features=3)
  keys = jax.random.split(KEY, 3)
  joined = jax.jit(lambda keys: samplers.draw_data_sets(keys, prior_fn, one_by_one=one_by_one))(
    keys
  )
  draw_one = jax.jit(prior_fn)
  single = [draw_one(key) for key in keys]
  for name in ("x", "y", "targets"):
    expected = np.concatenate([getattr(batch, name) for batch in single])
    np.testing.assert_allclose(getattr(joined, name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("prior", "settings", "message"),
  [
    (samplers.gp_prior, {"kernel": "cubic"}, "'cubic'"),
    (samplers.gp_prior, {"equidistant": True, "num_features": 2}, "num_features=2"),
    (samplers.gp_prior, {"num_points": 0}, "num_points .* got 0"),
    (samplers.gp_hyper_prior, {"kernel": ("rbf", "cubic")}, "'cubic'"),
    (samplers.gp_hyper_prior, {"kernel": ()}, "at least one kernel"),
    (samplers.gp_prior, {"lengthscale": 0.0}, "lengthscale .* got 0"),
    (samplers.gp_prior, {"outputscale": -1.0}, "outputscale .* got -1"),
    (samplers.gp_prior, {"noise": -1e-4}, "noise .* got -0.0001"),
    (samplers.gp_prior, {"noise": np.nan}, "noise .* got nan"),
    (samplers.gp_hyper_prior, {"lengthscale_gamma": (3.0, 0.0)}, "lengthscale_gamma"),
    (samplers.gp_hyper_prior, {"min_noise": -1.0}, "min_noise .* got -1"),
    (samplers.ridge_prior, {"num_features": 0}, "num_features .* got 0"),
    (samplers.ridge_prior, {"noise_std": -0.1}, "noise_std .* got -0.1"),
    (samplers.bnn_prior, {"weight_std_gamma": (0.0, 1.0)}, "weight_std_gamma"),
    (samplers.bnn_prior, {"group_size": 0}, "group_size .* got 0"),
    (samplers.bnn_prior, {"num_points": 1}, "num_points .* got 1"),
    (samplers.bnn_prior, {"max_hidden": 1}, "max_hidden .* got 1"),
    (samplers.bnn_prior, {"num_classes": 6}, "num_classes .* got 6"),
    (samplers.bnn_prior, {"num_classes": 3, "binary": False}, "num_classes=3 needs binary"),
  ],
)
def test_errors(prior, settings, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(functools.partial(prior, **{"batch_size": 8, "num_points": 5, **settings}), KEY)
