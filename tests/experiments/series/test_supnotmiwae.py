import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.kit import incomplete
from experiments.series.supnotmiwae import generative, problems
from experiments.series.supnotmiwae.__main__ import PRESETS, validate
from jaxlab import algorithms

LAPTOP, SMOKE = PRESETS["laptop"], PRESETS["smoke"]
SHORT = dataclasses.replace(SMOKE, length=3, num_channels=2, gauss_sizes=(8, 8, 6))
SMALL = dataclasses.replace(LAPTOP, gauss_sizes=(300, 8, 40), digit_sizes=(600, 100, 100))


@pytest.fixture(scope="module")
def gauss():
  return problems.draw(SMALL, problems.GAUSS, 0)


def test_gaussian_series_are_standardized_with_their_law(gauss):
  train = gauss.train
  assert train.values.shape == (300, 12, 8) and gauss.law.means.shape == (4, 96)
  seen = np.where(train.mask, train.values, np.nan)
  np.testing.assert_allclose(np.nanmean(seen, (0, 1)), 0, atol=1e-5)
  np.testing.assert_allclose(np.nanstd(seen, (0, 1)), 1, atol=1e-5)
  assert abs(train.mask.mean() - SMALL.gauss_observed) < 0.01
  # Each series, less the mean of its class and whitened, is noise.
  rest = train.values.reshape(300, -1) - gauss.law.means[train.labels]
  white = np.linalg.solve(np.linalg.cholesky(gauss.law.covariance.astype(float)), rest.T)
  assert abs(white.mean()) < 0.03 and abs(white.std() - 1) < 0.03


def test_large_digits_are_missing_where_it_is_not_at_random():
  away, random = (problems.draw(SMALL, name, 0) for name in (problems.AWAY, problems.RANDOM))
  for problem in (away, random):
    assert [len(part.labels) for part in problem[:3]] == [600, 100, 100]
    assert problem.train.values.shape[1:] == (8, 8) and problem.law is None
    np.testing.assert_allclose(problem.train.values.mean((0, 1)), 0, atol=1e-5)
    assert abs(problem.train.mask.mean() - 0.3) < 0.02
  np.testing.assert_array_equal(away.train.values, random.train.values)
  means = [p.train.values[p.train.mask].mean() for p in (away, random)]
  assert means[0] < -0.2 and abs(means[1]) < 0.03


def test_digits_may_be_of_the_first_classes_alone():
  problem = problems.draw(
    dataclasses.replace(SMOKE, digit_sizes=(400, 72, 232)), problems.RANDOM, 0
  )
  assert [len(part.labels) for part in problem[:3]] == [400, 72, 232]
  for part in problem[:3]:
    assert set(part.labels) == set(range(4)) and len(part.values) == len(part.labels)


def test_seeds_draw_other_series(gauss):
  other = problems.draw(SMALL, problems.GAUSS, 1)
  assert not np.array_equal(gauss.law.means, other.law.means)


@pytest.mark.parametrize("fadeless", [True, False])
def test_rows_choose_among_their_settings(fadeless):
  found = generative.settings(LAPTOP, (0.2, 0.4), fadeless=fadeless)
  assert {name: len(tried) for name, tried in found.items()} == {
    generative.FULL: 4, generative.UNDROPPED: 2, generative.HIGH: 2,
  } | ({generative.FADELESS: 2} if fadeless else {})  # fmt: skip
  assert all(setting in found[generative.FULL] for setting in found[generative.HIGH])
  assert {setting["dropout"] for setting in found[generative.UNDROPPED]} == {0.0}


@pytest.fixture(scope="module")
def predicted():
  """A small model that is not trained, and its predictions."""
  config = SHORT
  model = generative.Model(config, problems.shape_of(config, problems.GAUSS))
  rows = problems.draw(config, problems.GAUSS, 0).test

  @jax.jit
  def predict(key):
    params = model.init(key, 0.05)
    found = model.predict(params, key, rows, (3, 2))
    again = model.predict_from(params, rows, found["imputed"], found["log_w"])
    return found | {"again": again, "filled": incomplete.fill(params, rows, found["mean"])}

  return rows, jax.device_get(predict(jax.random.key(0)))


def test_pretraining_leaves_the_classifier_alone(predicted):
  config, rows = SHORT, predicted[0]
  model = generative.Model(config, problems.shape_of(config, problems.GAUSS))

  @jax.jit
  def gradient(weights):
    params = model.init(jax.random.key(0), 0.05)
    batch, key = (jax.tree.map(jnp.asarray, rows), weights), jax.random.key(1)
    loss = lambda params: jnp.mean(model.losses(params, key, batch, dropout=0.4))  # noqa: E731
    gradients = jax.grad(loss)(params)
    return {name: optax.global_norm(found) for name, found in gradients.items()}

  before, after = (gradient(np.full(len(rows.labels), x, np.float32)) for x in (0, 1))
  assert before["classifier"] == 0 and after["classifier"] > 0
  for name in ("encoder", "decoder", "mask"):
    assert before[name] > 0


def test_predictions_are_those_of_their_imputations(predicted):
  rows, found = predicted
  assert found["imputed"].shape == (6, 2, 3, *rows.values.shape[1:])
  np.testing.assert_allclose(found["again"], found["log_probs"], atol=1e-5)
  np.testing.assert_allclose(np.exp(found["log_probs"]).sum(-1), 1, atol=1e-5)
  assert np.all((found["size"] >= 1 - 1e-5) & (found["size"] <= 3 + 1e-5))


def test_means_weigh_imputations_and_keep_what_is_observed(predicted):
  rows, found = predicted
  weights = np.exp(found["log_w"])[..., None, None]
  means = np.mean(np.sum(weights * found["imputed"], axis=2), axis=1)
  np.testing.assert_allclose(found["mean"], means, atol=1e-5)
  np.testing.assert_allclose(found["mean"][rows.mask], rows.values[rows.mask], atol=1e-5)
  np.testing.assert_allclose(found["filled"][rows.mask], rows.values[rows.mask], atol=1e-5)


def test_the_objective_of_the_true_model_is_bayes_rule():
  """Encoder, decoder, prior and classifier replaced by true ones: the mixture must be right.

  The latent draw of a series is white noise, which the posterior of its latent series turns into
  this. The prior is that of all classes, its density multiplied by the change of volume.
  """
  rng, (length, channels, dim, num) = np.random.default_rng(0), (6, 4, 2, 60)
  waves, labels = np.repeat(rng.normal(size=(3, 1, dim)), length, axis=1), rng.integers(0, 3, num)
  loadings, noise = rng.normal(size=(channels, dim)), 0.5
  kernel = 1 / (1 + np.subtract.outer(np.arange(length), np.arange(length)) ** 2 / 9)
  kernel += 0.1 * np.eye(length)
  latent = np.linalg.cholesky(kernel) @ rng.normal(size=(num, length, dim)) + waves[labels]
  values = latent @ loadings.T + noise * rng.normal(size=(num, length, channels))
  mask = rng.random(values.shape) < 0.4
  prior, seen_by = np.kron(kernel, np.eye(dim)), np.kron(np.eye(length), loadings)
  covariance = seen_by @ prior @ seen_by.T + noise**2 * np.eye(length * channels)
  centers = waves.reshape(3, -1)
  law = incomplete.Law(*(x.astype(np.float32) for x in (centers @ seen_by.T, covariance)))
  rows = incomplete.Rows(values.astype(np.float32), mask, labels)

  # The posterior of latent series as if all classes were one Gaussian.
  center, spread = centers.mean(0), prior + np.cov(centers.T, bias=True)
  means, factors = [], []
  for value, seen in zip(values.reshape(num, -1), mask.reshape(num, -1)):
    own = seen_by[seen]
    posterior = np.linalg.inv(np.linalg.inv(spread) + own.T @ own / noise**2)
    shift = own.T @ (value[seen] - own @ center) / noise**2
    means.append(center + posterior @ shift)
    factors.append(np.linalg.cholesky(posterior))
  means, factors = np.array(means, np.float32), np.array(factors, np.float32)
  volumes = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)

  def place(white):
    flat = white.reshape(*white.shape[:2], -1)
    return means + jnp.einsum("nij,knj->kni", factors, flat)

  def densities(points, of, precision):
    rest = points[..., None, :] - of
    return -jnp.sum((rest @ precision) * rest, axis=-1) / 2

  def log_prior(white):
    log_p = densities(place(white), centers, np.linalg.inv(prior).astype(np.float32))
    constant = np.linalg.slogdet(prior)[1] / 2 + length * dim * np.log(2 * np.pi) / 2
    return jax.nn.logsumexp(log_p, axis=-1) - np.log(3) - constant + volumes

  def decode(white, times):
    series = place(white).reshape(white.shape) @ loadings.T
    return series, jnp.full_like(series, noise)

  def classify(series, *_):
    flat, precision = series.reshape(*series.shape[:3], -1), np.linalg.inv(law.covariance)
    return jax.nn.log_softmax(densities(flat, law.means, precision))

  @jax.jit
  def answers(key):
    white = jnp.zeros((num, length, dim))
    output = algorithms.not_miwae_objective(
      key, lambda *_: (white, white + 1), decode, jnp.zeros_like, classify, log_prior, rows.values,
      rows.mask, incomplete.times_of(rows.values), None, num_latents=200,
      rate=jnp.zeros(channels), bias=jnp.full(channels, jnp.inf),
    )  # fmt: skip
    return incomplete.mixture(output.log_p_y, output.log_w)

  ours, exact = np.asarray(answers(jax.random.key(0))), incomplete.exact_answers(law, rows)[0]
  nll, best = (-np.mean(x[np.arange(num), labels]) for x in (ours, exact))
  assert abs(nll - best) < 0.01 and 0.1 < best < 1
  assert np.abs(np.exp(ours) - np.exp(exact)).max() < 0.2


@pytest.mark.parametrize(
  "change",
  [
    {"num_heads": 3},
    {"batch_size": 901},
    {"dropout_rates": (1.0,)},
    {"digit_sizes": (900, 301, 9)},
  ],
)
def test_impossible_sizes_are_refused(change):
  with pytest.raises(ValueError, match="width" if "num_heads" in change else next(iter(change))):
    validate(dataclasses.replace(LAPTOP, **change))
