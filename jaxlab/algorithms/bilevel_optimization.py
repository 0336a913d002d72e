"""Bilevel optimization: parameters of a loss that are trained by what one step on it leads to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import check_at_least, check_range
from jaxlab._programs import varying_carry


class BilevelGradient(NamedTuple):
  """A gradient through a step of the inner parameters.

  Attributes:
    outer_loss: the outer loss after the step, `[]`.
    gradient: its gradient, a tree as the outer parameters.
  """

  outer_loss: chex.Array
  gradient: chex.ArrayTree


class BilevelState(NamedTuple):
  """State of `bilevel`: both parameters, the states of their optimizers, and the step, int32."""

  inner: chex.ArrayTree
  outer: chex.ArrayTree
  inner_opt_state: optax.OptState
  outer_opt_state: optax.OptState
  step: chex.Array


class BilevelInfo(NamedTuple):
  """What happened in a step of `bilevel`.

  Attributes:
    inner_loss: before the step of the inner parameters, with the new outer ones, `[]`.
    outer_loss: after the virtual step; 0 on steps that keep the outer parameters, `[]`.
    outer_grad_norm: norm of the outer gradient; 0 on steps that keep the outer parameters, `[]`.
  """

  inner_loss: chex.Array
  outer_loss: chex.Array
  outer_grad_norm: chex.Array


class Bilevel(NamedTuple):
  """`init(inner_params, outer_params)` and `update(state, inner_batch, outer_batch)`."""

  init: Callable[[chex.ArrayTree, chex.ArrayTree], BilevelState]
  update: Callable[[BilevelState, Any, Any], tuple[BilevelState, BilevelInfo]]


def virtual_step_gradient(
  inner_loss_fn: Callable[[chex.ArrayTree, chex.ArrayTree], chex.Array],
  outer_loss_fn: Callable[[chex.ArrayTree], chex.Array],
  inner_params: chex.ArrayTree,
  outer_params: chex.ArrayTree,
  *,
  inner_learning_rate: chex.Numeric,
) -> BilevelGradient:
  """Gradient of a loss after one step of gradient descent on another loss.

  If the outer parameters weigh the terms of the inner loss, a term gains weight where its gradient
  points in the direction of the outer loss's gradient.

  Args:
    inner_loss_fn: `(inner_params, outer_params) -> loss []`, what is descended.
    outer_loss_fn: `(inner_params) -> loss []`, for example that of held-out data.
    inner_params: where the step begins.
    outer_params: parameters of the inner loss, such as those of weights of examples.
    inner_learning_rate: of the step, > 0.

  Returns:
    A `BilevelGradient` of `outer_loss_fn(inner_params - inner_learning_rate * g)`, with g the
    gradient of the inner loss, by the outer parameters. Second derivatives of the inner loss are
    exact.

  Raises:
    ValueError: if `inner_learning_rate` <= 0.

  Reference: Franceschi et al., Bilevel Programming for Hyperparameter Optimization and
  Meta-Learning, ICML 2018, section 3, https://arxiv.org/abs/1806.04910; Hu et al., Less or More
  From Teacher, ICLR 2024, https://arxiv.org/abs/2312.15112.
  """
  check_range("inner_learning_rate", inner_learning_rate, "(0, inf)")

  def after_step(outer_params):
    slopes = jax.grad(inner_loss_fn)(inner_params, outer_params)
    return outer_loss_fn(jax.tree.map(step, inner_params, slopes))

  def step(param, slope):
    return (param - inner_learning_rate * slope).astype(slope.dtype)

  return BilevelGradient(*jax.value_and_grad(after_step)(outer_params))


def bilevel(
  inner_loss_fn: Callable[[chex.ArrayTree, chex.ArrayTree, Any], chex.Array],
  outer_loss_fn: Callable[[chex.ArrayTree, Any], chex.Array],
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  inner_learning_rate: chex.Numeric,
  outer_every: int = 1,
) -> Bilevel:
  """Trains a model, and in turn the parameters of its loss by held-out data.

  An update first steps the outer parameters by `virtual_step_gradient`, then the inner ones with
  the new outer ones and their own optimizer.

  Args:
    inner_loss_fn: `(inner_params, outer_params, batch) -> loss []`. What the outer parameters see
      of the model belongs into `jax.lax.stop_gradient`, as in `losses.trilateral_features`.
    outer_loss_fn: `(inner_params, batch) -> loss []`.
    inner_optimizer: steps the inner parameters.
    outer_optimizer: steps the outer parameters.
    inner_learning_rate: of the virtual step, which is plain gradient descent whatever the inner
      optimizer is; > 0.
    outer_every: the outer parameters are updated on steps 0, outer_every, 2 outer_every, ...

  Returns:
    A `Bilevel`. `update` returns a `BilevelState` and a `BilevelInfo`.

  Raises:
    ValueError: if `inner_learning_rate` <= 0 or `outer_every` < 1.

  Reference: Hu et al., Less or More From Teacher, ICLR 2024, section 3,
  https://arxiv.org/abs/2312.15112. The authors' code computes the ratio without gradient; this is
  the text's update.
  """
  check_range("inner_learning_rate", inner_learning_rate, "(0, inf)")
  check_at_least(1, outer_every=outer_every)

  def init(inner_params, outer_params):
    inner, outer = jax.tree.map(jnp.asarray, (inner_params, outer_params))
    return BilevelState(
      inner, outer, inner_optimizer.init(inner), outer_optimizer.init(outer), jnp.int32(0)
    )

  def update(state, inner_batch, outer_batch):
    def step_outer(carry):
      outer, opt_state, _, _ = carry
      found = virtual_step_gradient(
        lambda inner, outer: inner_loss_fn(inner, outer, inner_batch),
        lambda inner: outer_loss_fn(inner, outer_batch),
        state.inner,
        outer,
        inner_learning_rate=inner_learning_rate,
      )
      changes, opt_state = outer_optimizer.update(found.gradient, opt_state, outer)
      norm = optax.tree.norm(found.gradient).astype(jnp.float32)
      outer = optax.apply_updates(outer, changes)
      return outer, opt_state, found.outer_loss.astype(jnp.float32), norm

    carry = (state.outer, state.outer_opt_state, jnp.float32(0), jnp.float32(0))
    if outer_every == 1:
      carry = step_outer(carry)
    else:
      carry = varying_carry(step_outer, carry)
      due = state.step % outer_every == 0
      carry = jax.lax.cond(due, step_outer, lambda carry: carry, carry)
    outer, outer_opt_state, outer_loss, outer_grad_norm = carry
    inner_loss, slopes = jax.value_and_grad(inner_loss_fn)(state.inner, outer, inner_batch)
    changes, inner_opt_state = inner_optimizer.update(slopes, state.inner_opt_state, state.inner)
    inner = optax.apply_updates(state.inner, changes)
    state = BilevelState(inner, outer, inner_opt_state, outer_opt_state, state.step + 1)
    return state, BilevelInfo(inner_loss, outer_loss, outer_grad_norm)

  return Bilevel(init, update)
