"""Losses of mixed examples, which have two or more labels.

Losses of two labels take `(logits, labels_a, labels_b, ratio)`, which every mixing policy of
`jaxlab.augment` returns, so that any policy works with any loss. The ratio is the share of the
first label. Labels are class indices `[b]`, or one-hot or soft labels `[b, k]`, whose loss is that
of the classes, weighted by their shares. Outside the classes, labels in NumPy arrays raise and
labels in JAX arrays give NaN.
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
  weighted,
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
    labels_a: classes of the first examples, `[b]`, or soft labels, `[b, k]`.
    labels_b: classes of the second examples, `[b]`, or soft labels, `[b, k]`.
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
    labels_a: classes of the first examples, `[b]`, or soft labels, `[b, k]`.
    labels_b: classes of the second examples, `[b]`, or soft labels, `[b, k]`.
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
  if labels_a.ndim == logits.ndim:
    coupled = _label_costs(logits, (labels_a, labels_b), (ratio, 1.0 - ratio))
    alone_a = _soft_cost_without(logits, labels_a, labels_b)
    alone_b = _soft_cost_without(logits, labels_b, labels_a)
    undivided = False
  else:
    undivided = labels_a == labels_b
    rest, score_a, score_b = _split_scores(logits, labels_a, labels_b)
    # Equal labels are one class, whose score must not count twice in the softmax.
    other_a = jnp.where(undivided, _MASKED, score_b)
    other_b = jnp.where(undivided, _MASKED, score_a)
    cost_a = jax.nn.softplus(jnp.logaddexp(rest, other_a) - score_a)
    cost_b = jax.nn.softplus(jnp.logaddexp(rest, other_b) - score_b)
    coupled = weighted(ratio, cost_a) + weighted(1.0 - ratio, cost_b)
    alone_a, alone_b = jax.nn.softplus(rest - score_a), jax.nn.softplus(rest - score_b)
  if eta_mode == "both":
    use_a, use_b = True, True
  elif eta_mode == "first":
    use_a, use_b = True, False
  else:
    use_a = (ratio < threshold) if eta_mode == "less" else (ratio >= threshold)
    use_b = ~use_a
  weight_a = jnp.where(use_a, rescale_mix_ratio(ratio, power=rescale_power), 0.0)
  weight_b = jnp.where(use_b, rescale_mix_ratio(1.0 - ratio, power=rescale_power), 0.0)
  decoupled = weighted(weight_a, alone_a) + weighted(weight_b, alone_b)
  undivided |= jnp.minimum(ratio, 1.0 - ratio) <= _MIN_SHARE
  return coupled + weighted(eta, jnp.where(undivided, 0.0, decoupled))


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
    labels_a: classes of the first examples, `[b]`, or soft labels, `[b, k]`.
    labels_b: classes of the second examples, `[b]`, or soft labels, `[b, k]`.
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
  # Targets are 0 except at the labels, so that classes need no array of targets.
  at_zero = jnp.sum(_softplus(logits), axis=-1)
  if labels_a.ndim == logits.ndim:
    targets = target_a[..., None] * labels_a + target_b[..., None] * labels_b
    return at_zero - jnp.sum(weighted(jnp.clip(targets, 0.0, 1.0), logits), axis=-1)
  same = labels_a == labels_b
  target_a = jnp.clip(jnp.where(same, target_a + target_b, target_a), 0.0, 1.0)
  target_b = jnp.where(same, 0.0, target_b)
  score_a, score_b = _chosen(logits, labels_a), _chosen(logits, labels_b)
  return at_zero - weighted(target_a, score_a) - weighted(target_b, score_b)


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
    ValueError: if `threshold` lies outside (0, 1], a known ratio outside [0, 1], or `power` is not
      finite.

  Reference: Liu et al., NeurIPS 2023, section 4, https://arxiv.org/abs/2203.10761.
  """
  check_range("ratio", ratio, "[0, 1]")
  check_range("power", power, "(-inf, inf)")
  check_range("threshold", threshold, "(0, 1]")
  ratio = as_accumulator(ratio)
  power = jnp.abs(jnp.asarray(power, ratio.dtype))
  scaled = ratio / threshold
  # Powers below 1 have an infinite slope at 0.
  inside = (scaled > 0) & (scaled < 1)
  powered = jnp.where(inside, scaled, 0.5) ** power
  ends = jnp.where((scaled >= 1) | (power == 0), 1.0, 0.0)
  return jnp.where(inside | jnp.isnan(scaled), jnp.where(inside, powered, scaled), ends)


def multi_mixup_cross_entropy(
  logits: chex.Array, labels: chex.Array, weights: chex.Array
) -> jax.Array:
  """Cross-entropies to the labels of all mixed examples, weighted by their shares.

  Args:
    logits: scores of the mixed inputs, `[b, k]`.
    labels: classes of the examples in each row, `[m, b]`, or soft labels, `[m, b, k]`.
    weights: shares of the examples, `[m]`, in [0, 1].

  Returns:
    Loss per example in nats, `[b]`, in float32 or wider.

  Raises:
    ValueError: if a known weight lies outside [0, 1] or a known label outside the classes.

  Reference: Chidambaram and Ge, On the Limitations of Temperature Scaling for Distributions with
  Overlaps, ICLR 2024, https://arxiv.org/abs/2306.00740.
  """
  check_range("weights", weights, "[0, 1]")
  check_arrays(logits=(logits, "[..., k]"), weights=(weights, "[m]"))
  logits, weights = as_accumulator(logits, weights)
  labels = _labels("labels", labels, (*weights.shape, *logits.shape))
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
    labels: classes of the examples, `[n]`, or soft labels, `[n, k]`.
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
  check_arrays(logits=(logits, "[n, n, k]"), ratio=(ratio, "[]"), label_ratio=(label_ratio, "[]"))
  logits, share = as_accumulator(logits, ratio if label_ratio is None else label_ratio)
  labels = _labels("labels", labels, logits.shape[1:])
  first = jnp.broadcast_to(labels[:, None], (len(labels), *labels.shape))
  return _label_costs(logits, (first, first.swapaxes(0, 1)), (share, 1.0 - share))


def _mixed_arguments(logits, labels_a, labels_b, ratio) -> tuple[jax.Array, ...]:
  """Checked arguments in their working types, with one ratio per row and labels of one kind."""
  check_range("ratio", ratio, "[0, 1]")
  check_arrays(logits=(logits, "[..., k]"), ratio=(ratio if np.ndim(ratio) else None, "[...]"))
  logits, ratio = as_accumulator(logits, ratio)
  labels_a = _labels("labels_a", labels_a, logits.shape)
  labels_b = _labels("labels_b", labels_b, logits.shape)
  if labels_a.ndim != labels_b.ndim:
    labels_a, labels_b = _one_hot(labels_a, logits), _one_hot(labels_b, logits)
  return logits, labels_a, labels_b, jnp.broadcast_to(ratio, logits.shape[:-1])


def _labels(name: str, labels: chex.Array, shape: tuple[int, ...]) -> jax.Array:
  """Classes, or soft labels if they have the shape of all scores; checked."""
  if not hasattr(labels, "shape"):
    labels = np.asarray(labels)
  if labels.ndim < len(shape):
    check_arrays(**{name: (labels, f"int {[*shape[:-1]]}")})
    return as_classes(name, labels, shape[-1])
  check_arrays(**{name: (labels, f"{[*shape]}")})
  check_range(name, labels, "[0, 1]")
  return as_accumulator(labels)


def _one_hot(labels: jax.Array, logits: jax.Array) -> jax.Array:
  """Soft labels as they are, and classes as such; NaN where there is no such class."""
  if labels.ndim == logits.ndim:
    return labels
  inside = (labels < logits.shape[-1])[..., None]
  return jnp.where(inside, jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), jnp.nan)


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

  def cost(label):
    if label.ndim < logits.ndim:
      return log_total - (_chosen(logits, label) - largest)
    by_class = log_total[..., None] - (logits - largest[..., None])
    return jnp.sum(weighted(label, by_class), axis=-1)

  return sum(weighted(weight, cost(label)) for weight, label in zip(weights, labels))


def _soft_cost_without(logits: jax.Array, labels: jax.Array, others: jax.Array) -> jax.Array:
  """Costs of classes in softmaxes without another class, averaged over both soft labels.

  The sum over pairs i != j of `labels[i] * others[j] * (log_sum_exp(logits without j) - logits[i])`
  in one pass over j.
  """
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  logits = jnp.maximum(logits - largest, _MASKED)
  last = logits.ndim - 1
  end = jnp.full_like(logits[..., :1], _MASKED)
  before = jax.lax.cumlogsumexp(logits, axis=last)[..., :-1]
  after = jax.lax.cumlogsumexp(logits, axis=last, reverse=True)[..., 1:]
  log_rest = jnp.logaddexp(
    jnp.concatenate([end, before], axis=-1), jnp.concatenate([after, end], axis=-1)
  )
  scores = labels * logits
  competing = jnp.sum(labels, axis=-1, keepdims=True) - labels
  costs = competing * log_rest - (jnp.sum(scores, axis=-1, keepdims=True) - scores)
  return jnp.sum(others * costs, axis=-1)


def _split_scores(
  logits: jax.Array, labels_a: jax.Array, labels_b: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-sum-exp of the classes that are neither label, and the two labels' scores.

  All softmaxes of the loss are functions of these three, so that one pass over the logits is enough
  and a label that does not compete gets no gradient.
  """
  classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  either = (classes == labels_a[..., None]) | (classes == labels_b[..., None])
  rest = jax.nn.logsumexp(jnp.where(either, _MASKED, logits), axis=-1)
  return rest, _chosen(logits, labels_a), _chosen(logits, labels_b)
