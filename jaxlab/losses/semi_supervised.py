"""Losses and weights of unlabeled examples, with the network's own guesses as targets."""

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
  reaches,
  weighted,
)
from jaxlab.losses.adaptation import softmax_entropy
from jaxlab.losses.classification import soft_cross_entropy

_MIN_MEAN_PROB = 1e-8


class ShrunkSpace(NamedTuple):
  """Which classes are left when those that compete with the top class are removed.

  Attributes:
    num_removed: number of removed classes, int32 `[...]`; 0 on certain rows.
    keep: whether a class is left, bool `[..., k]`.
    confidence: probability of the top class among those left, `[...]`.
    reached: whether it is at least the threshold, bool `[...]`.
  """

  num_removed: chex.Array
  keep: chex.Array
  confidence: chex.Array
  reached: chex.Array


def fixmatch_loss(
  logits: chex.Array, weak_logits: chex.Array, *, threshold: chex.Numeric = 0.95
) -> jax.Array:
  """Cross-entropy of a strong view to the class that a weak view predicts with confidence.

  Rows where the weak view is not confident have loss 0. Take the mean over all rows, not over the
  confident ones, so that the loss gains weight as the network learns.

  Args:
    logits: scores of the strongly augmented view, `[..., k]`.
    weak_logits: scores of the weakly augmented view, `[..., k]`; no gradient flows into them.
    threshold: smallest probability of the guessed class that counts, in [0, 1].

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `threshold` lies outside [0, 1].

  Reference: Sohn et al., FixMatch, NeurIPS 2020, equation 4, https://arxiv.org/abs/2001.07685.
  """
  check_range("threshold", threshold, "[0, 1]")
  check_arrays(logits=(logits, "[..., k]"), weak_logits=(weak_logits, "[..., k]"))
  logits, weak_logits = as_accumulator(logits, weak_logits)
  values, confidence, _ = _guess(logits, weak_logits)
  return weighted(reaches(confidence, threshold), values)


def class_threshold_loss(
  logits: chex.Array, weak_logits: chex.Array, thresholds: chex.Array
) -> jax.Array:
  """The loss of FixMatch with a threshold of its own for every class.

  A class that is learned late gives guesses of low confidence; a lower threshold lets it take part.

  Args:
    logits: scores of the strongly augmented view, `[..., k]`.
    weak_logits: scores of the weakly augmented view, `[..., k]`; no gradient flows into them.
    thresholds: smallest probability that counts where the class is guessed, `[k]`, in [0, 1]; such
      as `algorithms.flexmatch_thresholds` gives them.

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known threshold lies outside [0, 1].

  Reference: Zhang et al., FlexMatch, NeurIPS 2021, equation 7, https://arxiv.org/abs/2110.08263.
  """
  check_range("thresholds", thresholds, "[0, 1]")
  check_arrays(
    logits=(logits, "[..., k]"),
    weak_logits=(weak_logits, "[..., k]"),
    thresholds=(thresholds, "[k]"),
  )
  logits, weak_logits, thresholds = as_accumulator(logits, weak_logits, thresholds)
  values, confidence, guess = _guess(logits, weak_logits)
  return weighted(reaches(confidence, thresholds[guess]), values)


def _guess(logits, weak_logits) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Cross-entropy to the class that the weak view predicts, its probability, and the class."""
  weak_logits = jax.lax.stop_gradient(weak_logits)
  confidence = jnp.max(jax.nn.softmax(weak_logits, axis=-1), axis=-1)
  guess = jnp.argmax(weak_logits, axis=-1)
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  values = -jnp.take_along_axis(log_probs, guess[..., None], axis=-1)[..., 0]
  return values, confidence, guess


def soft_pseudo_label_loss(
  logits: chex.Array, probs: chex.Array, *, threshold: chex.Numeric = 0.95
) -> jax.Array:
  """Cross-entropy of a strong view to the whole prediction of a confident weak view.

  Args:
    logits: scores of the strongly augmented view, `[..., k]`.
    probs: probabilities of the weakly augmented view, `[..., k]`; no gradient flows into them.
    threshold: smallest probability of the top class that counts, in (0, 1].

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider; 0 where the weak view is not confident.

  Raises:
    ValueError: if `threshold` lies outside (0, 1].

  Reference: Yang et al., Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning,
  ICCV 2023, https://arxiv.org/abs/2308.06777.
  """
  check_range("threshold", threshold, "(0, 1]")
  check_arrays(logits=(logits, "[..., k]"), probs=(probs, "[..., k]"))
  logits, probs = as_accumulator(logits, probs)
  probs = jax.lax.stop_gradient(probs)
  confident = reaches(jnp.max(probs, axis=-1), threshold)
  return weighted(confident, soft_cross_entropy(logits, probs))


def shrink_class_space(probs: chex.Array, *, threshold: chex.Numeric = 0.95) -> ShrunkSpace:
  """Removes the classes that compete with the top class until it is certain.

  Classes are removed in the order of their probability, the second first, until the top class has
  the threshold's share of what is left. At most k - 2 can go: the top class and the least likely
  one stay. With fewer than three classes nothing can be removed.

  Args:
    probs: probabilities, `[..., k]`; of equal ones the first ranks higher.
    threshold: share from which a row counts as certain, in (0, 1].

  Returns:
    A `ShrunkSpace`.

  Raises:
    ValueError: if `threshold` lies outside (0, 1].

  Reference: Yang et al., ICCV 2023, section 3.2, https://arxiv.org/abs/2308.06777.
  """
  check_range("threshold", threshold, "(0, 1]")
  check_arrays(probs=(probs, "[..., k]"))
  probs = as_accumulator(probs)
  num_classes = probs.shape[-1]
  check_at_least(1, **{"the number of classes of probs": num_classes})
  order = jnp.argsort(-probs, axis=-1, stable=True)
  ordered = jnp.take_along_axis(probs, order, axis=-1)
  tails = jnp.flip(jnp.cumsum(jnp.flip(ordered, axis=-1), axis=-1), axis=-1)
  # NaN ranks last; the sum of the row has it.
  top = jnp.where(jnp.isnan(tails[..., 0]), jnp.nan, ordered[..., 0])
  certain = top >= threshold
  confidence, num_removed = top, jnp.zeros(top.shape, jnp.int32)
  if num_classes > 2:
    shares = top[..., None] / (top[..., None] + tails[..., 2:])
    enough = shares >= threshold
    first = jnp.where(jnp.any(enough, axis=-1), jnp.argmax(enough, axis=-1), num_classes - 3)
    share = jnp.take_along_axis(shares, first[..., None], axis=-1)[..., 0]
    confidence = jnp.where(certain, top, share)
    num_removed = jnp.where(certain, 0, first + 1).astype(jnp.int32)
  ranks = jnp.argsort(order, axis=-1)
  keep = (ranks == 0) | (ranks > num_removed[..., None])
  return ShrunkSpace(num_removed, keep, confidence, confidence >= threshold)


def shrunk_class_loss(
  logits: chex.Array, probs: chex.Array, *, threshold: chex.Numeric = 0.95
) -> jax.Array:
  """Cross-entropy of uncertain rows to their top class, among the classes that are left.

  The classes that the weak view confuses with its top class are removed (`shrink_class_space`), so
  that the row teaches what it is not, without a decision between those it may be. Add it to a loss
  of the certain rows, such as `soft_pseudo_label_loss`.

  Args:
    logits: scores of the strongly augmented view by an auxiliary head, `[..., k]`; removed classes
      get no gradient.
    probs: probabilities of the weakly augmented view, `[..., k]`; no gradient flows into them.
    threshold: share from which a row counts as certain, in (0, 1].

  Returns:
    Loss per example in nats, weighted by the probability of the top class, `[...]`, in float32 or
    wider; 0 on rows that are certain, and on those that stay uncertain without all removable
    classes.

  Raises:
    ValueError: if `threshold` lies outside (0, 1].

  Reference: Yang et al., ICCV 2023, equations 5 to 7, https://arxiv.org/abs/2308.06777.
  """
  check_range("threshold", threshold, "(0, 1]")
  check_arrays(logits=(logits, "[..., k]"), probs=(probs, "[..., k]"))
  logits, probs = as_accumulator(logits, probs)
  probs = jax.lax.stop_gradient(probs)
  space = shrink_class_space(probs, threshold=threshold)
  top = jnp.max(probs, axis=-1)
  weight = top * (1.0 - reaches(top, threshold)) * reaches(space.confidence, threshold)
  # A row without weight must not fail where the classes left are masked.
  safe = jnp.where((weight == 0)[..., None] & jnp.isinf(logits), 0.0, logits)
  partition = jax.nn.logsumexp(jnp.where(space.keep, safe, -jnp.inf), axis=-1)
  guess = jnp.argmax(probs, axis=-1)
  return weight * (partition - jnp.take_along_axis(safe, guess[..., None], axis=-1)[..., 0])


def weighted_pseudo_label_loss(
  logits: chex.Array, labels: chex.Array, weights: chex.Array
) -> jax.Array:
  """Cross-entropy to guessed labels, times how far each is trusted.

  Args:
    logits: scores, `[..., k]`.
    labels: guessed classes, int `[...]`.
    weights: `[...]`; no gradient flows into them. `algorithms.transfer_pseudo_labels` gives both.

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known label lies outside [0, k).

  Reference: Du et al., Semi-Supervised Learning via Weight-aware Distillation under Class
  Distribution Mismatch, ICCV 2023, https://arxiv.org/abs/2308.11874.
  """
  check_arrays(
    logits=(logits, "[..., k]"), labels=(labels, "int [...]"), weights=(weights, "[...]")
  )
  logits, weights = as_accumulator(logits, weights)
  labels = as_classes("labels", labels, logits.shape[-1])
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  values = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
  return weighted(jax.lax.stop_gradient(weights), values)


def consistency_mse_loss(logits: chex.Array, teacher_logits: chex.Array) -> jax.Array:
  """Mean squared difference between the probabilities of a student and of its teacher.

  Args:
    logits: the student's scores, `[..., k]`.
    teacher_logits: the teacher's scores, `[..., k]`; no gradient flows into them.

  Returns:
    Mean over classes per example, at most 2 / k, `[...]`, in float32 or wider.

  Reference: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017,
  https://arxiv.org/abs/1703.01780.
  """
  check_arrays(logits=(logits, "[..., k]"), teacher_logits=(teacher_logits, "[..., k]"))
  logits, teacher_logits = as_accumulator(logits, teacher_logits)
  teacher = jax.lax.stop_gradient(jax.nn.softmax(teacher_logits))
  return jnp.mean(jnp.square(jax.nn.softmax(logits) - teacher), axis=-1)


def js_divergence_loss(logits_a: chex.Array, logits_b: chex.Array) -> jax.Array:
  """Jensen-Shannon divergence between the predictions of two networks.

  Args:
    logits_a: scores of the first network, `[..., k]`.
    logits_b: scores of the second, `[..., k]`; gradients flow into both.

  Returns:
    Divergence per example in nats, `[...]`, in float32 or wider. It is 0 where both agree, and at
    most log 2; a floor of 1e-8 under the mean probabilities, part of the definition, adds up to
    2e-7 k.

  Reference: Qiao et al., Deep Co-Training for Semi-Supervised Image Recognition, ECCV 2018,
  equation 3, https://arxiv.org/abs/1803.05984.
  """
  check_arrays(logits_a=(logits_a, "[..., k]"), logits_b=(logits_b, "[..., k]"))
  logits_a, logits_b = as_accumulator(logits_a, logits_b)
  mean = (jax.nn.softmax(logits_a) + jax.nn.softmax(logits_b)) / 2
  mean = jnp.maximum(mean, _MIN_MEAN_PROB)
  entropy = -jnp.sum(mean * jnp.log(mean), axis=-1)
  return entropy - (softmax_entropy(logits_a) + softmax_entropy(logits_b)) / 2


def view_difference_loss(logits: chex.Array, adversarial_logits: chex.Array) -> jax.Array:
  """Cross-entropy from a network's prediction to that of another on its adversarial example.

  It keeps two networks from failing on the same inputs: each resists the attacks on the other.

  Args:
    logits: clean scores of the network that made the adversarial example, `[..., k]`.
    adversarial_logits: scores of the other network on that example, `[..., k]`; gradients flow
      into both.

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Reference: Qiao et al., ECCV 2018, equation 5, https://arxiv.org/abs/1803.05984.
  """
  check_arrays(logits=(logits, "[..., k]"), adversarial_logits=(adversarial_logits, "[..., k]"))
  return soft_cross_entropy(adversarial_logits, jax.nn.softmax(as_accumulator(logits)))


def pseudo_label_mix_weight(
  max_prob: chex.Array,
  ratio: chex.Numeric,
  *,
  cutoff: chex.Numeric = 0.95,
  mix_cutoff: chex.Numeric = 0.95,
) -> jax.Array:
  """Whether a mixture with a guessed label counts.

  The smaller the share of the guessed example in the mixture, the lower the required confidence.

  Args:
    max_prob: probability of the guessed class on the weak view, `[b]`.
    ratio: share of the example with a known label, `[b]` or a scalar. It is used as given: pass
      max(ratio, 1 - ratio) if the known example has the larger share.
    cutoff: a probability of at least this is always enough, in [0, 1].
    mix_cutoff: a probability below this is not enough unless it reaches `cutoff`, in [0, 1]; if
      both are equal, the ratio has no effect.

  Returns:
    1 where max_prob >= min(cutoff, max(mix_cutoff, 1 - ratio)) and 0 elsewhere, `[b]`; NaN where
    the probability or the ratio is NaN.

  Raises:
    ValueError: if a cutoff or a known ratio lies outside [0, 1].

  Reference: Liu et al., NeurIPS 2023, section 4.3, https://arxiv.org/abs/2203.10761.
  """
  for name, value in (("cutoff", cutoff), ("mix_cutoff", mix_cutoff), ("ratio", ratio)):
    check_range(name, value, "[0, 1]")
  check_arrays(max_prob=(max_prob, "[...]"), ratio=(ratio if np.ndim(ratio) else None, "[...]"))
  max_prob, ratio = as_accumulator(max_prob, ratio)
  needed = jnp.minimum(cutoff, jnp.maximum(mix_cutoff, 1.0 - ratio))
  return reaches(max_prob, needed)
