import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import models

B, T, C, D = 2, 6, 3, 2
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(B, T, C)).astype(np.float32)
LATENTS = RNG.normal(size=(4, B, T, D)).astype(np.float32)
TIMES = np.broadcast_to(np.arange(T, dtype=np.float32), (B, T))
make_kernel = jax.jit(models.cauchy_kernel, static_argnums=0)
SIZES = {"width": 4, "num_layers": 1, "num_heads": 2}


@functools.cache
def network(name):
  """A network, its parameters and its call as one program."""
  module, arguments = {
    "encoder": (models.SeriesEncoder(D, **SIZES), (VALUES, TIMES)),
    "decoder": (models.SeriesDecoder(C, **SIZES), (LATENTS, TIMES)),
    "mask": (models.MissingnessModel(4), (LATENTS,)),
    "max": (models.SeriesClassifier(3, **SIZES), (LATENTS, TIMES, np.array([3, 6]))),
    "mean": (
      models.SeriesClassifier(3, **SIZES, pooling="mean"),
      (LATENTS, TIMES, np.array([3, 6])),
    ),
  }[name]

  @jax.jit
  def run(seed, *arguments):
    variables = module.init(jax.random.key(seed), *arguments)
    return module.apply(variables, *arguments)

  return run, arguments


def apply(name, *arguments):
  run, own = network(name)
  return jax.tree.map(np.asarray, run(0, *(arguments or own)))


def test_kernel():
  kernel = np.asarray(make_kernel(T))
  i, j = np.indices((T, T))
  expected = 1.005 / (1 + ((i - j) / 7.0) ** 2) + 1e-3 * (i == j)
  np.testing.assert_allclose(kernel, expected, rtol=1e-6)
  np.testing.assert_array_equal(kernel, kernel.T)
  assert np.linalg.eigvalsh(kernel.astype(np.float64)).min() > 0
  for k in range(-T + 1, T):
    assert np.ptp(np.diagonal(kernel, k)) == 0


def test_prior_matches_scipy():
  kernel = np.asarray(make_kernel(T, lengthscale=2.0))
  log_prob = jax.jit(models.gp_prior_log_prob)(LATENTS, kernel)
  normal = stats.multivariate_normal(np.zeros(T), kernel.astype(np.float64))
  expected = normal.logpdf(LATENTS.swapaxes(-1, -2)).sum(-1)
  np.testing.assert_allclose(log_prob, expected, rtol=1e-4)


def test_time_encoding_matches_a_loop():
  encode = jax.jit(functools.partial(models.time_encoding, width=5))
  times = np.stack([np.arange(T), np.arange(T) ** 2 / 3.0]).astype(np.float32)
  encoded = encode(times)
  scaled = times / times.max()
  for i in range(5):
    angle = scaled / 100 ** (i / 4)
    expected = np.sin(angle) if i % 2 == 0 else np.cos(angle)
    np.testing.assert_allclose(encoded[..., i], expected, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(encode(0 * times))[0, 0], [0, 1, 0, 1, 0])


@pytest.mark.parametrize(
  "name, leading, width, least",
  [
    ("encoder", (B,), D, 1e-4),
    ("decoder", (4, B), C, 1e-3),
  ],
)
def test_distributions_of_steps(name, leading, width, least):
  mean, std = apply(name)
  assert mean.shape == std.shape == (*leading, T, width)
  assert (std >= least).all()
  # Causal but for the convolution: eight steps see four later ones, three steps one.
  _, (first, times) = network(name)
  changed = first.copy()
  changed[..., -1, :] += 1
  other, _ = apply(name, changed, times)
  seen = 4 if name == "encoder" else 1
  np.testing.assert_allclose(other[..., : T - 1 - seen, :], mean[..., : T - 1 - seen, :], atol=1e-6)
  assert np.abs(other[..., -1, :] - mean[..., -1, :]).max() > 1e-4


def test_draws_are_independent():
  mean, _ = apply("decoder")
  changed = LATENTS.copy()
  changed[2, 1] += 1
  other, _ = apply("decoder", changed, TIMES)
  differs = np.abs(other - mean).max((-2, -1)) > 1e-5
  np.testing.assert_array_equal(np.argwhere(differs), [[2, 1]])


def test_log_odds_are_bounded_and_by_step():
  logits = apply("mask")
  assert logits.shape == LATENTS.shape and (np.abs(logits) < 1).all()
  changed = LATENTS.copy()
  changed[..., 2, :] += 1
  differs = np.abs(apply("mask", changed) - logits).max((0, 1, 3)) > 0
  np.testing.assert_array_equal(differs, np.arange(T) == 2)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_classifier_ignores_padding(pooling):
  log_probs = apply(pooling)
  assert log_probs.shape == (4, B, 3)
  np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
  padded = LATENTS.copy()
  padded[:, 0, 3:] = np.nan
  lengths = np.array([3, 6])
  np.testing.assert_array_equal(apply(pooling, padded, TIMES, lengths), log_probs)
  changed = LATENTS.copy()
  changed[:, :, 2] += 1
  assert (np.abs(apply(pooling, changed, TIMES, lengths) - log_probs) > 1e-6).any(-1).all()


def test_errors():
  for name, value in (("scale", 0.0), ("lengthscale", -1.0), ("jitter", -1e-3)):
    with pytest.raises(ValueError, match=f"{name} must lie in .*, got {value}"):
      models.cauchy_kernel(T, **{name: value})
  with pytest.raises(ValueError, match="width must be at least 2, got 1"):
    models.time_encoding(TIMES, width=1)
  with pytest.raises(ValueError, match=r"kernel must have shape \[T, T\]"):
    models.gp_prior_log_prob(LATENTS, np.ones((T, T + 1)))
  with pytest.raises(ValueError, match="pooling must be one of 'max', 'mean', got 'sum'"):
    jax.eval_shape(
      models.SeriesClassifier(3, **SIZES, pooling="sum").init, jax.random.key(0), VALUES, TIMES
    )
  with pytest.raises(ValueError, match="num_heads 3 does not divide hidden_size 4"):
    module = models.SeriesEncoder(D, 4, 1, 3)
    jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(VALUES), TIMES)
