"""Methods of semi-supervised learning by consistency and mixing, for `semi_supervised_training`.

All read the same batch and give the same report. A weight is a number, or a function of the step
such as `lambda step: linear_rampup(step, 16000)`.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_choice, check_range
from jaxlab.algorithms.co_training import co_training_objective, mean_teacher_objective
from jaxlab.algorithms.schedules import QueueState, distribution_queue
from jaxlab.algorithms.semi_supervised import SemiSupervisedLoss, SemiSupervisedMethod, Weight
from jaxlab.algorithms.semi_supervised_objectives import (
  ApplyFn,
  Objective,
  fixmatch_objective,
  mixmatch_objective,
  remixmatch_objective,
)


class LabelQueues(NamedTuple):
  """What `remixmatch_method` remembers: recent targets and recent predictions."""

  targets: QueueState
  guesses: QueueState


def supervised_method(*, view: Literal["clean", "weak", "strong"] = "weak") -> SemiSupervisedMethod:
  """The baseline: cross-entropy of labeled rows alone.

  Args:
    view: which view of them is learned from, the first of its kind.

  Returns:
    The method; its guesses are what the network predicts for unlabeled weak views.

  Raises:
    ValueError: if the view is unknown.
  """
  check_choice("view", view, ("clean", "weak", "strong"))

  def loss_fn(key, step):
    del key
    supervised = step.supervised_loss(view)
    logits = jax.lax.stop_gradient(step.forward(step.batch.unlabeled.weak[0]))
    nothing = jnp.zeros_like(logits[:, 0])
    return SemiSupervisedLoss(supervised, jnp.zeros(()), logits, nothing)

  return SemiSupervisedMethod(loss_fn)


def _loss(objective: Objective, first: int = 0, **more) -> SemiSupervisedLoss:
  """An objective's parts, its rows from `first` on."""
  parts = objective[1]
  rows = (parts[name][first:] for name in ("guesses", "used", "row_losses"))
  return SemiSupervisedLoss(parts["supervised_loss"], parts["unlabeled_loss"], *rows, **more)


def mean_teacher_method(
  *, weight: Weight = 1.0, student_view: Literal["weak", "strong"] = "weak"
) -> SemiSupervisedMethod:
  """Mean teacher; the average of the state is the teacher and sees clean views.

  Args:
    weight: of the consistency, which should rise: `lambda step: exponential_rampup(step, 1000)`.
    student_view: which views of all rows the student sees for the consistency. The labels are
      learned from weak views.

  Returns:
    The method.

  Raises:
    ValueError: if the view is unknown.

  Reference: Tarvainen and Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780.
  """
  check_choice("student_view", student_view, ("weak", "strong"))

  def loss_fn(key, step):
    del key
    labeled, unlabeled = step.batch.labeled, step.batch.unlabeled
    student = [views.first(student_view) for views in (labeled, unlabeled)]
    objective = mean_teacher_objective(
      step.apply_fn,
      step.params,
      step.average,
      labeled.weak[0],
      step.batch.targets,
      jnp.concatenate(student),
      jnp.concatenate([labeled.clean, unlabeled.clean]),
      weight=step.value_of(weight),
    )
    return _loss(objective, len(labeled.clean))

  return SemiSupervisedMethod(loss_fn)


def co_training_method(
  *,
  epsilon: chex.Numeric = 0.02,
  agreement_weight: Weight = 1.0,
  difference_weight: Weight = 0.5,
  split_labeled: bool = False,
) -> SemiSupervisedMethod:
  """Deep co-training; parameters are a pair, and the mean of both predictions predicts.

  Args:
    epsilon: as in `co_training_objective`.
    agreement_weight: likewise.
    difference_weight: likewise.
    split_labeled: whether each network learns from half of the labeled rows, which then must be
      even in number; else from all, in a weak view of its own.

  Returns:
    The method; `init` of the training takes a pair of parameters, initialized differently.

  Raises:
    ValueError: if `epsilon` < 0; on a call, if the labeled rows cannot be halved.

  Reference: Qiao et al., ECCV 2018, https://arxiv.org/abs/1803.05984.
  """
  check_range("epsilon", epsilon, "[0, inf)")

  def loss_fn(key, step):
    del key
    views, targets = step.batch.labeled.weak, step.batch.targets
    labeled, targets = (views[0], views[-1]), (targets, targets)
    if split_labeled:
      if len(targets[0]) % 2:
        raise ValueError(
          f"split_labeled needs an even number of labeled rows, got {len(views[0])}."
        )
      half = len(targets[0]) // 2
      labeled, targets = ((x[0][:half], x[1][half:]) for x in (labeled, targets))
    objective = co_training_objective(
      step.apply_fn,
      step.params,
      labeled,
      targets,
      step.batch.unlabeled.weak[0],
      epsilon=epsilon,
      agreement_weight=step.value_of(agreement_weight),
      difference_weight=step.value_of(difference_weight),
    )
    return _loss(objective)

  return SemiSupervisedMethod(loss_fn, predict_fn=_predict_by_pair)


def _predict_by_pair(
  apply_fn: ApplyFn, params_pair: tuple[chex.ArrayTree, chex.ArrayTree], inputs: chex.Array
) -> jax.Array:
  """Logarithm of the mean prediction, up to a constant."""
  logits = (as_accumulator(apply_fn(params, inputs)) for params in params_pair)
  return jnp.logaddexp(*map(jax.nn.log_softmax, logits))


def mixmatch_method(
  *, weight: Weight = 1.0, temperature: chex.Numeric = 0.5, alpha: chex.Numeric = 0.75
) -> SemiSupervisedMethod:
  """MixMatch, with all weak views of the batch.

  Args:
    weight: of the unlabeled loss, which should rise: `lambda step: linear_rampup(step, 16000)`.
    temperature: as in `mixmatch_objective`.
    alpha: likewise.

  Returns:
    The method.

  Reference: Berthelot et al., NeurIPS 2019, https://arxiv.org/abs/1905.02249.
  """

  def loss_fn(key, step):
    batch = step.batch
    objective = mixmatch_objective(
      key,
      step.apply_fn,
      step.params,
      batch.labeled.weak[0],
      batch.targets,
      batch.unlabeled.weak,
      weight=step.value_of(weight),
      temperature=temperature,
      alpha=alpha,
    )
    return _loss(objective)

  return SemiSupervisedMethod(loss_fn)


def remixmatch_method(
  *,
  num_classes: int,
  history: int = 128,
  weight: Weight = 1.5,
  strong_weight: Weight = 0.5,
  temperature: chex.Numeric = 0.5,
  alpha: chex.Numeric = 0.75,
) -> SemiSupervisedMethod:
  """ReMixMatch without rotations, with all strong views of the batch.

  Args:
    num_classes: number k of classes.
    history: batches whose targets and predictions are compared, at least 1.
    weight: as in `remixmatch_objective`.
    strong_weight: likewise.
    temperature: likewise.
    alpha: likewise.

  Returns:
    The method; it remembers `LabelQueues`.

  Raises:
    ValueError: if a count is below 1.

  Reference: Berthelot et al., ICLR 2020, https://arxiv.org/abs/1911.09785.
  """
  queue = distribution_queue(num_classes=num_classes, history=history)

  def loss_fn(key, step):
    batch, weak = step.batch, step.batch.unlabeled.weak[0]
    targets, label_mean = queue.update(step.memory.targets, batch.targets)
    probs = jax.nn.softmax(step.forward(weak))
    guesses, guess_mean = queue.update(step.memory.guesses, probs)
    objective = remixmatch_objective(
      key,
      step.apply_fn,
      step.params,
      batch.labeled.strong[0],
      batch.targets,
      weak,
      batch.unlabeled.strong,
      label_mean,
      guess_mean,
      weight=step.value_of(weight),
      strong_weight=step.value_of(strong_weight),
      temperature=temperature,
      alpha=alpha,
    )
    return _loss(objective, memory=LabelQueues(targets, guesses))

  return SemiSupervisedMethod(loss_fn, lambda: LabelQueues(queue.init(), queue.init()))


def fixmatch_method(
  *,
  weight: Weight = 1.0,
  threshold: chex.Numeric = 0.95,
  mixup_alpha: chex.Numeric | None = None,
  mix_targets: bool = True,
) -> SemiSupervisedMethod:
  """FixMatch.

  Args:
    weight: as in `fixmatch_objective`.
    threshold: likewise.
    mixup_alpha: likewise; needs as many labeled as unlabeled rows.
    mix_targets: likewise.

  Returns:
    The method.

  Raises:
    ValueError: if `threshold` lies outside [0, 1].

  Reference: Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685.
  """
  check_range("threshold", threshold, "[0, 1]")

  def loss_fn(key, step):
    batch = step.batch
    objective = fixmatch_objective(
      key,
      step.apply_fn,
      step.params,
      batch.labeled.weak[0],
      batch.targets,
      batch.unlabeled.weak[0],
      batch.unlabeled.strong[0],
      weight=step.value_of(weight),
      threshold=threshold,
      mixup_alpha=mixup_alpha,
      mix_targets=mix_targets,
    )
    return _loss(objective, thresholds=threshold)

  return SemiSupervisedMethod(loss_fn)
