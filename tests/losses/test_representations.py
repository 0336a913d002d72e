"""The distance to a representation that does not move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses


def test_distance_is_a_sum_of_squares_and_the_reference_stays():
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)

  @jax.jit
  def both(ours, theirs):
    value = losses.representation_distance_loss(ours, theirs)
    total = lambda *x: jnp.sum(losses.representation_distance_loss(*x))  # noqa: E731
    return value, jax.grad(total, argnums=(0, 1))(ours, theirs)

  value, (moves, stays) = both(ours, theirs)
  np.testing.assert_allclose(value, ((ours - theirs) ** 2).sum(-1), rtol=1e-5)
  np.testing.assert_allclose(moves, 2 * (ours - theirs), rtol=1e-5)
  assert not stays.any()


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r"reference must have shape .* d = 4, got \[3, 5\]"):
    losses.representation_distance_loss(np.ones((3, 4)), np.ones((3, 5)))
