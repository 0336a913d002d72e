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
  candidates, values = checked_grid(candidates, values, num_init, num_steps)
  return _optimize(key, candidates, values, acquisition_fn, num_init, num_steps)


def checked_grid(
  candidates: chex.Array, values: chex.Array, num_init: int, num_steps: int
) -> tuple[jax.Array, jax.Array]:
  """Candidates and values as arrays, or an error that names what does not fit.

  Args:
    candidates: `[m, f]`.
    values: `[m]`.
    num_init: number of first points.
    num_steps: number of later points.

  Returns:
    Candidates and values.

  Raises:
    ValueError: as `optimize_on_grid`.
  """
  candidates, values = jnp.asarray(candidates), jnp.asarray(values)
  check_arrays(candidates=(candidates, "[m, f]"), values=(values, "[m]"))
  num_candidates, total = values.shape[0], num_init + num_steps
  if num_init < 0 or num_steps < 0 or not 1 <= total <= num_candidates:
    raise ValueError(
      "num_init and num_steps must be non-negative with a sum from 1 to the number of candidates, "
      f"got {num_init} and {num_steps} for {num_candidates} candidates"
    )
  return candidates, values


@compiled_once
def _optimize(key, candidates, values, acquisition_fn, num_init, num_steps) -> SequentialResult:
  num_candidates, total = values.shape[0], num_init + num_steps
  key_init, key_steps = jax.random.split(key)
  start = first_points(key_init, num_candidates, num_init, total)

  def choose(step, carry):
    indices, chosen = carry
    x, y, mask = observations(candidates, values, indices, step)
    merit = acquisition_fn(jax.random.fold_in(key_steps, step), x, y, mask, candidates)
    check_arrays(**{"the result of acquisition_fn": (merit, f"[{num_candidates}]")})
    index = best_free(merit, chosen)
    return indices.at[step].set(index), chosen.at[index].set(True)

  carry = varying_carry(lambda carry: choose(num_init, carry), start)
  indices, _ = jax.lax.fori_loop(num_init, total, choose, carry)
  return SequentialResult(indices, best_so_far(values[indices]))


def first_points(
  key: chex.PRNGKey, num_candidates: int, num_init: int, total: int
) -> tuple[jax.Array, jax.Array]:
  """Draws the first points uniformly, without replacement.

  Args:
    key: random key; the same key draws the same points for every method.
    num_candidates: number m of candidates.
    num_init: number of first points.
    total: number of all points that will be evaluated.

  Returns:
    Candidates in the order of evaluation, int32 `[total]`, 0 in the slots still to be filled, and
    which candidates were chosen, bool `[m]`.
  """
  first = jax.random.permutation(key, num_candidates)[:num_init].astype(jnp.int32)
  indices = jnp.zeros(total, jnp.int32).at[:num_init].set(first)
  return indices, jnp.zeros(num_candidates, bool).at[first].set(True)


def observations(
  candidates: jax.Array, values: jax.Array, indices: jax.Array, count: chex.Numeric
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What was seen after some evaluations.

  Args:
    candidates: `[m, f]`.
    values: `[m]`.
    indices: candidates in the order of evaluation, int `[n]`.
    count: number of evaluations.

  Returns:
    Inputs `[n, f]` and values `[n]`, zeros in the rows still to be filled, and which are filled,
    bool `[n]`.
  """
  mask = jnp.arange(indices.shape[0]) < count
  x = jnp.where(mask[:, None], candidates[indices], 0)
  return x, jnp.where(mask, values[indices], 0), mask


def best_free(merit: jax.Array, chosen: jax.Array) -> jax.Array:
  """The candidate of the highest merit among those that were not chosen before.

  Args:
    merit: `[m]`; NaN counts as the lowest.
    chosen: bool `[m]`.

  Returns:
    Index, int32 scalar; the lowest on ties.
  """
  merit = merit.astype(jnp.promote_types(merit.dtype, jnp.float32))
  # A free candidate of merit -inf must win over candidates that were chosen before.
  merit = jnp.maximum(jnp.where(jnp.isnan(merit), -jnp.inf, merit), jnp.finfo(merit.dtype).min)
  return jnp.argmax(jnp.where(chosen, -jnp.inf, merit)).astype(jnp.int32)


def best_so_far(seen: jax.Array) -> jax.Array:
  """The highest value up to and including each.

  Args:
    seen: values in the order of evaluation, `[n]`.

  Returns:
    `[n]`; NaN where the value itself is NaN, which later ones leave out.
  """
  best = jax.lax.associative_scan(jnp.fmax, seen)
  return jnp.where(jnp.isnan(seen), seen, best)
