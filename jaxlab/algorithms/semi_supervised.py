"""Semi-supervised learning: one batch, one pair of functions and one report for every method.

A batch holds views of labeled and of unlabeled rows. A method is a loss of it, and what it
remembers from batch to batch. All methods run in one loop::

  trainer = semi_supervised_training(apply_fn, fixmatch_method(), optax.adam(1e-3))
  state = trainer.init(params)
  for key, labeled, targets, unlabeled in batches:
    labeled_key, unlabeled_key, key = jax.random.split(key, 3)
    batch = SemiSupervisedBatch(
      draw_views(labeled_key, labeled, weak_fn=weak, strong_fn=strong),
      targets,
      draw_views(unlabeled_key, unlabeled, weak_fn=weak, strong_fn=strong),
    )
    state, info = jax.jit(trainer.update)(key, state, batch)
  logits = trainer.predict(state, test_inputs)

A new method is one loss::

  def agreement(key, step):
    views = step.batch.unlabeled
    target = jax.lax.stop_gradient(jax.nn.softmax(step.forward(views.weak[0])))
    rows = losses.soft_cross_entropy(step.forward(views.strong[0]), target)
    return SemiSupervisedLoss(step.supervised_loss(), jnp.mean(rows), target)

  trainer = semi_supervised_training(apply_fn, SemiSupervisedMethod(agreement), optimizer)
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab.algorithms.online_adaptation import guarded_step, init_optimizer
from jaxlab.algorithms.schedules import warm_ema_decay
from jaxlab.algorithms.semi_supervised_objectives import ApplyFn
from jaxlab.losses.classification import soft_cross_entropy
from jaxlab.weights.ema import ema_update

Weight = chex.Numeric | Callable[[chex.Array], chex.Numeric]


class Views(NamedTuple):
  """Views of n rows; a method reads those that it needs, and under `jit` no others are made.

  Attributes:
    clean: the rows themselves, `[n, ...]`.
    weak: independent weak views, `[a, n, ...]`.
    strong: independent strong views, `[s, n, ...]`.
  """

  clean: chex.Array
  weak: chex.Array
  strong: chex.Array

  def first(self, name: Literal["clean", "weak", "strong"]) -> chex.Array:
    """The first view of a kind."""
    return self.clean if name == "clean" else getattr(self, name)[0]


class SemiSupervisedBatch(NamedTuple):
  """What an update learns from.

  Attributes:
    labeled: views of labeled rows.
    targets: their one-hot or soft labels, `[nl, k]`.
    unlabeled: views of unlabeled rows.
    indices: which of all unlabeled rows these are, int `[nu]`, each at most once; for methods that
      remember rows.
    truth: their true classes, int `[nu]`, for the report alone; -1 where unknown.
  """

  labeled: Views
  targets: chex.Array
  unlabeled: Views
  indices: chex.Array | None = None
  truth: chex.Array | None = None


class SemiSupervisedStep(NamedTuple):
  """What the loss of a method sees.

  Attributes:
    apply_fn: `(params, inputs) -> logits`.
    params: the trained parameters; the gradient flows into them alone.
    average: their moving average before this update.
    memory: what the method remembers.
    batch: the batch.
    step: updates done before this one, int32 scalar.
  """

  apply_fn: ApplyFn
  params: chex.ArrayTree
  average: chex.ArrayTree
  memory: Any
  batch: SemiSupervisedBatch
  step: chex.Array

  def forward(self, inputs: chex.Array) -> jax.Array:
    """The trained network's logits, in float32 or wider."""
    return as_accumulator(self.apply_fn(self.params, inputs))

  def supervised_loss(self, view: Literal["clean", "weak", "strong"] = "weak") -> jax.Array:
    """Mean cross-entropy of the first view of a kind of the labeled rows."""
    logits = self.forward(self.batch.labeled.first(view))
    return jnp.mean(soft_cross_entropy(logits, self.batch.targets))

  def value_of(self, weight: Weight) -> chex.Numeric:
    """A weight at this step."""
    return weight(self.step) if callable(weight) else weight

  def indices_below(self, num_rows: int) -> jax.Array:
    """Which of so many unlabeled rows the batch has; raises if it does not say so."""
    if self.batch.indices is None:
      raise ValueError("batch.indices must say which unlabeled rows these are, got None.")
    return as_classes("batch.indices", self.batch.indices, num_rows)


class SemiSupervisedLoss(NamedTuple):
  """What the loss of a method gives; the first two are minimized, the others reported.

  Attributes:
    supervised: loss of labeled rows, a scalar.
    unlabeled: loss of unlabeled rows with its weight, a scalar.
    guesses: targets of the unlabeled rows, probabilities or other scores, `[nu, k]`.
    used: how much each of them counts, `[nu]`; None for all alike.
    row_losses: loss of each before any threshold or weight, `[nu]`; None for 0.
    thresholds: smallest probability that counts, for all classes or one for each, `[k]`.
    memory: what the method remembers from here on, in the structure it had.
  """

  supervised: chex.Array
  unlabeled: chex.Array
  guesses: chex.Array
  used: chex.Array | None = None
  row_losses: chex.Array | None = None
  thresholds: chex.Numeric = 0.0
  memory: Any = ()


def _predict_logits(apply_fn: ApplyFn, params: chex.ArrayTree, inputs: chex.Array) -> jax.Array:
  return apply_fn(params, inputs)


class SemiSupervisedMethod(NamedTuple):
  """A method of `semi_supervised_training`.

  Attributes:
    loss_fn: `(key, SemiSupervisedStep) -> SemiSupervisedLoss`.
    init_fn: `() -> memory`, what the method remembers at the start.
    predict_fn: `(apply_fn, params, inputs) -> logits`, for methods of several networks.
  """

  loss_fn: Callable[[chex.PRNGKey, SemiSupervisedStep], SemiSupervisedLoss]
  init_fn: Callable[[], Any] = tuple
  predict_fn: Callable[[ApplyFn, chex.ArrayTree, chex.Array], chex.Array] = _predict_logits


class SemiSupervisedState(NamedTuple):
  """The state of semi-supervised learning.

  Attributes:
    params: the trained parameters.
    average: their moving average, which predicts.
    opt_state: state of the optimizer.
    memory: what the method remembers.
    step: updates done, int32 scalar.
  """

  params: chex.ArrayTree
  average: chex.ArrayTree
  opt_state: optax.OptState
  memory: Any
  step: chex.Array


class SemiSupervisedInfo(NamedTuple):
  """What an update reports, the same for every method; float32 scalars if not said otherwise.

  Attributes:
    loss: the objective before the step.
    supervised_loss: its part of labeled rows.
    unlabeled_loss: its part of unlabeled rows.
    utilization: share of the unlabeled rows that count.
    pseudo_accuracy: share of right guesses among those that count and whose truth is known; NaN
      without any.
    guess_accuracy: the same share among all whose truth is known.
    thresholds: smallest probability that counts in each class, `[k]`; 0 without one.
    guesses: guessed classes, int32 `[nu]`.
    used: how much each row counts, `[nu]`.
    row_losses: loss of each row before any threshold or weight, `[nu]`.
    skipped: 1 if the loss or a gradient was not finite, so that the state stayed as it was.
  """

  loss: chex.Array
  supervised_loss: chex.Array
  unlabeled_loss: chex.Array
  utilization: chex.Array
  pseudo_accuracy: chex.Array
  guess_accuracy: chex.Array
  thresholds: chex.Array
  guesses: chex.Array
  used: chex.Array
  row_losses: chex.Array
  skipped: chex.Array


class SemiSupervisedTraining(NamedTuple):
  """The functions of semi-supervised learning; all are pure and may be jitted.

  Attributes:
    init: `params -> SemiSupervisedState`; of co-training, a pair of parameters.
    update: `(key, state, batch) -> (state, SemiSupervisedInfo)`.
    predict: `(state, inputs) -> logits`, by the average.
  """

  init: Callable[[chex.ArrayTree], SemiSupervisedState]
  update: Callable[..., tuple[SemiSupervisedState, SemiSupervisedInfo]]
  predict: Callable[[SemiSupervisedState, chex.Array], chex.Array]


def semi_supervised_training(
  apply_fn: ApplyFn,
  method: SemiSupervisedMethod,
  optimizer: optax.GradientTransformation,
  *,
  decay: chex.Numeric = 0.999,
) -> SemiSupervisedTraining:
  """Builds semi-supervised learning by a method.

  Args:
    apply_fn: `(params, inputs) -> logits`.
    method: `fixmatch_method` and its neighbors, or a loss of one's own.
    optimizer: the gradient transformation.
    decay: largest decay of the average (`warm_ema_decay`), in [0, 1).

  Returns:
    `SemiSupervisedTraining(init, update, predict)`.

  Raises:
    ValueError: if `decay` lies outside [0, 1); on a call, if shapes do not agree.

  Reference: Cances et al., Comparison of semi-supervised deep learning algorithms for audio
  classification, 2022, https://arxiv.org/abs/2102.08183, for the protocol.
  """
  check_range("decay", decay, "[0, 1)")

  def init(params):
    params = jax.tree.map(jnp.asarray, params)
    opt_state = init_optimizer(optimizer, params)
    # A copy, so that a step may be given the buffers of the state.
    average = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    step = jnp.zeros((), jnp.int32)
    return SemiSupervisedState(params, average, opt_state, method.init_fn(), step)

  def update(key, state, batch):
    _check_batch(batch)

    def objective(params):
      step = SemiSupervisedStep(apply_fn, params, state.average, state.memory, batch, state.step)
      loss = method.loss_fn(key, step)
      return loss.supervised + loss.unlabeled, loss

    step = guarded_step(objective, optimizer, state.params, state.opt_state)
    loss = step.aux._replace(memory=())
    average = ema_update(state.average, step.params, decay=warm_ema_decay(state.step, decay=decay))
    memory = jax.lax.stop_gradient(step.aux.memory)
    new = SemiSupervisedState(step.params, average, step.opt_state, memory, state.step + 1)
    new = jax.tree.map(lambda new, old: jnp.where(step.finite, new, old), new, state)
    return new, _report(batch, step, loss)

  def predict(state, inputs):
    return method.predict_fn(apply_fn, state.average, inputs)

  return SemiSupervisedTraining(init, update, predict)


def _check_batch(batch: SemiSupervisedBatch) -> None:
  arrays = {"targets": (batch.targets, "[nl, k]")}
  for name, views, rows in (
    ("labeled", batch.labeled, "nl"),
    ("unlabeled", batch.unlabeled, "nu"),
  ):
    arrays[f"{name}.clean"] = (views.clean, f"[{rows}, ...]")
    arrays[f"{name}.weak"] = (views.weak, f"[*, {rows}, ...]")
    arrays[f"{name}.strong"] = (views.strong, f"[*, {rows}, ...]")
  arrays["indices"] = (batch.indices, "int [nu]")
  arrays["truth"] = (batch.truth, "int [nu]")
  check_arrays(**{f"batch.{name}": pair for name, pair in arrays.items()})


def _report(batch: SemiSupervisedBatch, step: Any, loss: SemiSupervisedLoss) -> SemiSupervisedInfo:
  num_rows, num_classes = batch.unlabeled.clean.shape[0], batch.targets.shape[-1]
  used = jnp.ones(num_rows) if loss.used is None else loss.used
  row_losses = jnp.zeros(num_rows) if loss.row_losses is None else loss.row_losses
  check_arrays(
    **{
      "SemiSupervisedLoss.guesses": (loss.guesses, f"[{num_rows}, {num_classes}]"),
      "used": (used, f"[{num_rows}]"),
      "row_losses": (row_losses, f"[{num_rows}]"),
    }
  )
  guesses = jnp.argmax(loss.guesses, axis=-1).astype(jnp.int32)
  truth = jnp.full(num_rows, -1) if batch.truth is None else jnp.asarray(batch.truth)
  known, right = truth >= 0, guesses == truth

  def share(rows):
    return jnp.where(jnp.any(rows), jnp.sum(rows & right) / jnp.sum(rows), jnp.nan)

  info = SemiSupervisedInfo(
    loss=step.loss,
    supervised_loss=loss.supervised,
    unlabeled_loss=loss.unlabeled,
    utilization=jnp.mean(used > 0),
    pseudo_accuracy=share(known & (used > 0)),
    guess_accuracy=share(known),
    thresholds=jnp.broadcast_to(jnp.asarray(loss.thresholds), (num_classes,)),
    guesses=guesses,
    used=used,
    row_losses=row_losses,
    skipped=~step.finite,
  )
  floats = jax.tree.map(lambda x: x.astype(jnp.float32), info._replace(guesses=()))
  return jax.lax.stop_gradient(floats._replace(guesses=guesses))


def draw_views(
  key: chex.PRNGKey,
  inputs: chex.Array,
  *,
  weak_fn: Callable[[chex.PRNGKey, chex.Array], chex.Array],
  strong_fn: Callable[[chex.PRNGKey, chex.Array], chex.Array],
  num_weak: int = 2,
  num_strong: int = 2,
) -> Views:
  """Draws the views of a batch that methods learn from.

  Args:
    key: random key.
    inputs: `[n, ...]`.
    weak_fn: `(key, inputs) -> inputs`, drawing for each row by itself.
    strong_fn: likewise.
    num_weak: number a of weak views, at least 1.
    num_strong: number s of strong views, at least 1.

  Returns:
    `Views`. The first views do not depend on how many are drawn.

  Raises:
    ValueError: if a number of views is below 1.
  """
  check_at_least(1, num_weak=num_weak, num_strong=num_strong)
  check_arrays(inputs=(inputs, "[n, ...]"))
  inputs = jnp.asarray(inputs)

  def several(key, fn, count):
    return jnp.stack([fn(jax.random.fold_in(key, i), inputs) for i in range(count)])

  weak_key, strong_key = jax.random.split(key)
  weak, strong = several(weak_key, weak_fn, num_weak), several(strong_key, strong_fn, num_strong)
  return Views(inputs, weak, strong)
