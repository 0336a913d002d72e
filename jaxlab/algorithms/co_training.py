"""Objectives of semi-supervised learning with two networks: a mean teacher, deep co-training."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range
from jaxlab.algorithms.semi_supervised_objectives import ApplyFn, Objective, objective_parts
from jaxlab.augment.adversarial import fgsm
from jaxlab.losses.classification import soft_cross_entropy
from jaxlab.losses.semi_supervised import (
  consistency_mse_loss,
  js_divergence_loss,
  view_difference_loss,
)


def mean_teacher_objective(
  apply_fn: ApplyFn,
  params: chex.ArrayTree,
  teacher_params: chex.ArrayTree,
  labeled: chex.Array,
  targets: chex.Array,
  student_inputs: chex.Array,
  teacher_inputs: chex.Array,
  *,
  weight: chex.Numeric,
) -> Objective:
  """Mean teacher: a student agrees with the moving average of itself on all rows.

  Args:
    apply_fn: `(params, inputs) -> logits`.
    params: the student's parameters.
    teacher_params: the teacher's; no gradient flows into them.
    labeled: views of labeled rows, `[nl, ...]`.
    targets: their labels, `[nl, k]`.
    student_inputs: the student's view of labeled and unlabeled rows, stacked, `[n, ...]`.
    teacher_inputs: the teacher's view of the same rows, `[n, ...]`.
    weight: of the consistency, at least 0; it should rise (`exponential_rampup`).

  Returns:
    The loss and its parts; `guesses` are the teacher's, of all n rows, and so are `used` and
    `row_losses`.

  Raises:
    ValueError: if `weight` < 0, or shapes do not agree.

  Reference: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017,
  https://arxiv.org/abs/1703.01780.
  """
  check_range("weight", weight, "[0, inf)")
  check_arrays(
    labeled=(labeled, "[nl, ...]"),
    targets=(targets, "[nl, k]"),
    student_inputs=(student_inputs, "[n, ...]"),
    teacher_inputs=(teacher_inputs, "[n, ...]"),
  )
  supervised = jnp.mean(soft_cross_entropy(apply_fn(params, labeled), targets))
  teacher = jax.lax.stop_gradient(as_accumulator(apply_fn(teacher_params, teacher_inputs)))
  rows = consistency_mse_loss(apply_fn(params, student_inputs), teacher)
  used = jnp.ones_like(rows)
  return objective_parts(supervised, weight * jnp.mean(rows), jax.nn.softmax(teacher), used, rows)


def co_training_objective(
  apply_fn: ApplyFn,
  params_pair: tuple[chex.ArrayTree, chex.ArrayTree],
  labeled_pair: tuple[chex.Array, chex.Array],
  targets_pair: tuple[chex.Array, chex.Array],
  unlabeled: chex.Array,
  *,
  epsilon: chex.Numeric = 0.02,
  agreement_weight: chex.Numeric = 1.0,
  difference_weight: chex.Numeric = 0.5,
) -> Objective:
  """Deep co-training: two networks agree on unlabeled rows, and resist each other's attacks.

  Args:
    apply_fn: `(params, inputs) -> logits`.
    params_pair: parameters of both networks, initialized differently.
    labeled_pair: a batch of labeled rows for each, `[nl, ...]`; best not the same.
    targets_pair: their labels, `[nl, k]`.
    unlabeled: unlabeled rows, `[nu, ...]`.
    epsilon: size of the adversarial step, at least 0; no gradient flows through the examples.
    agreement_weight: of the Jensen-Shannon divergence, at least 0.
    difference_weight: of the loss on adversarial examples, at least 0.

  Returns:
    The loss and its parts; `guesses` are the mean predictions, and `row_losses` the divergences.

  Raises:
    ValueError: if a number is negative, or shapes do not agree.

  Reference: Qiao et al., Deep Co-Training for Semi-Supervised Image Recognition, ECCV 2018,
  https://arxiv.org/abs/1803.05984.
  """
  for name, value in (
    ("epsilon", epsilon),
    ("agreement_weight", agreement_weight),
    ("difference_weight", difference_weight),
  ):
    check_range(name, value, "[0, inf)")
  for labeled, targets in zip(labeled_pair, targets_pair):
    check_arrays(labeled_pair=(labeled, "[nl, ...]"), targets_pair=(targets, "[nl, k]"))
  check_arrays(unlabeled=(unlabeled, "[nu, ...]"))
  unlabeled = jnp.asarray(unlabeled)
  num_labeled, num_rows = len(labeled_pair[0]), len(labeled_pair[0]) + len(unlabeled)
  inputs = [jnp.concatenate([jnp.asarray(x), unlabeled]) for x in labeled_pair]
  logits = [as_accumulator(apply_fn(p, x)) for p, x in zip(params_pair, inputs)]
  supervised = sum(
    jnp.mean(soft_cross_entropy(z[:num_labeled], t)) for z, t in zip(logits, targets_pair)
  )
  rows = js_divergence_loss(logits[0][num_labeled:], logits[1][num_labeled:])
  difference = 0.0
  for mine, other in ((0, 1), (1, 0)):
    own = logits[mine][num_labeled:]
    guess = jax.nn.one_hot(jnp.argmax(own, axis=-1), own.shape[-1])
    labels = jnp.concatenate([as_accumulator(targets_pair[mine]), guess])
    fixed = jax.lax.stop_gradient(params_pair[mine])

    def attacked(x, labels, fixed=fixed):
      return soft_cross_entropy(apply_fn(fixed, x), labels)

    adversarial = fgsm(attacked, inputs[mine], labels, epsilon=epsilon, bounds=None)
    values = view_difference_loss(logits[mine], apply_fn(params_pair[other], adversarial))
    difference += jnp.sum(values) / num_rows
  agreement = agreement_weight * jnp.mean(rows)
  guesses = (jax.nn.softmax(logits[0][num_labeled:]) + jax.nn.softmax(logits[1][num_labeled:])) / 2
  return objective_parts(
    supervised, agreement + difference_weight * difference, guesses, jnp.ones_like(rows), rows
  )
