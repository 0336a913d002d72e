"""Adaptation of a source model to a target domain without the source data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab._paths import path_names
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.algorithms.online_adaptation import (
  AdaptBatch,
  AdaptLoss,
  ForwardFn,
  OnlineAdapter,
  Path,
  guarded_step,
  init_optimizer,
  logits_of,
  loss_adapter,
)
from jaxlab.losses.adaptation import information_maximization_loss

Labeled = tuple[chex.Array, chex.Array]


class FineTuned(NamedTuple):
  """The best parameters of a fine-tuning run.

  Attributes:
    params: parameters at the step with the lowest validation loss.
    best_step: number of updates at that step, int32 `[]`; 0 for the initial parameters.
    best_validation_loss: mean cross-entropy there, in nats, `[]`.
    last_params: parameters at the last evaluation.
  """

  params: chex.ArrayTree
  best_step: jax.Array
  best_validation_loss: jax.Array
  last_params: chex.ArrayTree = None


def centroid_pseudo_labels(
  features: chex.Array, probs: chex.Array, *, num_rounds: int = 2
) -> jax.Array:
  """Labels samples by the nearest class centroid, with centroids from the model's predictions.

  If the features form clusters, samples that the head misclassifies lie near correctly classified
  ones, and the centroid of their cluster corrects the head.

  Args:
    features: features of the samples, `[n, d]`.
    probs: the model's class probabilities, `[n, k]`.
    num_rounds: how often centroids and labels are computed, the first time from `probs`, then from
      the labels.

  Returns:
    Labels, int32 `[n]`: the class whose centroid has the smallest cosine distance (a constant 1 is
    appended to features), among the classes predicted for at least one sample; the lowest class on
    ties. Samples with a feature or probability that is not finite have no part in the centroids and
    get -1. No gradient flows.

  Raises:
    ValueError: if `num_rounds` < 1, or `features` and `probs` are not `[n, d]` and `[n, k]`.

  Reference: Liang et al., SHOT, ICML 2020, equations 4 to 6, https://arxiv.org/abs/2002.08546.
  """
  check_at_least(1, num_rounds=num_rounds)
  features, probs = as_accumulator(features), as_accumulator(probs)
  check_arrays(features=(features, "[n, d]"), probs=(probs, "[n, k]"))
  features, probs = jax.lax.stop_gradient((features, probs))
  num_classes = probs.shape[1]
  check_at_least(1, **{"the number of classes in probs": num_classes})
  valid = jnp.all(jnp.isfinite(features), axis=1) & jnp.all(jnp.isfinite(probs), axis=1)
  features, probs = (jnp.where(valid[:, None], rows, 0.0) for rows in (features, probs))
  features = jnp.pad(features, ((0, 0), (0, 1)), constant_values=1.0)
  features = _unit(features / jnp.max(jnp.abs(features), axis=1, keepdims=True))
  affinity, labels = probs, jnp.where(valid, jnp.argmax(probs, axis=1), -1)
  for _ in range(num_rounds):
    centroids = affinity.T @ features / (1e-8 + jnp.sum(affinity, axis=0)[:, None])
    predicted = jnp.sum(jax.nn.one_hot(labels, num_classes), axis=0) > 0
    distances = jnp.where(predicted, 1 - features @ _unit(centroids).T, jnp.inf)
    labels = jnp.where(valid, jnp.argmin(distances, axis=1), -1)
    affinity = jax.nn.one_hot(labels, num_classes)
  return labels.astype(jnp.int32)


def _unit(rows: jax.Array) -> jax.Array:
  return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def fine_tune(
  key: chex.PRNGKey,
  apply_fn: ForwardFn,
  params: chex.ArrayTree,
  optimizer: optax.GradientTransformation,
  data: Labeled,
  validation: Labeled,
  *,
  num_steps: int,
  batch_size: int,
  trainable: Callable[[Path], bool],
  eval_every: int = 10,
  train_fn: Callable[[chex.ArrayTree, chex.Array], tuple[Any, chex.ArrayTree]] | None = None,
) -> FineTuned:
  """Trains a part of the parameters on a few labeled examples and keeps the best step.

  One labeled example per class is enough for early stopping, for which unlabeled target data give
  no signal. Training is one `lax.scan` that keeps only the best parameters.

  Args:
    key: random key for the order of the examples.
    apply_fn: `(params, inputs) -> logits [b, k]`, or an output with a field `logits`; in
      evaluation mode.
    params: initial parameters. Running statistics of normalization layers, if any, are among its
      leaves.
    optimizer: the gradient transformation of the trainable leaves.
    data: inputs `[n, ...]` and classes, int `[n]`.
    validation: inputs and classes to stop on.
    num_steps: number of updates.
    batch_size: rows of an update. Shuffled epochs follow each other without a gap, so a set smaller
      than a batch is repeated, each example equally often.
    trainable: `(path) -> bool`, the path being the names from the root to a leaf; the other
      leaves do not change.
    eval_every: updates between evaluations; updates after the last evaluation are skipped, since
      they could not be chosen.
    train_fn: `(params, inputs) -> (output, params)` for training mode: the output of normalization
      by batch statistics, and `params` with new running statistics. None uses `apply_fn`.

  Returns:
    A `FineTuned`: the evaluation (step 0 among them) with the lowest mean cross-entropy on
    `validation`, the first one on ties.

  Raises:
    ValueError: if `num_steps`, `batch_size` or `eval_every` < 1, `data` or `validation` is empty
      or does not have one label per row, a label lies outside [0, k), or nothing is trainable.

  Reference: Lee et al., Few-shot Fine-tuning is All You Need for Source-free Domain Adaptation,
  section 3, https://arxiv.org/abs/2304.00792.
  """
  check_at_least(1, num_steps=num_steps, batch_size=batch_size, eval_every=eval_every)
  params = jax.tree.map(jnp.asarray, params)
  classes = jax.eval_shape(lambda: logits_of(apply_fn(params, jnp.asarray(validation[0])))).shape[
    -1
  ]
  data = _labeled("data", data, classes)
  validation = _labeled("validation", validation, classes)
  return _fine_tune(
    key,
    apply_fn,
    params,
    optimizer,
    data,
    validation,
    num_steps=num_steps,
    batch_size=batch_size,
    trainable=trainable,
    eval_every=eval_every,
    train_fn=train_fn,
  )


@compiled_once
def _fine_tune(
  key,
  apply_fn,
  params,
  optimizer,
  data,
  validation,
  *,
  num_steps,
  batch_size,
  trainable,
  eval_every,
  train_fn,
) -> FineTuned:
  train_fn = train_fn or (lambda params, inputs: (apply_fn(params, inputs), params))

  def step(carry, rows):
    inputs, labels = jax.tree.map(lambda array: array[rows], data)

    def objective(params):
      output, params = train_fn(params, inputs)
      return _cross_entropy(output, labels), jax.lax.stop_gradient(params)

    stepped = guarded_step(objective, optimizer, *carry, trainable=trainable)
    # Untrained leaves may still change: running statistics.
    params = jax.tree_util.tree_map_with_path(
      lambda path, new, renewed: new if trainable(path_names(path)) else renewed,
      stepped.params,
      stepped.aux,
    )
    return (params, stepped.opt_state), None

  def validation_loss(params):
    return _cross_entropy(apply_fn(params, validation[0]), validation[1])

  def phase(carry, rows):
    state, best, index = carry
    state, _ = jax.lax.scan(step, state, rows)
    candidate = FineTuned(state[0], (index + 1) * eval_every, validation_loss(state[0]))
    better = candidate.best_validation_loss < best.best_validation_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, best)
    return (state, best, index + 1), None

  num_phases = num_steps // eval_every
  start = FineTuned(params, jnp.int32(0), validation_loss(params))
  opt_state = init_optimizer(optimizer, params, trainable=trainable)
  carry = ((params, opt_state), start, jnp.int32(0))
  rows = _repeated_rows(key, data[1].shape[0], num_phases * eval_every * batch_size)
  rows = rows.reshape(num_phases, eval_every, batch_size)
  carry = varying_carry(phase, carry, rows) if num_phases else carry
  ((last, _), best, _), _ = jax.lax.scan(phase, carry, rows)
  return best._replace(last_params=last)


def _labeled(name: str, pair: Labeled, num_classes: int) -> tuple[jax.Array, jax.Array]:
  inputs, labels = jnp.asarray(pair[0]), as_classes(f"{name} labels", pair[1], num_classes)
  check_arrays(**{f"{name} labels": (labels, "[n]"), f"{name} inputs": (inputs, "[n, ...]")})
  check_at_least(1, **{f"the number of rows of {name}": labels.shape[0]})
  return inputs, labels


def _cross_entropy(output: Any, labels: jax.Array) -> jax.Array:
  return jnp.mean(
    optax.softmax_cross_entropy_with_integer_labels(as_accumulator(logits_of(output)), labels)
  )


def _repeated_rows(key: chex.PRNGKey, num_rows: int, num_draws: int) -> jax.Array:
  """Shuffled epochs one after the other, `[num_draws]`."""
  keys = jax.random.split(key, -(-num_draws // num_rows))
  orders = jax.lax.map(lambda k: jax.random.permutation(k, num_rows), keys)
  return orders.reshape(-1)[:num_draws]


def linear_probe_fine_tune(
  key: chex.PRNGKey,
  apply_fn: ForwardFn,
  params: chex.ArrayTree,
  head_optimizer: optax.GradientTransformation,
  optimizer: optax.GradientTransformation,
  data: Labeled,
  validation: Labeled,
  *,
  num_head_steps: int = 400,
  num_steps: int,
  batch_size: int,
  is_head: Callable[[Path], bool],
  eval_every: int = 10,
  trainable: Callable[[Path], bool] = lambda path: True,
  train_fn: Callable[[chex.ArrayTree, chex.Array], tuple[Any, chex.ArrayTree]] | None = None,
) -> FineTuned:
  """Fine-tunes the classifier on frozen features first, then all parameters.

  The gradient of an untrained head would distort the features.

  Args:
    key: random key for the order of the examples.
    apply_fn: as in `fine_tune`.
    params: initial parameters.
    head_optimizer: for the first stage.
    optimizer: for the second one.
    data: as in `fine_tune`.
    validation: as in `fine_tune`.
    num_head_steps: updates of the first stage.
    num_steps: updates of the second one.
    batch_size: rows of an update.
    is_head: `(path) -> bool`, the leaves that the first stage trains.
    eval_every: updates between evaluations.
    trainable: the leaves that the second stage trains; all by default. It must leave out running
      statistics.
    train_fn: as in `fine_tune`, for the second stage: frozen features stay in evaluation mode.

  Returns:
    The `FineTuned` of the second stage, which begins at the best step of the first one.

  Raises:
    ValueError: as `fine_tune`.

  Reference: Kumar et al., Fine-Tuning can Distort Pretrained Features, ICLR 2022,
  https://arxiv.org/abs/2202.10054; Lee et al., https://arxiv.org/abs/2304.00792.
  """
  head_key, key = jax.random.split(key)
  probed = fine_tune(
    head_key,
    apply_fn,
    params,
    head_optimizer,
    data,
    validation,
    num_steps=num_head_steps,
    batch_size=batch_size,
    trainable=is_head,
    eval_every=eval_every,
  )
  return fine_tune(
    key,
    apply_fn,
    probed.params,
    optimizer,
    data,
    validation,
    num_steps=num_steps,
    batch_size=batch_size,
    trainable=trainable,
    eval_every=eval_every,
    train_fn=train_fn,
  )


def information_maximization_adaptation(
  apply_fn: ForwardFn,
  optimizer: optax.GradientTransformation,
  *,
  pseudo_label_weight: chex.Numeric = 0.3,
  trainable: Callable[[Path], bool],
) -> OnlineAdapter:
  """SHOT: confident and diverse predictions, and cross-entropy to centroid pseudo-labels.

  The head encodes the source classes and is usually not `trainable`: the features adapt to it.

  Args:
    apply_fn: `(params, inputs) -> outputs` with `features` `[b, d]` and `logits` `[b, k]`.
    optimizer: steps the trained leaves, once per batch.
    pseudo_label_weight: weight of the cross-entropy, >= 0.
    trainable: `(path) -> bool`, which leaves are trained.

  Returns:
    An `OnlineAdapter` with `init(params) -> AdapterState`. Its update takes pseudo-labels, int
    `[b]`, as an optional fourth argument, for example those of an epoch (`adapt_stream` passes them
    as `source_batches`); by default they are the `centroid_pseudo_labels` of the batch.

  Raises:
    ValueError: if `pseudo_label_weight` < 0; on a call, if no leaf is trained.

  Reference: Liang et al., Do We Really Need to Access the Source Data?, ICML 2020,
  https://arxiv.org/abs/2002.08546.
  """
  check_range("pseudo_label_weight", pseudo_label_weight, "[0, inf)")

  def loss_fn(key: chex.PRNGKey, batch: AdaptBatch) -> AdaptLoss:
    del key
    (_, labels), logits = batch.inputs, as_accumulator(logits_of(batch.outputs))
    if labels is None:
      labels = centroid_pseudo_labels(batch.outputs.features, jax.nn.softmax(logits))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return AdaptLoss(information_maximization_loss(logits) + pseudo_label_weight * cross_entropy)

  adapter = loss_adapter(
    lambda params, inputs: apply_fn(params, inputs[0]), loss_fn, optimizer, trainable=trainable
  )

  def update(key, state, inputs, pseudo_labels=None):
    return adapter.update(key, state, (inputs, pseudo_labels))

  return OnlineAdapter(adapter.init, update)
