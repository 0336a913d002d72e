"""Mean teachers at test time: a student that learns from its own moving average."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range, is_known
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.algorithms.online_adaptation import (
  ForwardFn,
  OnlineAdapter,
  accept_step,
  guarded_step,
  init_optimizer,
  logits_of,
)
from jaxlab.losses.adaptation import (
  multiview_contrastive_loss,
  nearest_prototypes,
  symmetric_cross_entropy,
)
from jaxlab.weights.ema import ema_update

AugmentFn = Callable[[chex.PRNGKey, chex.Array], chex.Array]


class MeanTeacherState(NamedTuple):
  """State of `robust_mean_teacher`: parameters of student, teacher and projector."""

  student: chex.ArrayTree
  teacher: chex.ArrayTree
  projector: chex.ArrayTree
  opt_state: optax.OptState


class ContinualMeanTeacherState(NamedTuple):
  """State of `continual_mean_teacher`: parameters of student, teacher and source model."""

  student: chex.ArrayTree
  teacher: chex.ArrayTree
  source: chex.ArrayTree
  opt_state: optax.OptState


def robust_mean_teacher(
  forward_fn: ForwardFn,
  augment_fn: AugmentFn,
  optimizer: optax.GradientTransformation,
  *,
  prototypes: chex.Array,
  project_fn: Callable[[chex.ArrayTree, chex.Array], chex.Array],
  alpha: chex.Numeric = 0.5,
  decay: chex.Numeric = 0.999,
  temperature: chex.Numeric = 0.1,
  self_training_weight: chex.Numeric = 1.0,
  contrastive_weight: chex.Numeric = 1.0,
  source_weight: chex.Numeric = 0.0,
) -> OnlineAdapter:
  """Mean teacher with a symmetric loss, and test features held near the source's prototypes.

  The student learns the teacher's predictions of the batch, on the batch and on an augmentation;
  a contrastive term pulls its features toward the nearest class prototype of the source; source
  data may be replayed. The prediction is the sum of both models' logits before the step.

  Args:
    forward_fn: `(params, inputs) -> outputs` with `features` `[b, d]` and `logits` `[b, k]`;
      normalization uses the statistics of the batch it sees.
    augment_fn: `(key, inputs) -> inputs`.
    optimizer: steps all parameters of student and projector.
    prototypes: mean source feature of each class, `[k, d]`, as `class_prototypes` gives it.
    project_fn: `(projector_params, features) -> features`, before the contrastive loss.
    alpha: weight of the reverse cross-entropy, in [0, 1]; 0 is the ordinary mean teacher.
    decay: share of the old teacher in the new one, in [0, 1].
    temperature: of the contrastive loss, > 0.
    self_training_weight: weight of the symmetric cross-entropy.
    contrastive_weight: weight of the contrastive loss; at 0 it is not computed.
    source_weight: weight of the cross-entropy on source data.

  Returns:
    An `OnlineAdapter` with `init(params, projector_params) -> MeanTeacherState` and
    `update(key, state, inputs, source_batch=None)`, where `source_batch` is (inputs, labels).

  Raises:
    ValueError: if `alpha`, `decay` or `temperature` is out of range, a weight is negative, or
      `prototypes` is not `[k, d]`; on a call, if `source_weight` > 0 and there is no
      `source_batch`.

  Reference: Döbler et al., Robust Mean Teacher for Continual and Gradual Test-Time Adaptation,
  CVPR 2023, section 3, https://arxiv.org/abs/2211.13081.
  """
  check_range("alpha", alpha, "[0, 1]")
  check_range("decay", decay, "[0, 1]")
  check_range("temperature", temperature, "(0, inf)")
  check_range("self_training_weight", self_training_weight, "[0, inf)")
  check_range("contrastive_weight", contrastive_weight, "[0, inf)")
  check_range("source_weight", source_weight, "[0, inf)")
  check_arrays(prototypes=(prototypes, "[k, d]"))

  def init(params, projector_params):
    params, projector = jax.tree.map(jnp.asarray, (params, projector_params))
    return MeanTeacherState(
      params, params, projector, init_optimizer(optimizer, (params, projector))
    )

  def contrast(projector, features, augmented):
    nearest = jnp.asarray(prototypes)[nearest_prototypes(features, prototypes)]
    views = jnp.stack([jax.lax.stop_gradient(nearest), features, augmented], axis=1)
    flat = project_fn(projector, views.reshape(-1, views.shape[-1]))
    views = flat.reshape(*views.shape[:2], -1)
    return jnp.mean(multiview_contrastive_loss(views, temperature=temperature))

  def update(key, state, inputs, source_batch=None):
    if source_batch is None and not _is_zero(source_weight):
      raise ValueError(f"source_weight={source_weight} needs a source_batch, got None.")
    teacher = logits_of(forward_fn(state.teacher, inputs))
    augmented_inputs = augment_fn(key, inputs)

    def objective(trained):
      student, projector = trained
      outputs, augmented = forward_fn(student, inputs), forward_fn(student, augmented_inputs)
      loss_fn = partial(symmetric_cross_entropy, teacher_logits=teacher, alpha=alpha)
      agreement = (loss_fn(logits_of(outputs)) + loss_fn(logits_of(augmented))) / 2
      loss = self_training_weight * jnp.mean(agreement)
      if not _is_zero(contrastive_weight):
        loss += contrastive_weight * contrast(projector, outputs.features, augmented.features)
      if not _is_zero(source_weight):
        source_inputs, labels = source_batch
        logits = as_accumulator(logits_of(forward_fn(student, source_inputs)))
        replay = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss += source_weight * jnp.mean(replay)
      return loss, logits_of(outputs)

    seen = inputs if _is_zero(source_weight) else (inputs, source_batch)
    step = guarded_step(
      objective, optimizer, (state.student, state.projector), state.opt_state, inputs=seen
    )
    student, projector = step.params
    new_state = MeanTeacherState(
      student, ema_update(state.teacher, student, decay=decay), projector, step.opt_state
    )
    logits = step.aux + teacher
    return accept_step(step, state, new_state, logits=logits, selected=jnp.ones(logits.shape[0]))

  return OnlineAdapter(init, update)


def _is_zero(weight: chex.Numeric) -> bool:
  """Whether a weight is a concrete 0, so that its term need not be computed."""
  return is_known(weight) and not weight


def mean_teacher_warm_up(
  forward_fn: ForwardFn,
  optimizer_with_schedule: optax.GradientTransformation,
  state: Any,
  source_inputs: chex.Array,
  *,
  alpha: chex.Numeric = 0.5,
  decay: chex.Numeric = 0.999,
) -> Any:
  """Adapts student and teacher to unlabeled source batches before the stream begins.

  The student is trained toward its teacher with batch statistics, which the source model has not
  been used with before.

  Args:
    forward_fn: `(params, inputs) -> outputs`: logits, or an object with `logits`.
    optimizer_with_schedule: its learning rate should rise linearly to that of the stream,
      `lr * (i + 1) / n` at step i of n. Its state is initialized here and dropped at the end; the
      one in `state` does not change.
    state: a state with `student` and `teacher`, of any mean teacher here.
    source_inputs: `[n, b, ...]`.
    alpha: as in `symmetric_cross_entropy`.
    decay: as in `ema_update`.

  Returns:
    The state, with new student and teacher. Batches with a loss or gradient that is not finite are
    left out.

  Raises:
    ValueError: if `alpha` or `decay` lies outside [0, 1].

  Reference: Döbler et al., CVPR 2023, section 4, https://arxiv.org/abs/2211.13081.
  """
  check_range("alpha", alpha, "[0, 1]")
  check_range("decay", decay, "[0, 1]")
  student, teacher = _warm_up(
    forward_fn,
    optimizer_with_schedule,
    state.student,
    state.teacher,
    jnp.asarray(source_inputs),
    alpha,
    decay,
  )
  return state._replace(student=student, teacher=teacher)


@compiled_once
def _warm_up(forward_fn, optimizer, student, teacher, source_inputs, alpha, decay):
  """The new student and teacher."""

  def step(carry, inputs):
    student, teacher, opt_state = carry
    target = logits_of(forward_fn(teacher, inputs))

    def objective(params):
      logits = logits_of(forward_fn(params, inputs))
      return jnp.mean(symmetric_cross_entropy(logits, target, alpha=alpha)), logits

    taken = guarded_step(objective, optimizer, student, opt_state, inputs=inputs)
    teacher = ema_update(teacher, taken.params, decay=decay)
    new = taken.params, teacher, taken.opt_state
    carry, _ = accept_step(taken, carry, new, logits=taken.aux, selected=jnp.ones(target.shape[0]))
    return carry, None

  start = student, teacher, init_optimizer(optimizer, student)
  start = varying_carry(step, start, source_inputs)
  (student, teacher, _), _ = jax.lax.scan(step, start, source_inputs)
  return student, teacher


def continual_mean_teacher(
  forward_fn: ForwardFn,
  augment_fn: AugmentFn,
  optimizer: optax.GradientTransformation,
  *,
  decay: chex.Numeric = 0.999,
  num_augmentations: int = 32,
  confidence_threshold: chex.Numeric = 0.92,
  restore_prob: chex.Numeric = 0.01,
) -> OnlineAdapter:
  """Mean teacher that averages augmentations if uncertain and restores source parameters.

  Args:
    forward_fn: `(params, inputs) -> outputs`: logits `[b, k]`, or an object with `logits`.
    augment_fn: `(key, inputs) -> inputs`.
    optimizer: steps all parameters of the student.
    decay: share of the old teacher in the new one, in [0, 1].
    num_augmentations: augmentations whose logits the teacher averages.
    confidence_threshold: the teacher averages augmentations if the source model's mean confidence
      in the batch is below this.
    restore_prob: probability that an element of the student's parameters returns to its source
      value after a step, in [0, 1].

  Returns:
    An `OnlineAdapter` with `init(params) -> ContinualMeanTeacherState`; it predicts the teacher's
    logits.

  Raises:
    ValueError: if `decay` or `restore_prob` lies outside [0, 1], `confidence_threshold` is negative
      or `num_augmentations` < 1.

  Reference: Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022, section 3,
  https://arxiv.org/abs/2203.13591.
  """
  check_range("decay", decay, "[0, 1]")
  check_range("confidence_threshold", confidence_threshold, "[0, inf)")
  check_range("restore_prob", restore_prob, "[0, 1]")
  check_at_least(1, num_augmentations=num_augmentations)

  def init(params):
    params = jax.tree.map(jnp.asarray, params)
    return ContinualMeanTeacherState(params, params, params, init_optimizer(optimizer, params))

  def teach(key, state, inputs):
    """The teacher's logits."""
    anchor = as_accumulator(logits_of(forward_fn(state.source, inputs)))
    confidence = jnp.mean(jnp.max(jax.nn.softmax(anchor), axis=-1))

    def plain():
      return as_accumulator(logits_of(forward_fn(state.teacher, inputs)))

    def averaged():
      def add(total, key):
        return total + logits_of(forward_fn(state.teacher, augment_fn(key, inputs))), None

      keys = jax.random.split(key, num_augmentations)
      return jax.lax.scan(add, jnp.zeros_like(anchor), keys)[0] / num_augmentations

    return jax.lax.cond(confidence < confidence_threshold, averaged, plain)

  def restore(key, student, source):
    leaves, structure = jax.tree.flatten(student)
    keys = jax.random.split(key, len(leaves))

    def back(key, leaf, origin):
      return jnp.where(jax.random.bernoulli(key, restore_prob, leaf.shape), origin, leaf)

    return structure.unflatten(map(back, keys, leaves, jax.tree.leaves(source)))

  @compiled_once
  def update(key, state, inputs):
    augment_key, restore_key = jax.random.split(key)
    target = teach(augment_key, state, inputs)

    def objective(params):
      logits = logits_of(forward_fn(params, inputs))
      return jnp.mean(symmetric_cross_entropy(logits, target, alpha=0.0)), None

    step = guarded_step(objective, optimizer, state.student, state.opt_state, inputs=inputs)
    new_state = ContinualMeanTeacherState(
      restore(restore_key, step.params, state.source),
      ema_update(state.teacher, step.params, decay=decay),
      state.source,
      step.opt_state,
    )
    return accept_step(step, state, new_state, logits=target, selected=jnp.ones(target.shape[0]))

  return OnlineAdapter(init, update)
