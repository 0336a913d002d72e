"""Schedule of the joint training of exits and gates."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_at_least


def alternate_phases(step: chex.Numeric, *, period: int = 200) -> jax.Array:
  """Whether a step trains the gates or the classifiers.

  Each part learns while the other one is frozen, so that a gate is trained for a fixed classifier.

  Args:
    step: number of the update, from 0; may be traced or an array.
    period: updates per phase.

  Returns:
    0 for the gates, which begin, and 1 for the classifiers; int32, in the shape of `step`.

  Raises:
    ValueError: if `period` < 1.

  Reference: Chataoui et al., Jointly-Learned Exit and Inference for a Dynamic Neural Network,
  ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_at_least(1, period=period)
  return (jnp.asarray(step) // period % 2).astype(jnp.int32)
