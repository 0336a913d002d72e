import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

fixmatch_loss = jax.jit(losses.fixmatch_loss)
pseudo_label_mix_weight = jax.jit(losses.pseudo_label_mix_weight)

WEAK = np.float32([[9.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0], [4.0, 4.0, -9.0]])
STRONG = np.float32([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [0.5, 0.0, -1.0], [2.0, 0.0, 1.0]])
LOG_PROBS = STRONG - np.log(np.sum(np.exp(np.float64(STRONG)), axis=-1, keepdims=True))


def test_confident_rows_get_the_cross_entropy_to_the_guess():
  result = fixmatch_loss(STRONG, WEAK)
  np.testing.assert_allclose(result, [-LOG_PROBS[0, 0], 0.0, -LOG_PROBS[2, 2], 0.0], rtol=1e-6)


def test_ties_go_to_the_first_class_and_the_threshold_applies():
  result = fixmatch_loss(STRONG, WEAK, threshold=0.4)
  np.testing.assert_allclose(result, -LOG_PROBS[[0, 1, 2, 3], [0, 1, 2, 0]], rtol=1e-6)


def test_nan_stays_in_its_row_and_masked_classes_do_not_reach_other_rows():
  row = np.arange(4)[:, None] == 1
  for pair in ((np.where(row, np.nan, STRONG), WEAK), (STRONG, np.where(row, np.nan, WEAK))):
    np.testing.assert_array_equal(np.isnan(fixmatch_loss(*pair)), row[:, 0])
  # The class that an uncertain weak view guesses may be masked in the strong view.
  masked = np.where(np.arange(3) == 1, -np.inf, STRONG)
  values, slope = jax.jit(jax.value_and_grad(lambda z: fixmatch_loss(z, WEAK)[1]))(masked)
  assert values == 0 and not np.any(slope)


def test_no_gradient_reaches_the_weak_view():
  slope = jax.jit(jax.grad(lambda *z: fixmatch_loss(*z).sum(), argnums=(0, 1)))
  strong, weak = map(np.asarray, slope(STRONG, WEAK))
  assert not np.any(weak)
  np.testing.assert_array_equal(np.any(strong, axis=-1), [True, False, True, False])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_are_finite(scale):
  value, gradient = jax.jit(
    jax.value_and_grad(lambda z: fixmatch_loss(z * scale, z * scale).sum())
  )(STRONG)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_half_precision_leading_axes_and_errors():
  result = fixmatch_loss(STRONG[None].astype(jnp.bfloat16), WEAK[None].astype(jnp.bfloat16))
  assert result.shape == (1, 4) and result.dtype == jnp.float32
  np.testing.assert_allclose(np.asarray(result)[0], fixmatch_loss(STRONG, WEAK), rtol=1e-2)
  with pytest.raises(ValueError, match="threshold"):
    losses.fixmatch_loss(STRONG, WEAK, threshold=1.5)
  with pytest.raises(ValueError, match="weak_logits must have shape"):
    fixmatch_loss(STRONG, WEAK[:2])


def test_pseudo_label_mix_weight():
  prob = np.array([0.96, 0.94, 0.8, 0.8, 0.3, np.nan], np.float32)
  ratio = np.array([0.5, 0.9, 0.9, 0.7, 1.0, 0.9], np.float32)
  constant = pseudo_label_mix_weight(prob, ratio)
  np.testing.assert_array_equal(constant, [1, 0, 0, 0, 0, np.nan])
  looser = pseudo_label_mix_weight(prob, ratio, cutoff=0.95, mix_cutoff=0.2)
  np.testing.assert_array_equal(looser, [1, 1, 1, 1, 1, np.nan])
  np.testing.assert_array_equal(
    pseudo_label_mix_weight(prob[:4], np.float32([0.5, 0.9, 0.15, 0.1]), mix_cutoff=0.2),
    [1, 1, 0, 0],
  )
  unknown = pseudo_label_mix_weight(prob, np.where(np.arange(6) == 2, np.float32(np.nan), ratio))
  np.testing.assert_array_equal(np.isnan(unknown), [0, 0, 1, 0, 0, 1])
  with pytest.raises(ValueError, match="mix_cutoff"):
    losses.pseudo_label_mix_weight(ratio, ratio, mix_cutoff=2.0)
