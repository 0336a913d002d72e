import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.losses.semi_supervised import fixmatch_loss

WEAK = jnp.array([[9.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0], [4.0, 4.0, -9.0]])
STRONG = jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [0.5, 0.0, -1.0], [2.0, 0.0, 1.0]])


def test_confident_rows_get_the_cross_entropy_to_the_guess():
  result = fixmatch_loss(STRONG, WEAK)
  log_probs = np.asarray(jax.nn.log_softmax(STRONG))
  np.testing.assert_allclose(result, [-log_probs[0, 0], 0.0, -log_probs[2, 2], 0.0], rtol=1e-6)


def test_ties_go_to_the_first_class_and_the_threshold_applies():
  result = jax.jit(fixmatch_loss)(STRONG, WEAK, threshold=0.4)
  log_probs = np.asarray(jax.nn.log_softmax(STRONG))
  np.testing.assert_allclose(result, -log_probs[[0, 1, 2, 3], [0, 1, 2, 0]], rtol=1e-6)


def test_no_gradient_reaches_the_weak_view():
  strong, weak = jax.grad(lambda *z: fixmatch_loss(*z).sum(), argnums=(0, 1))(STRONG, WEAK)
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
  np.testing.assert_allclose(result[0], fixmatch_loss(STRONG, WEAK), rtol=1e-2)
  with pytest.raises(ValueError, match="threshold"):
    fixmatch_loss(STRONG, WEAK, threshold=1.5)
  with pytest.raises(ValueError, match="weak_logits must have shape"):
    fixmatch_loss(STRONG, WEAK[:2])
