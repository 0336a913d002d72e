import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from jaxlab import metrics, uncertainty

RNG = np.random.default_rng(0)
LOGITS = (4 * RNG.normal(size=(200, 5))).astype(np.float32)
LABELS = np.where(RNG.random(200) < 0.5, LOGITS.argmax(1), RNG.integers(0, 5, 200))
fit = jax.jit(uncertainty.fit_temperature, static_argnames="num_steps")


def mean_nll(logits, labels, temperature):
  scores = np.asarray(logits, np.float64) / temperature
  top = scores.max(1, keepdims=True)
  normalizer = np.log(np.exp(scores - top).sum(1)) + top[:, 0]
  return np.mean(normalizer - scores[np.arange(len(labels)), labels])


def test_temperature_matches_scipys_optimum():
  best = minimize_scalar(
    lambda log_t: mean_nll(LOGITS, LABELS, np.exp(log_t)),
    bounds=(-4, 4),
    method="bounded",
    options={"xatol": 1e-9},
  )
  temperature = fit(LOGITS, LABELS)
  np.testing.assert_allclose(temperature, np.exp(best.x), rtol=1e-3)
  here = mean_nll(LOGITS, LABELS, float(temperature))
  for other in (1.0, 1.01 * float(temperature), float(temperature) / 1.01):
    assert here <= mean_nll(LOGITS, LABELS, other)


def test_temperature_scales_with_the_logits():
  one = fit(LOGITS, LABELS)
  for factor in (0.1, 7.0):
    np.testing.assert_allclose(fit(factor * LOGITS, LABELS), factor * one, rtol=1e-4)
  shifted = LOGITS + RNG.normal(size=(200, 1)).astype(np.float32)
  np.testing.assert_allclose(fit(shifted, LABELS), one, rtol=1e-4)


def test_predictions_without_an_inner_optimum_get_the_bounds():
  right, wrong = LOGITS.argmax(1), LOGITS.argmin(1)
  np.testing.assert_allclose(fit(LOGITS, right), 0.01, rtol=1e-6)
  np.testing.assert_allclose(fit(LOGITS, wrong), 100.0, rtol=1e-6)
  bounds = dict(min_temperature=0.5, max_temperature=3.0)
  assert fit(LOGITS, right, **bounds) == 0.5 and fit(LOGITS, wrong, **bounds) == 3.0
  # With wide margins the loss underflows to 0 long before the bound.
  np.testing.assert_allclose(fit(1e4 * np.eye(5), np.arange(5)), 0.01, rtol=1e-6)
  assert fit(LOGITS[:1], right[:1], **bounds) == 0.5
  assert fit(np.zeros((3, 5)), LABELS[:3], **bounds) == 0.5


def test_extreme_missing_and_masked_logits():
  # With a wide margin that is sometimes wrong, the largest temperature is best.
  extreme = np.tile(np.array([[1e4, -1e4]], np.float32), (4, 1))
  assert fit(extreme, np.array([0, 0, 0, 1])) == 100.0
  assert np.isnan(fit(np.where(np.arange(5) == 0, np.nan, LOGITS), LABELS))
  masked = np.concatenate([LOGITS, np.full((200, 1), -np.inf, np.float32)], 1)
  np.testing.assert_allclose(fit(masked, LABELS), fit(LOGITS, LABELS), rtol=1e-5)
  for label in (-1, 5):
    assert np.isnan(fit(LOGITS, np.where(np.arange(200) == 9, label, LABELS)))


def test_masked_classes_stay_masked_at_every_temperature():
  logits = np.where(np.arange(5) == 2, -np.inf, LOGITS)

  def entropy(temperature):
    scaled = uncertainty.apply_temperature(logits, temperature=temperature)
    return jnp.mean(jax.nn.logsumexp(scaled, axis=-1)), scaled

  fn = jax.jit(jax.value_and_grad(entropy, has_aux=True))
  for temperature in (2.0, np.inf):
    (_, scaled), gradient = fn(temperature)
    np.testing.assert_array_equal(scaled[:, 2], -np.inf)
    np.testing.assert_allclose(np.delete(scaled, 2, 1), np.delete(LOGITS, 2, 1) / temperature)
    assert np.isfinite(gradient)


def test_half_precision_and_vmap():
  halves = jnp.asarray(LOGITS, jnp.bfloat16)
  temperature = fit(halves, LABELS)
  assert temperature.dtype == jnp.float32
  np.testing.assert_allclose(temperature, fit(jnp.float32(halves), LABELS), rtol=1e-5)
  parts = LOGITS.reshape(2, 100, 5), LABELS.reshape(2, 100)
  mapped = jax.jit(jax.vmap(uncertainty.fit_temperature))(*parts)
  np.testing.assert_allclose(mapped, [fit(*part) for part in zip(*parts)], rtol=1e-4)


def test_no_gradient_flows_into_the_fit():
  grad = jax.jit(jax.grad(uncertainty.fit_temperature))(LOGITS, LABELS)
  np.testing.assert_array_equal(grad, 0)


def test_apply_temperature():
  one = uncertainty.apply_temperature(LOGITS, temperature=2.0)
  np.testing.assert_allclose(one, LOGITS / 2, rtol=1e-6)
  rows = np.linspace(0.5, 2, 200).astype(np.float32)
  per_row = jax.jit(uncertainty.apply_temperature)(LOGITS, temperature=rows)
  np.testing.assert_allclose(per_row, LOGITS / rows[:, None], rtol=1e-6)
  np.testing.assert_array_equal(per_row.argmax(1), LOGITS.argmax(1))
  calibrated = uncertainty.apply_temperature(LOGITS, temperature=fit(LOGITS, LABELS))
  before, after = (metrics.negative_log_likelihood(z, LABELS).mean() for z in (LOGITS, calibrated))
  assert after < before


def test_fit_compiles_once_and_traces_where_arrays_vary_over_devices(caplog):
  uncertainty.fit_temperature(LOGITS, LABELS)
  with jax.log_compiles():
    uncertainty.fit_temperature(2 * LOGITS, LABELS)
  assert not [record for record in caplog.records if "Compiling" in record.message]
  mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  over = jax.sharding.PartitionSpec("d")
  local = jax.shard_map(
    lambda *data: uncertainty.fit_temperature(*data)[None], mesh=mesh, in_specs=over, out_specs=over
  )
  with jax.numpy_rank_promotion("raise"):
    assert jax.eval_shape(local, LOGITS, LABELS).shape == (2,)


def test_errors():
  with pytest.raises(ValueError, match=r"logits must not be empty, got shape \[0, 5\]"):
    uncertainty.fit_temperature(LOGITS[:0], LABELS[:0])
  with pytest.raises(ValueError, match="max_temperature must lie in .2.0, inf., got 2.0"):
    uncertainty.fit_temperature(LOGITS, LABELS, min_temperature=2.0, max_temperature=2.0)
  with pytest.raises(ValueError, match="min_temperature"):
    uncertainty.fit_temperature(LOGITS, LABELS, min_temperature=0.0)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    uncertainty.fit_temperature(LOGITS, LABELS, num_steps=0)
  with pytest.raises(ValueError, match="labels"):
    uncertainty.fit_temperature(LOGITS, LABELS + 1)
  with pytest.raises(TypeError, match="labels must be of type int, got float"):
    uncertainty.fit_temperature(LOGITS, LABELS / 2)
  with pytest.raises(ValueError, match="temperature must lie in .0, inf., got 0"):
    uncertainty.apply_temperature(LOGITS, temperature=0)
  with pytest.raises(ValueError, match="temperature must have shape .* \\[200\\], got"):
    uncertainty.apply_temperature(LOGITS, temperature=np.ones(5))
