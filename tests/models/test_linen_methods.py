import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models.linen_methods import with_params


class Scale(nn.Module):
  factor: float

  def setup(self):
    self.weight = self.param("weight", nn.initializers.ones, ())

  def __call__(self, x, y):
    return self.factor * self.weight * x + y


def test_a_method_carries_its_arrays():
  params = {"weight": jnp.array(3.0)}
  ours, equal, other = (with_params(Scale(f), "__call__", params, 5.0) for f in (2.0, 2.0, 4.0))
  call = jax.jit(lambda fn, y: fn(y))
  assert call(ours, 1.0) == 31 and call(other, 1.0) == 61
  np.testing.assert_array_equal(jax.tree.leaves(ours), [3.0, 5.0])
  # One program serves all arrays of equal modules.
  assert jax.tree.structure(ours) == jax.tree.structure(equal) != jax.tree.structure(other)
