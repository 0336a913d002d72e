"""Objectives of adaptation without labels: entropies, consistency, prototypes, selection."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_range,
  reaches,
)

_MIN_NORM = 1e-12
_MIN_COSINE_NORM = 1e-8
_LOG_OFFSET = 1e-5


def softmax_entropy(logits: chex.Array) -> jax.Array:
  """Entropy of the softmax of logits: how uncertain a prediction is.

  Args:
    logits: scores, `[..., k]`.

  Returns:
    Entropies in nats, `[...]`, in float32 or wider.

  Reference: Wang et al., Tent, ICLR 2021, equation 1, https://arxiv.org/abs/2006.10726.
  """
  check_arrays(logits=(logits, "[..., k]"))
  log_probs = jax.nn.log_softmax(as_accumulator(logits))
  return _cross_entropy(log_probs, log_probs)


def _cross_entropy(
  log_target: jax.Array, log_probs: jax.Array, weight: chex.Numeric = 1.0
) -> jax.Array:
  """Weighted -sum p log q from log p and log q, with 0 log 0 = 0; NaN stays NaN."""
  target = jnp.exp(log_target)
  left_out = (target == 0) | (weight == 0)
  return -weight * jnp.sum(target * jnp.where(left_out, 0.0, log_probs), axis=-1)


def symmetric_cross_entropy(
  logits: chex.Array, teacher_logits: chex.Array, *, alpha: chex.Numeric = 0.5
) -> jax.Array:
  """Cross-entropy from teacher to student plus the reverse direction.

  The gradient of the forward direction is large where the student is confident and disagrees, and
  small where it is uncertain. The reverse direction balances this, which matters for a teacher that
  may be wrong.

  Args:
    logits: the student's scores, `[..., k]`.
    teacher_logits: the teacher's scores, `[..., k]`; no gradient flows into them.
    alpha: weight of the reverse direction, in which the student's probabilities weigh the teacher's
      log-probabilities, in [0, 1]; 0 gives the usual consistency loss.

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `alpha` lies outside [0, 1].

  Reference: Döbler et al., Robust Mean Teacher for Continual and Gradual Test-Time Adaptation,
  CVPR 2023, equation 2, https://arxiv.org/abs/2211.13081.
  """
  check_range("alpha", alpha, "[0, 1]")
  check_arrays(logits=(logits, "[..., k]"), teacher_logits=(teacher_logits, "[..., k]"))
  logits, teacher_logits = as_accumulator(logits, teacher_logits)
  student = jax.nn.log_softmax(logits)
  teacher = jax.lax.stop_gradient(jax.nn.log_softmax(teacher_logits))
  return _cross_entropy(teacher, student, 1 - alpha) + _cross_entropy(student, teacher, alpha)


def multiview_contrastive_loss(
  features: chex.Array, *, temperature: chex.Numeric = 0.1
) -> jax.Array:
  """Pulls the views of a row together and pushes the views of other rows away.

  Every view is an anchor once; its positives are the other views of its row. Equal rows are still
  negatives of each other.

  Args:
    features: v views of b rows, `[b, v, d]`, not normalized. A vector shorter than 1e-12 is divided
      by 1e-12 instead of its length and gets no gradient.
    temperature: divides the cosine similarities, > 0.

  Returns:
    Mean loss of each row's v anchors in nats, `[b]`, in float32 or wider.

  Raises:
    ValueError: if `temperature` <= 0 or there are fewer than two views.

  Reference: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2,
  https://arxiv.org/abs/2004.11362; Döbler et al., CVPR 2023, equation 4,
  https://arxiv.org/abs/2211.13081.
  """
  check_range("temperature", temperature, "(0, inf)")
  check_arrays(features=(features, "[b, v, d]"))
  features = as_accumulator(features)
  num_rows, num_views, size = features.shape
  if num_views < 2:
    raise ValueError(f"features must hold at least two views, got shape {features.shape}.")
  vectors = unit_vectors(features.reshape(-1, size), _MIN_NORM)
  similarities = vectors @ vectors.T / temperature
  row = jnp.arange(num_rows * num_views) // num_views
  itself = jnp.eye(row.size, dtype=bool)
  positive = (row[:, None] == row[None]) & ~itself
  log_partition = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, similarities), axis=-1)
  mean_positive = jnp.sum(jnp.where(positive, similarities, 0.0), axis=-1) / (num_views - 1)
  return (log_partition - mean_positive).reshape(num_rows, num_views).mean(1)


def unit_vectors(vectors: jax.Array, min_norm: float) -> jax.Array:
  """Scales vectors to length 1, for any finite length and with a finite gradient at 0.

  Args:
    vectors: `[..., d]`.
    min_norm: shorter vectors are divided by this, and get no gradient; > 0.

  Returns:
    `x / max(|x|, min_norm)`, `[..., d]`.
  """
  # Squares of long vectors would overflow; the direction does not depend on the scale.
  largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
  vectors = vectors / jax.lax.stop_gradient(jnp.maximum(largest, 1.0))
  square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
  short = square < min_norm**2
  clamped = jax.lax.stop_gradient(vectors) / min_norm
  return jnp.where(short, clamped, vectors * jax.lax.rsqrt(jnp.where(short, 1.0, square)))


def nearest_prototypes(features: chex.Array, prototypes: chex.Array) -> jax.Array:
  """The class whose prototype has the largest cosine similarity to each feature.

  Args:
    features: `[b, d]`.
    prototypes: one per class, `[k, d]`; a prototype of zeros has similarity 0 to every feature.

  Returns:
    Classes, i32 `[b]`; the lowest on ties. No gradient flows.

  Reference: Döbler et al., CVPR 2023, section 3.2, https://arxiv.org/abs/2211.13081.
  """
  check_arrays(features=(features, "[b, d]"), prototypes=(prototypes, "[k, d]"))
  features, prototypes = jax.lax.stop_gradient(as_accumulator(features, prototypes))
  similarities = (
    unit_vectors(features, _MIN_COSINE_NORM) @ unit_vectors(prototypes, _MIN_COSINE_NORM).T
  )
  return jnp.argmax(similarities, axis=-1).astype(jnp.int32)


def class_prototypes(features: chex.Array, labels: chex.Array, *, num_classes: int) -> jax.Array:
  """Mean feature of each class.

  Args:
    features: `[n, d]`.
    labels: classes, integers `[n]`; in a JAX array, labels outside the classes are left out.
    num_classes: number k of classes.

  Returns:
    Prototypes, `[k, d]`, in float32 or wider; zeros for a class without rows.

  Raises:
    ValueError: if `num_classes` < 1, or a known label lies outside [0, k).

  Reference: Döbler et al., CVPR 2023, section 3.2, https://arxiv.org/abs/2211.13081.
  """
  check_at_least(1, num_classes=num_classes)
  check_arrays(features=(features, "[n, d]"), labels=(labels, "int [n]"))
  labels = as_classes("labels", labels, num_classes)
  features = as_accumulator(features)
  sums = jax.ops.segment_sum(features, labels, num_classes)
  counts = jax.ops.segment_sum(jnp.ones_like(features[:, 0]), labels, num_classes)
  return sums / jnp.maximum(counts, 1.0)[:, None]


def confidence_difference(logits: chex.Array, source_logits: chex.Array) -> jax.Array:
  """How much an adapted model has gained in confidence in the class that the source model chose.

  During adaptation, right predictions of known classes gain confidence and other predictions lose
  it, so that the difference tells them apart.

  Args:
    logits: scores of the adapted model, `[b, k]`.
    source_logits: scores of the source model, `[b, k]`; no gradient flows into them.

  Returns:
    Differences of probabilities in [-1, 1], `[b]`, in float32 or wider.

  Reference: Lee et al., Towards Open-Set Test-Time Adaptation, ICCV 2023, section 3,
  https://arxiv.org/abs/2308.06879.
  """
  adapted, source = _log_confidences(logits, source_logits)
  return jnp.exp(adapted) - jnp.exp(source)


def confidence_difference_mask(logits: chex.Array, source_logits: chex.Array) -> jax.Array:
  """Keeps the rows whose confidence is not lower in the adapted model than in the source model.

  Args:
    logits: scores of the adapted model, `[b, k]`.
    source_logits: scores of the source model, `[b, k]`.

  Returns:
    1 for kept rows, 0 for others and NaN where a confidence is NaN, f32 `[b]`; no gradient flows.

  Reference: Lee et al., ICCV 2023, equation 2, https://arxiv.org/abs/2308.06879.
  """
  adapted, source = _log_confidences(logits, source_logits)
  return reaches(adapted, source).astype(jnp.float32)


def _log_confidences(logits: chex.Array, source_logits: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of the source model's class under both models, `[b]` each."""
  check_arrays(logits=(logits, "[b, k]"), source_logits=(source_logits, "[b, k]"))
  logits, source_logits = as_accumulator(logits, source_logits)
  source_logits = jax.lax.stop_gradient(source_logits)
  chosen = jnp.argmax(source_logits, axis=-1, keepdims=True)
  both = (jax.nn.log_softmax(scores) for scores in (logits, source_logits))
  adapted, source = (jnp.take_along_axis(scores, chosen, axis=-1)[:, 0] for scores in both)
  return adapted, source


def marginal_entropy(logits: chex.Array, *, weights: chex.Array | None = None) -> jax.Array:
  """Entropy of the mean prediction of a batch: high if predictions are diverse.

  Args:
    logits: scores, `[b, k]`.
    weights: weight of each row in the mean, `[b]`; None for ones.

  Returns:
    The entropy in nats, a scalar in float32 or wider; 0 if the weights sum to 0, NaN without rows
    and weights.

  Raises:
    ValueError: if a known weight is negative.

  Reference: Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, equation 4,
  https://arxiv.org/abs/2002.08546.
  """
  check_arrays(logits=(logits, "[b, k]"), weights=(weights, "[b]"))
  probs = jax.nn.softmax(as_accumulator(logits))
  if weights is None:
    return _entropy(probs.mean(0))
  check_range("weights", weights, "[0, inf)")
  weights = as_accumulator(weights)
  total = weights.sum()
  probs = jnp.where(weights[:, None] == 0, 0.0, probs)
  mean = weights @ probs / jnp.where(total == 0, 1.0, total)
  return jnp.where(total == 0, 0.0, _entropy(mean))


def _entropy(probs: jax.Array) -> jax.Array:
  """-sum p log p with 0 log 0 = 0; NaN stays NaN."""
  positive = jnp.where(probs <= 0, 1.0, probs)
  return -jnp.sum(probs * jnp.log(positive), axis=-1)


def open_set_entropy_loss(
  logits: chex.Array, source_logits: chex.Array, *, diversity_weight: chex.Numeric = 0.5
) -> jax.Array:
  """Mean entropy of the rows that gained confidence, less the entropy of the mean prediction.

  Minimizing the entropy of every row also makes a model confident where it is wrong and on rows of
  unknown classes. The marginal term, over all rows, keeps predictions from collapsing to one class.

  Args:
    logits: scores of the adapted model, `[b, k]`.
    source_logits: scores of the source model on the same batch, `[b, k]`; no gradient flows into
      them.
    diversity_weight: weight of the marginal entropy, >= 0.

  Returns:
    Values per row whose mean is the loss, `[b]`, in nats, in float32 or wider. The first term is 0
    if no row is kept.

  Raises:
    ValueError: if `diversity_weight` < 0.

  Reference: Lee et al., ICCV 2023, equation 3, https://arxiv.org/abs/2308.06879.
  """
  check_range("diversity_weight", diversity_weight, "[0, inf)")
  kept = confidence_difference_mask(logits, source_logits)
  share = kept * kept.size / jnp.maximum(jnp.sum(kept == 1, dtype=kept.dtype), 1.0)
  return share * softmax_entropy(logits) - diversity_weight * marginal_entropy(logits)


def information_maximization_loss(logits: chex.Array) -> jax.Array:
  """Entropy of each row less the entropy of the mean prediction.

  It is small if each prediction is confident and the batch of predictions is diverse. Inside the
  logarithms, 1e-5 is added to probabilities; this is part of the definition.

  Args:
    logits: scores, `[b, k]`.

  Returns:
    Values per row whose mean is the loss, `[b]`, in nats, in float32 or wider.

  Reference: Liang et al., ICML 2020, equations 3 and 4, https://arxiv.org/abs/2002.08546.
  """
  check_arrays(logits=(logits, "[b, k]"))
  probs = jax.nn.softmax(as_accumulator(logits))
  mean = probs.mean(0)
  entropy = -jnp.sum(probs * jnp.log(probs + _LOG_OFFSET), axis=-1)
  return entropy + jnp.sum(mean * jnp.log(mean + _LOG_OFFSET))
