"""Methods that learn guesses of unlabeled rows, with thresholds or weights of their own."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_range,
  reaches,
  weighted,
)
from jaxlab.algorithms.sample_selection import (
  flexmatch_select,
  flexmatch_status,
  flexmatch_thresholds,
)
from jaxlab.algorithms.schedules import QueueState, distribution_queue, ratio_ema
from jaxlab.algorithms.semi_supervised import SemiSupervisedLoss, SemiSupervisedMethod, Weight
from jaxlab.algorithms.semi_supervised_objectives import ApplyFn
from jaxlab.augment.soft_labels import align_distribution
from jaxlab.losses.classification import soft_cross_entropy
from jaxlab.losses.semi_supervised import (
  class_threshold_loss,
  fixmatch_loss,
  shrunk_class_loss,
  soft_pseudo_label_loss,
  weighted_pseudo_label_loss,
)


class ShrinkMemory(NamedTuple):
  """What `shrinkmatch_method` remembers: recent predictions, and the share of certain rows."""

  queue: QueueState
  certain_share: chex.Array


class PseudoLabelMemory(NamedTuple):
  """Labels and weights of all unlabeled rows, `[n]` each."""

  labels: chex.Array
  weights: chex.Array


def flexmatch_method(
  num_examples: int,
  *,
  num_classes: int,
  weight: Weight = 1.0,
  threshold: chex.Numeric = 0.95,
  warmup: bool = True,
) -> SemiSupervisedMethod:
  """FlexMatch: FixMatch with lower thresholds for classes that are learned less well.

  Args:
    num_examples: number n of unlabeled rows, of which `batch.indices` tells which are seen.
    num_classes: number k of classes, at least 2.
    weight: of the unlabeled loss.
    threshold: that of the best learned class, in (0, 1].
    warmup: as in `flexmatch_status`.

  Returns:
    The method; it remembers the last confident guess of every row, int32 `[n]`, -1 without one.

  Raises:
    ValueError: if a number is out of range; on a call, if the batch has no indices.

  Reference: Zhang et al., FlexMatch, NeurIPS 2021, https://arxiv.org/abs/2110.08263.
  """
  check_at_least(1, num_examples=num_examples)
  check_at_least(2, num_classes=num_classes)
  check_range("threshold", threshold, "(0, 1]")

  def loss_fn(key, step):
    del key
    unlabeled, indices = step.batch.unlabeled, step.indices_below(num_examples)
    status = flexmatch_status(step.memory, num_classes=num_classes, warmup=warmup)
    thresholds = flexmatch_thresholds(status, threshold=threshold)
    weak = jax.lax.stop_gradient(step.forward(unlabeled.weak[0]))
    strong = step.forward(unlabeled.strong[0])
    probs = jax.nn.softmax(weak)
    values = class_threshold_loss(strong, weak, thresholds)
    return SemiSupervisedLoss(
      step.supervised_loss(),
      step.value_of(weight) * jnp.mean(values),
      probs,
      reaches(jnp.max(probs, axis=-1), thresholds[jnp.argmax(probs, axis=-1)]),
      fixmatch_loss(strong, weak, threshold=0.0),
      thresholds,
      flexmatch_select(step.memory, indices, probs, threshold=threshold),
    )

  return SemiSupervisedMethod(loss_fn, lambda: jnp.full(num_examples, -1, jnp.int32))


def shrinkmatch_method(
  auxiliary_fn: ApplyFn | None,
  *,
  num_classes: int,
  weight: Weight = 1.0,
  threshold: chex.Numeric = 0.95,
  history: int = 32,
  decay: chex.Numeric = 0.999,
  uncertain_fn: Callable[..., chex.Array] = shrunk_class_loss,
  uncertain_weight: Weight | None = None,
) -> SemiSupervisedMethod:
  """ShrinkMatch: certain rows teach their soft guess, the others what they are not.

  Guesses are aligned with the uniform distribution.

  Args:
    auxiliary_fn: `(params, inputs) -> logits` of the auxiliary head; None without one, which is
      FixMatch with soft and aligned guesses.
    num_classes: number k of classes.
    weight: of the loss of certain rows.
    threshold: from which a row is certain, in (0, 1].
    history: batches whose mean prediction is aligned, at least 1.
    decay: of the running share (`ratio_ema`), in [0, 1).
    uncertain_fn: `(auxiliary logits, probs, *, threshold) -> losses [nu]` of the other rows.
    uncertain_weight: of their loss; None for the running share of certain rows.

  Returns:
    The method; it remembers `ShrinkMemory`. Rows count if they are certain, or have a loss of the
    other kind.

  Raises:
    ValueError: if a number is out of range.

  Reference: Yang et al., Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning,
  ICCV 2023, https://arxiv.org/abs/2308.06777.
  """
  check_range("threshold", threshold, "(0, 1]")
  check_range("decay", decay, "[0, 1)")
  queue = distribution_queue(num_classes=num_classes, history=history)

  def loss_fn(key, step):
    del key
    unlabeled = step.batch.unlabeled
    probs = jax.lax.stop_gradient(jax.nn.softmax(step.forward(unlabeled.weak[0])))
    state, mean = queue.update(step.memory.queue, probs)
    aligned = align_distribution(probs, mean, jnp.full_like(mean, 1 / num_classes), epsilon=0.0)
    logits = step.forward(unlabeled.strong[0])
    used = reaches(jnp.max(aligned, axis=-1), threshold)
    loss = step.value_of(weight) * jnp.mean(
      soft_pseudo_label_loss(logits, aligned, threshold=threshold)
    )
    share = ratio_ema(step.memory.certain_share, jnp.mean(used), decay=decay)
    if auxiliary_fn is not None:
      others = uncertain_fn(
        auxiliary_fn(step.params, unlabeled.strong[0]), aligned, threshold=threshold
      )
      trust = share if uncertain_weight is None else step.value_of(uncertain_weight)
      loss += trust * jnp.mean(others)
      used = jnp.maximum(used, (others != 0).astype(used.dtype))
    rows = soft_cross_entropy(logits, aligned)
    supervised = step.supervised_loss()
    memory = ShrinkMemory(state, share)
    return SemiSupervisedLoss(supervised, loss, aligned, used, rows, threshold, memory)

  return SemiSupervisedMethod(loss_fn, lambda: ShrinkMemory(queue.init(), jnp.array(jnp.nan)))


def pseudo_label_method(
  labels: chex.Array, weights: chex.Array, *, weight: Weight = 1.0
) -> SemiSupervisedMethod:
  """Learns labels and weights that are given for every unlabeled row, such as transferred ones.

  For another round with other labels, replace `state.memory` by another `PseudoLabelMemory` of the
  same shapes, which compiles nothing.

  Args:
    labels: guessed class of every unlabeled row, int `[n]`; `batch.indices` tells which are seen.
    weights: how far each is trusted, `[n]`.
    weight: of the unlabeled loss.

  Returns:
    The method; it remembers `PseudoLabelMemory`.

  Raises:
    ValueError: if shapes do not agree; on a call, if the batch has no indices.

  Reference: Du et al., Semi-Supervised Learning via Weight-aware Distillation under Class
  Distribution Mismatch, ICCV 2023, https://arxiv.org/abs/2308.11874.
  """
  check_arrays(labels=(labels, "int [n]"), weights=(weights, "[n]"))

  def init_fn():
    return PseudoLabelMemory(jnp.asarray(labels, jnp.int32), as_accumulator(weights))

  def loss_fn(key, step):
    del key
    memory = step.memory
    indices = step.indices_below(len(memory.labels))
    # A row that there is not counts as NaN.
    labels = memory.labels.at[indices].get(mode="clip")
    trust = memory.weights.at[indices].get(mode="fill", fill_value=jnp.nan)
    logits = step.forward(step.batch.unlabeled.weak[0])
    values = weighted_pseudo_label_loss(logits, labels, jnp.ones_like(trust))
    return SemiSupervisedLoss(
      step.supervised_loss(),
      step.value_of(weight) * jnp.mean(weighted(jax.lax.stop_gradient(trust), values)),
      jax.nn.one_hot(labels, step.batch.targets.shape[-1]),
      trust,
      values,
      memory=memory,
    )

  return SemiSupervisedMethod(loss_fn, init_fn)
