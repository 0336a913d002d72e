"""How much of the difference between two models a third one makes up."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays


def gap_closed(value: chex.Array, base: chex.Array, target: chex.Array) -> jax.Array:
  """Share of the gap between a base and a target that a value covers.

  With the scores of a student, its weak supervisor and a ceiling trained on the truth, this is the
  performance gap recovered of weak-to-strong generalization.

  Args:
    value: scores of the models in between, `[...]`.
    base: scores of where they started, `[...]`.
    target: scores of where they were to get, `[...]`.

  Returns:
    `(value - base) / (target - base)`, `[...]`, in float32 or wider: negative below the base, more
    than 1 beyond the target; 0, without gradient, where target and base are equal.

  Reference: Gudibande et al., The False Promise of Imitating Proprietary LLMs, 2023,
  https://arxiv.org/abs/2305.15717; Burns et al., Weak-to-Strong Generalization, ICML 2024, section
  3, https://arxiv.org/abs/2312.09390.
  """
  check_arrays(value=(value, "[...]"), base=(base, "[...]"), target=(target, "[...]"))
  value, base, target = as_accumulator(value, base, target)
  none = target == base
  return jnp.where(none, 0.0, value - base) / jnp.where(none, 1.0, target - base)
