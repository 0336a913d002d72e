"""Sequential optimization of a function on a finite set of candidates."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays
from jaxlab._programs import compiled_once, varying_carry


class SequentialResult(NamedTuple):
  """The course of a sequential optimization.

  Attributes:
    indices: candidates in the order in which they were evaluated, int32
      `[num_init + num_steps]`, all different.
    best: highest value seen up to and including each evaluation, `[num_init + num_steps]`; NaN
      where the evaluation itself gives NaN.
  """

  indices: chex.Array
  best: chex.Array


def optimize_on_grid(
  key: chex.PRNGKey,
  candidates: chex.Array,
  values: chex.Array,
  acquisition_fn: Callable[..., chex.Array],
  *,
  num_init: int = 1,
  num_steps: int = 15,
) -> SequentialResult:
  """Maximizes a function with known values on a grid, one evaluation at a time.

  This is Bayesian optimization with precomputed function values, for comparing acquisition
  functions and their models. `vmap` over `key` and `values` runs many functions as one program.
  Shapes are static: observations fill a buffer, and a mask marks the filled rows.

  Args:
    key: random key of the first points and of the acquisition function.
    candidates: points that may be evaluated, `[m, f]`.
    values: value of the function at each, `[m]`; higher is better.
    acquisition_fn: `acquisition_fn(key, x[n, f], y[n], mask[n], candidates[m, f]) -> [m]`, the
      merit of each candidate given the observations (n = num_init + num_steps rows in the order of
      evaluation; rows where `mask` is False are zeros still to be filled, so the context is the
      first `mask.sum()` rows). NaN counts as the lowest merit.
    num_init: first points, drawn uniformly without replacement.
    num_steps: points chosen by the acquisition function after them; a candidate is chosen at most
      once, and ties go to the lowest index.

  Returns:
    `SequentialResult(indices, best)`.

  Raises:
    ValueError: if `num_init` or `num_steps` is negative, both are 0, or their sum exceeds m; if
      the shapes do not agree.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510; Jones et al., Efficient Global Optimization, 1998,
  https://doi.org/10.1023/A:1008306431147.
  """
  candidates, values = jnp.asarray(candidates), jnp.asarray(values)
  check_arrays(candidates=(candidates, "[m, f]"), values=(values, "[m]"))
  num_candidates, total = values.shape[0], num_init + num_steps
  if num_init < 0 or num_steps < 0 or not 1 <= total <= num_candidates:
    raise ValueError(
      "num_init and num_steps must be non-negative with a sum from 1 to the number of candidates, "
      f"got {num_init} and {num_steps} for {num_candidates} candidates"
    )
  return _optimize(key, candidates, values, acquisition_fn, num_init, num_steps)


@compiled_once
def _optimize(key, candidates, values, acquisition_fn, num_init, num_steps) -> SequentialResult:
  num_candidates, total = values.shape[0], num_init + num_steps
  key_init, key_steps = jax.random.split(key)
  first = jax.random.permutation(key_init, num_candidates)[:num_init].astype(jnp.int32)
  slots = jnp.arange(total)
  indices = jnp.zeros(total, jnp.int32).at[:num_init].set(first)
  chosen = jnp.zeros(num_candidates, bool).at[first].set(True)

  def choose(step, carry):
    indices, chosen = carry
    mask = slots < step
    x = jnp.where(mask[:, None], candidates[indices], 0)
    y = jnp.where(mask, values[indices], 0)
    merit = acquisition_fn(jax.random.fold_in(key_steps, step), x, y, mask, candidates)
    check_arrays(**{"the result of acquisition_fn": (merit, f"[{num_candidates}]")})
    merit = merit.astype(jnp.promote_types(merit.dtype, jnp.float32))
    # A free candidate of merit -inf must win over candidates that were chosen before.
    merit = jnp.maximum(jnp.where(jnp.isnan(merit), -jnp.inf, merit), jnp.finfo(merit.dtype).min)
    index = jnp.argmax(jnp.where(chosen, -jnp.inf, merit)).astype(jnp.int32)
    return indices.at[step].set(index), chosen.at[index].set(True)

  carry = varying_carry(lambda carry: choose(num_init, carry), (indices, chosen))
  indices, _ = jax.lax.fori_loop(num_init, total, choose, carry)
  seen = values[indices]
  best = jax.lax.associative_scan(jnp.fmax, seen)  # Leaves out NaN.
  return SequentialResult(indices, jnp.where(jnp.isnan(seen), seen, best))
