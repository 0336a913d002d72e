"""Linear probes: what a linear classifier can read from hidden states."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_range,
  is_known,
)
from jaxlab._programs import varying_carry

# A solution is found once the weights move by less than this share of their size.
_TOLERANCE = 1e-5
_HALVINGS = 30


class LinearProbe(NamedTuple):
  """A linear classifier.

  Attributes:
    weights: `[classes, d]`.
    bias: `[classes]`.
  """

  weights: chex.Array
  bias: chex.Array


def normalize_features(features: chex.Array) -> jax.Array:
  """Scales vectors to Euclidean norm 1.

  Args:
    features: `[..., d]`.

  Returns:
    `[..., d]`, in float32 or wider; vectors of zeros stay zeros, without gradient.
  """
  check_arrays(features=(features, "[..., d]"))
  features = as_accumulator(features)
  if features.shape[-1] == 0:
    return features
  # Squares of large numbers would overflow.
  size = jax.lax.stop_gradient(jnp.max(jnp.abs(features), axis=-1, keepdims=True))
  scaled = features / jnp.where(size == 0, 1.0, size)
  square = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
  return jnp.where(size == 0, 0.0, scaled * jax.lax.rsqrt(jnp.where(size == 0, 1.0, square)))


def fit_linear_svm(
  features: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  regularization: chex.Numeric = 1.0,
  num_steps: int = 500,
) -> LinearProbe:
  """Fits linear support vector machines with squared hinge loss, one class against the others.

  For signs y in {-1, 1} and rows x with a 1 appended, whose weight is penalized as the others are,
  `1/2 |w|^2 + C sum max(0, 1 - y <w, x>)^2` is minimized by Newton's method. This is
  scikit-learn's `LinearSVC` with its default options. No gradient flows to the arguments.

  Args:
    features: `[N, d]`.
    labels: classes, int `[N]`.
    num_classes: number of classes, at least 2.
    regularization: C, > 0; the larger, the less are weights penalized.
    num_steps: most steps of Newton's method; a dozen is enough for most data.

  Returns:
    A `LinearProbe`, in float32 or wider, whose scores `features @ weights.T + bias` are largest for
    the predicted class. With 2 classes there is one machine, and the scores are -s and s. NaN if a
    feature is NaN or a label in a JAX array lies outside the classes.

  Raises:
    ValueError: if `num_classes` < 2, `num_steps` < 1, `regularization` <= 0, or of known labels one
      lies outside the classes or a class is absent.

  Reference: Fan et al., LIBLINEAR: A Library for Large Linear Classification, JMLR 2008,
  https://www.jmlr.org/papers/v9/fan08a.html; Simhi et al., Distinguishing Ignorance from Error in
  LLM Hallucinations, 2024, https://arxiv.org/abs/2410.22071.
  """
  check_at_least(2, num_classes=num_classes)
  check_at_least(1, num_steps=num_steps)
  check_range("regularization", regularization, "(0, inf)")
  check_arrays(features=(features, "[N, d]"), labels=(labels, "int [N]"))
  _check_all_classes("labels", labels, num_classes)
  labels = as_classes("labels", labels, num_classes)
  features, cost = as_accumulator(features, regularization)
  features = jax.lax.stop_gradient(features)
  return _fit(features, labels, jax.lax.stop_gradient(cost), num_classes, num_steps)


def _check_all_classes(name: str, labels: chex.Array, num_classes: int):
  if not is_known(labels):
    return
  absent = np.setdiff1d(np.arange(num_classes), labels)
  if absent.size:
    raise ValueError(f"{name} must hold every class, got none of class {absent[0]}.")


@functools.partial(jax.jit, static_argnums=(3, 4))
def _fit(features, labels, cost, num_classes: int, num_steps: int) -> LinearProbe:
  rows = jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)
  classes = jnp.arange(num_classes) if num_classes > 2 else jnp.ones(1, int)
  signs = jnp.where(labels[None] == classes[:, None], 1.0, -1.0).astype(rows.dtype)
  signs = jnp.where(labels[None] < num_classes, signs, jnp.nan)
  weights = jax.vmap(lambda signs: _machine(rows, signs, cost, num_steps))(signs)
  if num_classes == 2:
    weights = jnp.concatenate([-weights, weights])
  return LinearProbe(weights[:, :-1], weights[:, -1])


def _machine(rows, signs, cost, num_steps: int) -> jax.Array:
  """Weights of one machine; rows hold the 1 of the bias."""
  dot = functools.partial(jnp.matmul, precision="highest")

  def slopes(scores):
    return -2 * cost * signs * jnp.maximum(1 - signs * scores, 0)

  def improve(state):
    step, weights, _ = state
    scores = dot(rows, weights)
    gradient = weights + dot(slopes(scores), rows)
    curvature = jnp.where(signs * scores < 1, 2 * cost, 0.0)
    direction = -_conjugate_gradient(
      lambda vector: vector + dot(curvature * dot(rows, vector), rows), gradient
    )
    change = dot(rows, direction)

    def rises(share):
      slope = dot(weights + share * direction, direction) + dot(
        slopes(scores + share * change), change
      )
      return slope > 0

    def halve(_, bracket):
      low, high = bracket
      middle = (low + high) / 2
      rising = rises(middle)
      return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    # The derivative is continuous and increases, so that the minimum on the way is its zero.
    zero = jnp.zeros_like(change[0])
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, (zero, zero + 1))
    share = jnp.where(rises(zero + 1), low, 1.0)
    moved = weights + share * direction
    done = share * jnp.linalg.norm(direction) <= _TOLERANCE * jnp.linalg.norm(moved)
    return step + 1, moved, done | jnp.any(jnp.isnan(moved))

  start = jnp.zeros((), jnp.int32), jnp.zeros_like(rows[0]), jnp.zeros((), bool)
  start = varying_carry(improve, start)
  return jax.lax.while_loop(lambda state: (state[0] < num_steps) & ~state[2], improve, start)[1]


def _conjugate_gradient(product, target, *, tolerance: float = 1e-3) -> jax.Array:
  """Solves `product(x) = target` for a positive definite product."""

  def proceed(state):
    step, _, _, _, square = state
    return (step < 2 * target.size) & (square > tolerance**2 * first)

  def improve(state):
    step, solution, residual, direction, square = state
    image = product(direction)
    length = square / jnp.sum(direction * image)
    solution, residual = solution + length * direction, residual - length * image
    new_square = jnp.sum(jnp.square(residual))
    direction = residual + new_square / square * direction
    return step + 1, solution, residual, direction, new_square

  first = jnp.sum(jnp.square(target))
  start = jnp.zeros((), jnp.int32), jnp.zeros_like(target), target, target, first
  start = varying_carry(improve, start)
  solution = jax.lax.while_loop(proceed, improve, start)[1]
  return jnp.where(jnp.isnan(first), jnp.nan, solution)


def linear_svm_scores(
  train_features: chex.Array,
  train_labels: chex.Array,
  features: chex.Array,
  *,
  num_classes: int,
  regularization: chex.Numeric = 1.0,
) -> jax.Array:
  """Fits linear support vector machines to some rows and scores others.

  Args:
    train_features: `[N, d]`.
    train_labels: classes, int `[N]`.
    features: what is scored, `[M, d]`.
    num_classes: number of classes, at least 2.
    regularization: as in `fit_linear_svm`.

  Returns:
    Scores, `[M, num_classes]`, in float32 or wider.

  Raises:
    ValueError: as in `fit_linear_svm`, or if shapes do not fit.

  Reference: as for `fit_linear_svm`.
  """
  check_arrays(
    train_features=(train_features, "[N, d]"),
    train_labels=(train_labels, "int [N]"),
    features=(features, "[M, d]"),
  )
  _check_all_classes("train_labels", train_labels, num_classes)
  labels = as_classes("train_labels", train_labels, num_classes)
  probe = fit_linear_svm(
    train_features, labels, num_classes=num_classes, regularization=regularization
  )
  return _scores(probe, features)


def _scores(probe: LinearProbe, features: chex.Array) -> jax.Array:
  features, weights, bias = as_accumulator(features, *probe)
  return jnp.matmul(features, weights.T, precision="highest") + bias[None]


def probe_accuracy_by_layer(
  key: chex.PRNGKey,
  features: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  train_fraction: float = 0.7,
  num_splits: int = 3,
) -> jax.Array:
  """Accuracy on held-out rows of a linear support vector machine for each layer.

  All layers of a split are trained and tested on the same rows.

  Args:
    key: random key of the splits.
    features: of N rows, `[N, layers, d]`; `normalize_features` makes layers comparable.
    labels: classes, int `[N]`.
    num_classes: number of classes, at least 2.
    train_fraction: share of the rows that are trained on, in (0, 1); at least one row is trained on
      and one is tested.
    num_splits: random splits.

  Returns:
    Shares of right predictions, `[num_splits, layers]`, in float32 or wider; NaN where a feature is
    NaN or a label in a JAX array lies outside the classes.

  Raises:
    ValueError: if `num_classes` < 2, `train_fraction` lies outside (0, 1), `num_splits` < 1, there
      are fewer than 2 rows, or of known labels one lies outside the classes or a class is absent.

  Reference: Simhi et al., Distinguishing Ignorance from Error in LLM Hallucinations, 2024, section
  4, https://arxiv.org/abs/2410.22071.
  """
  check_at_least(2, num_classes=num_classes)
  check_at_least(1, num_splits=num_splits)
  check_range("train_fraction", train_fraction, "(0, 1)")
  check_arrays(features=(features, "[N, layers, d]"), labels=(labels, "int [N]"))
  check_at_least(2, **{"the number of rows in features": np.shape(features)[0]})
  _check_all_classes("labels", labels, num_classes)
  labels = as_classes("labels", labels, num_classes)
  features = jax.lax.stop_gradient(as_accumulator(features))
  size = features.shape[0]
  num_train = min(max(round(train_fraction * size), 1), size - 1)
  return _split_accuracies(key, features, labels, num_classes, num_train, num_splits)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _split_accuracies(key, features, labels, num_classes, num_train, num_splits) -> jax.Array:
  cost = jnp.ones((), features.dtype)

  def of_split(key):
    order = jax.random.permutation(key, features.shape[0])
    train, test = order[:num_train], order[num_train:]

    def of_layer(rows):
      probe = _fit(rows[train], labels[train], cost, num_classes, 500)
      scores = _scores(probe, rows[test])
      right = jnp.argmax(scores, axis=-1) == labels[test]
      valid = ~jnp.any(jnp.isnan(scores)) & jnp.all(labels[test] < num_classes)
      return jnp.where(valid, jnp.mean(right, dtype=features.dtype), jnp.nan)

    return jax.vmap(of_layer, in_axes=1)(features)

  return jax.lax.map(of_split, jax.random.split(key, num_splits))
