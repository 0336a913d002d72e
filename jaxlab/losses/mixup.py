"""Losses of mixed examples, which have two or more labels.

Losses of two labels take `(logits, labels_a, labels_b, ratio)`, which every mixing policy of
`jaxlab.augment` returns, so that any policy works with any loss. The ratio is the share of the
first label. Labels are class indices; outside the classes, labels in NumPy arrays raise and labels
in JAX arrays give NaN.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_choice,
  check_range,
  is_known,
)

_MASKED = -1e30
# Rows in which a label has at most this share have no decoupled terms.
_MIN_SHARE = 1e-3


def mixup_cross_entropy(
  logits: chex.Array, labels_a: chex.Array, labels_b: chex.Array, ratio: chex.Numeric
) -> jax.Array:
  """Cross-entropies to both labels, weighted by the ratio of the mixture.

  Args:
    logits: scores of the mixed inputs, `[b, k]`.
    labels_a: classes of the first examples, `[b]`.
    labels_b: classes of the second examples, `[b]`.
    ratio: share of the first, `[b]` or a scalar, in [0, 1].

  Returns:
    Loss per example in nats, `[b]`, in float32 or wider.

  Raises:
    ValueError: if a known ratio lies outside [0, 1] or a known label outside the classes.

  Reference: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018,
  https://arxiv.org/abs/1710.09412.
  """
  logits, labels_a, labels_b, ratio = _mixed_arguments(logits, labels_a, labels_b, ratio)
  return _label_costs(logits, (labels_a, labels_b), (ratio, 1.0 - ratio))


def decoupled_mixup_loss(
  logits: chex.Array,
  labels_a: chex.Array,
  labels_b: chex.Array,
  ratio: chex.Numeric,
  *,
  eta: chex.Numeric = 0.1,
  eta_mode: Literal["both", "less", "more", "first"] = "both",
  threshold: chex.Numeric = 0.5,
  rescale_power: chex.Numeric = 0.0,
) -> jax.Array:
  """Mixup's cross-entropy plus one term per label in which the other label does not compete.

  In one softmax the two labels of a mixture take probability from each other, which penalizes a
  network that is confident in both. Each decoupled term is a cross-entropy over all classes but the
  other label, so that the network may be confident in both. Rows with two equal labels, or with a
  share of at most .001 for one label, have no decoupled terms.

  Args:
    logits: scores of the mixed inputs, `[b, k]`.
    labels_a: classes of the first examples, `[b]`.
    labels_b: classes of the second examples, `[b]`.
    ratio: share of the first, `[b]` or a scalar, in [0, 1].
    eta: weight of the decoupled terms, at least 0.
    eta_mode: which terms count: "both"; "less", that of the label with the smaller share; "more",
      that of the label with the larger share; "first", that of `labels_a` (for known `labels_a` and
      guessed `labels_b`).
    threshold: the first label counts as the larger if its ratio is at least this, in [0, 1].
    rescale_power: a term's weight is its label's share to this power; 0 for equal weights.

  Returns:
    Loss per example in nats, `[b]`, in float32 or wider.

  Raises:
    ValueError: if `eta` < 0, the mode is unknown, `threshold` or a known ratio lies outside
      [0, 1], a known label lies outside the classes, or there are fewer than three classes and
      `eta` is not 0.

  Reference: Liu et al., Harnessing Hard Mixed Samples with Decoupled Regularizer, NeurIPS 2023,
  section 4, https://arxiv.org/abs/2203.10761.
  """
  check_range("eta", eta, "[0, inf)")
  check_range("threshold", threshold, "[0, 1]")
  check_choice("eta_mode", eta_mode, ("both", "less", "more", "first"))
  logits, labels_a, labels_b, ratio = _mixed_arguments(logits, labels_a, labels_b, ratio)
  num_classes = logits.shape[-1]
  if num_classes < 3 and is_known(eta) and np.any(np.asarray(eta) > 0):
    raise ValueError(f"logits must have at least 3 classes where eta > 0, got {num_classes}.")
  same = labels_a == labels_b
  rest, score_a, score_b = _split_scores(logits, labels_a, labels_b)
  # Equal labels are one class, whose score must not count twice in the softmax.
  other = jnp.where(same, _MASKED, score_b)
  cost_a = jax.nn.softplus(jnp.logaddexp(rest, other) - score_a)
  cost_b = jax.nn.softplus(jnp.logaddexp(rest, jnp.where(same, _MASKED, score_a)) - score_b)
  coupled = ratio * cost_a + (1.0 - ratio) * cost_b
  if eta_mode == "both":
    use_a, use_b = True, True
  elif eta_mode == "first":
    use_a, use_b = True, False
  else:
    use_a = (ratio < threshold) if eta_mode == "less" else (ratio >= threshold)
    use_b = ~use_a
  weight_a = jnp.where(use_a, rescale_mix_ratio(ratio, power=rescale_power), 0.0)
  weight_b = jnp.where(use_b, rescale_mix_ratio(1.0 - ratio, power=rescale_power), 0.0)
  decoupled = weight_a * jax.nn.softplus(rest - score_a)
  decoupled += weight_b * jax.nn.softplus(rest - score_b)
  alone = same | (jnp.minimum(ratio, 1.0 - ratio) <= _MIN_SHARE)
  return coupled + eta * jnp.where(alone, 0.0, decoupled)


def decoupled_mixup_binary_loss(
  logits: chex.Array,
  labels_a: chex.Array,
  labels_b: chex.Array,
  ratio: chex.Numeric,
  *,
  power: chex.Numeric = 1.0,
  threshold: chex.Numeric = 0.8,
  rescale_a: bool = True,
  rescale_b: bool = True,
) -> jax.Array:
  """One logistic loss per class, with targets that may both be 1.

  Args:
    logits: scores of the mixed inputs, `[b, k]`.
    labels_a: classes of the first examples, `[b]`.
    labels_b: classes of the second examples, `[b]`.
    ratio: share of the first, `[b]` or a scalar, in [0, 1].
    power: exponent of `rescale_mix_ratio`; with power 1 and threshold 1 the targets are the ratios.
    threshold: shares of at least this have the target 1, in (0, 1].
    rescale_a: whether the first share is rescaled; else it is the target itself.
    rescale_b: whether the second share is rescaled; else it is the target itself.

  Returns:
    Loss per example in nats, a sum over classes, `[b]`, in float32 or wider.

  Raises:
    ValueError: if `threshold` lies outside (0, 1], a known ratio outside [0, 1], or a known label
      outside the classes.

  Reference: Liu et al., NeurIPS 2023, section 4, https://arxiv.org/abs/2203.10761.
  """
  check_range("threshold", threshold, "(0, 1]")
  logits, labels_a, labels_b, ratio = _mixed_arguments(logits, labels_a, labels_b, ratio)

  target_a, target_b = (
    rescale_mix_ratio(share, power=power, threshold=threshold) if rescale else share
    for share, rescale in ((ratio, rescale_a), (1.0 - ratio, rescale_b))
  )
  same = labels_a == labels_b
  target_a = jnp.clip(jnp.where(same, target_a + target_b, target_a), 0.0, 1.0)
  target_b = jnp.where(same, 0.0, target_b)
  # Targets are 0 except at the labels, so that no array of targets is needed.
  at_zero = jnp.sum(_softplus(logits), axis=-1)
  return at_zero - target_a * _chosen(logits, labels_a) - target_b * _chosen(logits, labels_b)


def rescale_mix_ratio(
  ratio: chex.Numeric, *, power: chex.Numeric = 1.0, threshold: chex.Numeric = 1.0
) -> jax.Array:
  """Maps a share of a mixture to a target: (ratio / threshold)^|power|, at most 1.

  A label with a large share then has the full target 1.

  Args:
    ratio: shares, `[...]`, in [0, 1].
    power: exponent, its sign ignored; 0 gives 1 everywhere.
    threshold: shares of at least this have the target 1, in (0, 1].

  Returns:
    Targets in [0, 1], `[...]`, in float32 or wider.

  Raises:
    ValueError: if `threshold` lies outside (0, 1] or a known ratio outside [0, 1].

  Reference: Liu et al., NeurIPS 2023, section 4, https://arxiv.org/abs/2203.10761.
  """
  check_range("ratio", ratio, "[0, 1]")
  check_range("threshold", threshold, "(0, 1]")
  ratio = as_accumulator(ratio)
  power = jnp.abs(jnp.asarray(power, ratio.dtype))
  scaled = ratio / threshold
  # Powers below 1 have an infinite slope at 0.
  inside = (scaled > 0) & (scaled < 1)
  powered = jnp.where(inside, scaled, 0.5) ** power
  ends = jnp.where((scaled >= 1) | (power == 0), 1.0, 0.0)
  return jnp.where(inside | jnp.isnan(scaled), jnp.where(inside, powered, scaled), ends)


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
    1 where max_prob >= min(cutoff, max(mix_cutoff, 1 - ratio)) and 0 elsewhere, `[b]`.

  Raises:
    ValueError: if a cutoff or a known ratio lies outside [0, 1].

  Reference: Liu et al., NeurIPS 2023, section 4.3, https://arxiv.org/abs/2203.10761.
  """
  for name, value in (("cutoff", cutoff), ("mix_cutoff", mix_cutoff), ("ratio", ratio)):
    check_range(name, value, "[0, 1]")
  check_arrays(max_prob=(max_prob, "[...]"), ratio=(ratio if np.ndim(ratio) else None, "[...]"))
  max_prob, ratio = as_accumulator(max_prob, ratio)
  needed = jnp.minimum(cutoff, jnp.maximum(mix_cutoff, 1.0 - ratio))
  return (max_prob >= needed).astype(max_prob.dtype)


def multi_mixup_cross_entropy(
  logits: chex.Array, labels: chex.Array, weights: chex.Array
) -> jax.Array:
  """Cross-entropies to the labels of all mixed examples, weighted by their shares.

  Args:
    logits: scores of the mixed inputs, `[b, k]`.
    labels: classes of the examples in each row, `[m, b]`.
    weights: shares of the examples, `[m]`.

  Returns:
    Loss per example in nats, `[b]`, in float32 or wider.

  Raises:
    ValueError: if a known label lies outside the classes.

  Reference: Chidambaram and Ge, On the Limitations of Temperature Scaling for Distributions with
  Overlaps, ICLR 2024, https://arxiv.org/abs/2306.00740.
  """
  check_arrays(
    logits=(logits, "[..., k]"), labels=(labels, "int [m, ...]"), weights=(weights, "[m]")
  )
  logits, weights = as_accumulator(logits, weights)
  labels = as_classes("labels", labels, logits.shape[-1])
  return _label_costs(logits, tuple(labels), tuple(weights))


def all_pairs_mixup_loss(
  logits: chex.Array,
  labels: chex.Array,
  *,
  ratio: chex.Numeric,
  label_ratio: chex.Numeric | None = None,
) -> jax.Array:
  """Mixup's cross-entropy for all n^2 pairs of a set; labels may have a ratio of their own.

  Args:
    logits: scores of the mixtures, `[n, n, k]`; the first axis is the example with share `ratio`.
    labels: classes of the examples, `[n]`.
    ratio: share of the first example in the inputs, in [0, 1].
    label_ratio: share of the first label, in [0, 1]; None for that of the inputs.

  Returns:
    Loss per pair in nats, `[n, n]`, in float32 or wider.

  Raises:
    ValueError: if a share lies outside [0, 1] or a known label outside the classes.

  Reference: Zou et al., The Benefits of Mixup for Feature Learning, ICML 2023, section 3,
  https://arxiv.org/abs/2303.08433.
  """
  check_range("ratio", ratio, "[0, 1]")
  if label_ratio is not None:
    check_range("label_ratio", label_ratio, "[0, 1]")
  check_arrays(logits=(logits, "[n, n, k]"), labels=(labels, "int [n]"))
  logits, share = as_accumulator(logits, ratio if label_ratio is None else label_ratio)
  labels = as_classes("labels", labels, logits.shape[-1])
  first = jnp.broadcast_to(labels[:, None], logits.shape[:2])
  return _label_costs(logits, (first, first.T), (share, 1.0 - share))


def _mixed_arguments(logits, labels_a, labels_b, ratio) -> tuple[jax.Array, ...]:
  """Checked arguments in their working types, with one ratio per row."""
  check_range("ratio", ratio, "[0, 1]")
  check_arrays(
    logits=(logits, "[..., k]"),
    labels_a=(labels_a, "int [...]"),
    labels_b=(labels_b, "int [...]"),
    ratio=(ratio if np.ndim(ratio) else None, "[...]"),
  )
  logits, ratio = as_accumulator(logits, ratio)
  labels_a = as_classes("labels_a", labels_a, logits.shape[-1])
  labels_b = as_classes("labels_b", labels_b, logits.shape[-1])
  return logits, labels_a, labels_b, jnp.broadcast_to(ratio, labels_a.shape)


@jax.custom_jvp
def _softplus(x: jax.Array) -> jax.Array:
  """Softplus in one pass, with its exact slope, which autodiff would miss at 0."""
  return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


_softplus.defjvps(lambda tangent, _, x: jax.nn.sigmoid(x) * tangent)


def _chosen(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Scores of the labels; NaN where there is no such class."""
  return jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="fill")[..., 0]


def _label_costs(logits: jax.Array, labels: tuple, weights: tuple) -> jax.Array:
  """Weighted cross-entropies to several labels per row, from one pass over the logits."""
  # The maximum is subtracted first, so that no digits are lost where the label's score is large.
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  log_total = jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1))
  costs = (log_total - (_chosen(logits, label) - largest) for label in labels)
  return sum(weight * cost for weight, cost in zip(weights, costs))


def _split_scores(
  logits: jax.Array, labels_a: jax.Array, labels_b: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-sum-exp of the classes that are neither label, and the two labels' scores.

  All softmaxes of the loss are functions of these three, so that one pass over the logits is enough
  and a label that does not compete gets no gradient.
  """
  classes = jnp.arange(logits.shape[-1])
  either = (classes == labels_a[..., None]) | (classes == labels_b[..., None])
  rest = jax.nn.logsumexp(jnp.where(either, _MASKED, logits), axis=-1)
  return rest, _chosen(logits, labels_a), _chosen(logits, labels_b)
