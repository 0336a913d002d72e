"""Semi-supervised comparisons: all methods see the same rows, views and initial parameters.

A row of a table is a method of `jaxlab.algorithms.semi_supervised_training` and a grid. What is
random in its batches depends on the seed's key alone, so that differences between rows are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.sweep import Setting, choose, grid
from experiments.kit.train import agrees, epoch_rows, nan_unless
from experiments.kit.views import ViewFns
from jaxlab import algorithms, models
from jaxlab.algorithms import (
  SemiSupervisedBatch,
  SemiSupervisedInfo,
  SemiSupervisedState,
  SemiSupervisedTraining,
)
from jaxlab.experiment import Context, Precondition, precondition


class Protocol(NamedTuple):
  """What all methods of a comparison share.

  Attributes:
    views: how views are made.
    num_classes: number of classes.
    num_steps: updates.
    num_labeled: labeled rows of an update.
    num_unlabeled: unlabeled rows of an update.
    num_weak: weak views of a row; more than a method reads may cost time.
    num_strong: strong views of an unlabeled row; a labeled one has one.
  """

  views: ViewFns
  num_classes: int
  num_steps: int
  num_labeled: int
  num_unlabeled: int
  num_weak: int = 1
  num_strong: int = 1


class Learned(NamedTuple):
  """What `learn` gives.

  Attributes:
    state: the state at the end.
    seen: name -> mean over each part of the steps, `[num_parts]`.
    bad_step: updates before the first that was skipped, since its loss or gradient was not finite;
      -1 if there was none.
  """

  state: SemiSupervisedState
  seen: dict[str, jax.Array]
  bad_step: jax.Array


def learn(
  key: chex.PRNGKey,
  trainer: SemiSupervisedTraining,
  state: SemiSupervisedState,
  labeled: Split,
  unlabeled: Split,
  protocol: Protocol,
  *,
  watch: Callable[..., dict[str, chex.Array]] | None = None,
  num_parts: int = 1,
  rows: tuple[chex.Array, chex.Array] | None = None,
) -> Learned:
  """Trains by one scan over batches; traceable, for `sweep.grid`.

  Args:
    key: of the order of rows, of views, and of the method.
    trainer: the training.
    state: where to begin: `trainer.init(params)`, or the state of a former call.
    labeled: labeled rows.
    unlabeled: unlabeled rows; their labels are for the report (`batch.truth`), -1 where unknown.
    protocol: views and sizes.
    watch: `(state after the update, batch, info) -> numbers by name`, after every update; None for
      the share of unlabeled rows that count.
    num_parts: parts of the steps over which these are averaged, without NaN; divides them.
    rows: labeled and unlabeled row numbers of every step, `[num_steps, rows]`; None shuffles.

  Returns:
    A `Learned`.

  Raises:
    ValueError: if `num_parts` does not divide the steps.
  """
  if protocol.num_steps % num_parts:
    raise ValueError(f"num_parts={num_parts} does not divide num_steps={protocol.num_steps}.")
  order_key, other_key, step_key = jax.random.split(key, 3)
  if rows is None:
    num = len(unlabeled.labels)
    sizes = {"num_steps": protocol.num_steps, "batch_size": protocol.num_unlabeled}
    known = repeated_rows(order_key, len(labeled.labels), protocol.num_steps, protocol.num_labeled)
    rows = known, epoch_rows(other_key, num, **sizes)
  labeled, unlabeled = (Split(*map(jnp.asarray, split)) for split in (labeled, unlabeled))

  def step(state, inputs):
    number, (known, other) = inputs
    batch_key, method_key = jax.random.split(jax.random.fold_in(step_key, number))
    batch = draw_batch(batch_key, labeled, unlabeled, known, other, protocol)
    state, info = trainer.update(method_key, state, batch)
    seen = (watch or _utilization)(state, batch, info)
    return state, {"skipped": info.skipped, **seen}

  state, seen = jax.lax.scan(step, state, (jnp.arange(protocol.num_steps), rows))
  skipped = seen.pop("skipped") > 0
  parts = {name: x.reshape(num_parts, -1, *x.shape[1:]) for name, x in seen.items()}
  means = {name: jnp.nanmean(x, axis=1) for name, x in parts.items()}
  return Learned(state, means, jnp.where(jnp.any(skipped), jnp.argmax(skipped), -1))


def _utilization(state: SemiSupervisedState, batch: SemiSupervisedBatch, info: SemiSupervisedInfo):
  del state, batch
  return {"utilization": info.utilization}


def draw_batch(
  key: chex.PRNGKey,
  labeled: Split,
  unlabeled: Split,
  known: chex.Array,
  other: chex.Array,
  protocol: Protocol,
) -> SemiSupervisedBatch:
  """The views of labeled rows `known` and unlabeled rows `other`."""

  fns = protocol.views

  def views(key, inputs, num_strong):
    fresh = {"weak_fn": fns.weak, "strong_fn": fns.strong, "num_weak": protocol.num_weak}
    drawn = algorithms.draw_views(key, inputs, num_strong=num_strong, **fresh)
    return drawn._replace(clean=fns.clean(inputs))

  labeled_key, unlabeled_key = jax.random.split(key)
  return SemiSupervisedBatch(
    views(labeled_key, labeled.inputs[known], 1),
    jax.nn.one_hot(labeled.labels[known], protocol.num_classes),
    views(unlabeled_key, unlabeled.inputs[other], protocol.num_strong),
    indices=other,
    truth=unlabeled.labels[other],
  )


def repeated_rows(key: chex.PRNGKey, num_rows: int, num_steps: int, batch_size: int) -> jax.Array:
  """Row numbers `[num_steps, batch_size]` of shuffled epochs end to end: batches may hold repeats.

  A batch may be larger than the set, and no row is left out.
  """
  num_epochs = -(-num_steps * batch_size // num_rows)
  orders = jax.vmap(lambda key: jax.random.permutation(key, num_rows))(
    jax.random.split(key, num_epochs)
  )
  return orders.reshape(-1)[: num_steps * batch_size].reshape(num_steps, batch_size)


def predict(
  trainer: SemiSupervisedTraining,
  state: SemiSupervisedState,
  inputs: chex.Array,
  *,
  views: ViewFns,
  batch_size: int = 500,
) -> jax.Array:
  """Logits of the averaged network on clean views, in batches that bound memory."""

  num_rows = len(inputs)
  size = min(batch_size, num_rows)
  # Rows from the start fill the last batch, so that all are one program.
  rows = jnp.arange(-(-num_rows // size) * size) % num_rows
  batches = jnp.asarray(inputs)[rows.reshape(-1, size)]
  logits = jax.lax.map(lambda batch: trainer.predict(state, views.clean(batch)), batches)
  return logits.reshape(-1, logits.shape[-1])[:num_rows]


def evaluate(
  trainer: SemiSupervisedTraining,
  learned: Learned,
  validation: Split,
  test: Split,
  *,
  views: ViewFns,
  merge: Callable[[chex.Array], chex.Array] = lambda logits: logits,
) -> dict[str, Any]:
  """Accuracy on `validation` and `test`, what was seen, and where the training broke down.

  Args:
    trainer: the training.
    learned: what it gave; accuracies are NaN if an update was skipped.
    validation: rows that choose settings.
    test: test rows.
    views: how evaluation sees inputs.
    merge: from the network's logits to those of the labels' classes.

  Returns:
    `validation`, `accuracy`, `bad_step` and the entries of `learned.seen`.
  """

  inputs = jnp.concatenate([validation.inputs, test.inputs])
  logits = merge(predict(trainer, learned.state, inputs, views=views))
  right = agrees(logits, jnp.concatenate([validation.labels, test.labels]))
  parts = jnp.split(right, [len(validation.labels)])
  scores = dict(zip(("validation", "accuracy"), map(jnp.mean, parts)))
  whole = learned.bad_step < 0
  return nan_unless(whole, scores) | {"bad_step": learned.bad_step, **learned.seen}


def abstract_update(
  trainer: SemiSupervisedTraining,
  init_fn: Callable[[chex.PRNGKey], chex.ArrayTree],
  batch_fn: Callable[[int], Split],
  protocol: Protocol,
):
  """What an experiment's `abstract` returns: an update with its views, as shapes.

  Args:
    trainer: the training.
    init_fn: `key -> params`.
    batch_fn: `number of rows -> Split` of shapes, such as `Dataset.batch`.
    protocol: views and sizes.
  """

  def update(state, key, labeled, unlabeled):
    rows = (jnp.arange(len(split.labels)) for split in (labeled, unlabeled))
    batch = draw_batch(key, labeled, unlabeled, *rows, protocol)
    return trainer.update(key, state, batch)

  key = jax.eval_shape(jax.random.key, 0)
  state = jax.eval_shape(lambda key: trainer.init(init_fn(key)), key)
  return update, state, key, batch_fn(protocol.num_labeled), batch_fn(protocol.num_unlabeled)


# ---------------------------------------------------------------- network, settings and optimizer


def encoder(name: Literal["small", "wide"], num_classes: int) -> nn.Module:
  """A network without batch statistics, so that no row's output depends on the others."""
  if name == "small":
    return models.ConvEncoder(num_classes=num_classes)
  return models.ConvEncoder((64, 128, 256), dense=256, num_classes=num_classes)


def search(
  context: Context,
  stage: str,
  splits: Any,
  methods: Mapping[str, tuple[Callable[..., Mapping[str, Any]], Sequence[Setting]]],
  *,
  select: str = "validation",
) -> dict[str, dict[str, np.ndarray]]:
  """Evaluates every setting of every method on all seeds, and keeps the best one of each seed.

  `kit.sweep` for methods that differ in numbers alone: those with one function are one program.

  Args:
    context: of the run.
    stage: stages are `stage/method/number of the setting`.
    splits: data of all seeds, with a leading axis of seeds.
    methods: method -> `(key, splits, setting=...) -> quantities`, traceable, and its settings. Of
      the settings, what every row of a table may choose from must be the same.
    select: the quantity of validation rows that chooses, the higher the better.

  Returns:
    method -> quantity -> `[seeds, ...]`.
  """
  chosen = {}
  for method, (evaluate_fn, settings) in methods.items():
    scores = grid(context, f"{stage}/{method}", evaluate_fn, splits, settings)
    chosen[method] = choose(scores, settings, select=select)
  return chosen


def fixmatch_learns(
  accuracy: np.ndarray, labels_only: np.ndarray, *, on: str, low: float, high: float, gain: float
) -> tuple[Precondition, ...]:
  """That FixMatch is neither at a loss nor at the ceiling on a set, and learns without labels.

  Args:
    accuracy: of FixMatch, `[seeds]`.
    labels_only: that of labels alone.
    on: what the set is called.
    low: the least accuracy.
    high: the highest one.
    gain: the least lead on labels alone.
  """
  return (
    precondition(f"FixMatch is right on {low:.2f} of {on} or more", accuracy, at_least=low),
    precondition(f"and on {high:.2f} or less", accuracy, at_most=high),
    precondition(f"it is {gain:.2f} above labels only", accuracy - labels_only, at_least=gain),
  )


def slow_cosine(
  learning_rate: chex.Numeric, num_steps: int, *, weight_decay: chex.Numeric = 0.0
) -> optax.GradientTransformation:
  """FixMatch's SGD with Nesterov momentum .9, whose rate falls by cos(7 pi t / 16 T) to a fifth."""

  def schedule(step):
    return learning_rate * jnp.cos(7 * jnp.pi * step / (16 * num_steps))

  decay = optax.add_decayed_weights(weight_decay)
  return optax.chain(decay, optax.sgd(schedule, momentum=0.9, nesterov=True))
