import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.algorithms.early_exit import alternate_phases


def test_phases_alternate_and_start_with_the_gates():
  steps = np.arange(12)
  want = [(step // 3) % 2 for step in steps]
  np.testing.assert_array_equal(jax.jit(lambda s: alternate_phases(s, period=3))(steps), want)
  assert alternate_phases(0) == 0 and alternate_phases(200) == 1 and alternate_phases(400) == 0
  assert alternate_phases(jnp.int32(7)).dtype == jnp.int32


def test_period_below_one_raises():
  with pytest.raises(ValueError, match="period.*0"):
    alternate_phases(3, period=0)
