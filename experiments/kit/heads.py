"""Heads on few labeled rows, whose settings cross-validation on these rows chooses."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxlab import models

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Headed(nn.Module):
  """A network whose logits are features, with a linear layer on top, to be trained end to end."""

  encoder: nn.Module
  num_classes: int

  @nn.compact
  def __call__(self, inputs: chex.Array, *, train: bool = False) -> models.ModelOutput:
    """Classifies."""
    features = self.encoder(inputs, train=train).logits
    return models.ModelOutput(features, nn.Dense(self.num_classes)(features))


def first_rows(total: int, count: chex.Numeric) -> jax.Array:
  """1 for the first rows and 0 for the others, `[total]`."""
  return (jnp.arange(total) < count).astype(jnp.float32)


def averaged(rows: chex.Array, used: chex.Array) -> jax.Array:
  """Rows `[n, p]` whose mean products are those of the used ones: others are 0, these are scaled.

  What sees rows through mean products alone then has one shape for all numbers of rows.
  """
  return rows * (used * jnp.sqrt(len(used) / jnp.sum(used)))[:, None]


def select(
  fit: Callable[[jax.Array, jax.Array], Any],
  score: Callable[[Any], jax.Array],
  weights: chex.Array,
  folds: chex.Array,
  settings: Sequence[float],
  *,
  num_folds: int,
) -> tuple[Any, jax.Array]:
  """Fits with the setting whose held-out errors are smallest, the first on ties.

  Args:
    fit: `(weights [n], setting) -> parameters`; rows of weight 0 must not count.
    score: `parameters -> errors [n]` of all rows.
    weights: of the rows, `[n]`.
    folds: in which fold each row is held out, `[n]`.
    settings: to choose from.
    num_folds: number of folds.

  Returns:
    The parameters of a fit on all rows, and the number of its setting.
  """

  def held_out(setting, fold):
    errors = score(fit(weights * (folds != fold), setting))
    return jnp.sum(jnp.where(folds == fold, weights * errors, 0.0))

  settings = jnp.array(settings)
  over_folds = jax.vmap(held_out, in_axes=(None, 0))
  errors = jax.vmap(over_folds, in_axes=(0, None))(settings, jnp.arange(num_folds))
  best = jnp.argmin(jnp.nan_to_num(jnp.sum(errors, axis=1), nan=jnp.inf))
  return fit(weights, settings[best]), best


def descend(objective: Callable[[Any], jax.Array], start: Any, num_steps: int, rate: float) -> Any:
  """Minimizes by Adam, its rate falling to 0 as a cosine."""
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(objective)(params), state)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)
  return params


def penalized(
  logits,
  start,
  penalized_by,
  inputs,
  labels,
  weights,
  folds,
  strengths,
  *,
  num_folds,
  num_steps,
  rate,
):
  """`inputs -> logits` of the least weighted cross-entropy at the best strength C.

  Args:
    logits: `(parameters, inputs) -> logits [n, k]`.
    start: parameters.
    penalized_by: `parameters -> array`, whose squared norm over 2 C is added.
    inputs: `[n, ...]`.
    labels: classes `[n]`.
    weights: of the rows, `[n]`.
    folds: of the rows, `[n]`.
    strengths: C to choose from.
    num_folds: number of folds.
    num_steps: of `descend`.
    rate: of `descend`.
  """
  score = lambda params: cross_entropy(logits(params, inputs), labels)  # noqa: E731

  def fit(weights, strength):
    def objective(params):
      penalty = jnp.sum(penalized_by(params) ** 2) / (2 * strength)
      return (jnp.sum(weights * score(params)) + penalty) / jnp.sum(weights)

    return descend(objective, start, num_steps, rate)

  params, _ = select(fit, score, weights, folds, strengths, num_folds=num_folds)
  return lambda inputs: logits(params, inputs)


def logistic_regression(
  features: chex.Array,
  labels: chex.Array,
  weights: chex.Array,
  folds: chex.Array,
  *,
  num_classes: int,
  strengths: Sequence[float],
  num_folds: int,
  num_steps: int,
) -> Callable[[jax.Array], jax.Array]:
  """`features -> logits` of a linear head at the best strength C; as of `penalized`."""
  start = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
  logits = lambda params, features: features @ params[0] + params[1]  # noqa: E731
  rows = features, labels, weights, folds
  options = {"num_folds": num_folds, "num_steps": num_steps, "rate": 0.1}
  return penalized(logits, start, lambda params: params[0], *rows, strengths, **options)


def ridge(
  inputs: chex.Array,
  targets: chex.Array,
  weights: chex.Array,
  folds: chex.Array,
  penalties: Sequence[float],
  *,
  num_folds: int,
) -> tuple[jax.Array, jax.Array]:
  """Ridge regression without intercept at the best penalty of the squared weights; as of `select`.

  Returns:
    Coefficients `[p]`, and the number of their penalty.
  """

  def fit(weights, penalty):
    rows = inputs * weights[:, None]
    return jnp.linalg.solve(rows.T @ inputs + penalty * jnp.eye(rows.shape[1]), rows.T @ targets)

  score = lambda coefficients: (inputs @ coefficients - targets) ** 2  # noqa: E731
  return select(fit, score, weights, folds, penalties, num_folds=num_folds)


def standardized(weights: chex.Array, reference: chex.Array, *others: chex.Array):
  """Rows less the mean of the reference rows that count, over their deviation in all directions."""
  shares = weights[:, None] / jnp.sum(weights)
  mean = jnp.sum(shares * reference, axis=0)
  variance = jnp.mean(jnp.sum(shares * (reference - mean) ** 2, axis=0))
  scale = jnp.sqrt(jnp.maximum(variance, 1e-12))
  return tuple((rows - mean) / scale for rows in (reference, *others))
