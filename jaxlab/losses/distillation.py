"""Losses of a student that learns from a teacher and from labels, and what tells how much of each.

The three corners of a triangle are a student's prediction, a teacher's, and the label. Which side
is long says whether the teacher can be trusted on an example.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
  weighted,
)
from jaxlab.losses.adaptation import class_prototypes


def distillation_loss(
  logits: chex.Array, teacher_logits: chex.Array, *, temperature: chex.Numeric = 1.5
) -> jax.Array:
  """KL divergence from the teacher's softened probabilities to the student's.

  The factor temperature^2 keeps the size of the gradient, which is temperature * (p_student -
  p_teacher), as the temperature changes. For large temperatures the loss is half of the mean over
  classes of the squared difference of centered logits.

  Args:
    logits: the student's scores, `[..., k]`.
    teacher_logits: the teacher's scores, `[..., k]`; no gradient flows into them.
    temperature: divides both scores, > 0.

  Returns:
    `temperature^2 * KL(teacher || student)` per example in nats, `[...]`, in float32 or wider. A
    class that the teacher masks with -inf adds 0.

  Raises:
    ValueError: if `temperature` <= 0.

  Reference: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2,
  https://arxiv.org/abs/1503.02531.
  """
  check_range("temperature", temperature, "(0, inf)")
  check_arrays(logits=(logits, "[..., k]"), teacher_logits=(teacher_logits, "[..., k]"))
  logits, teacher_logits = as_accumulator(logits, teacher_logits)
  student = jax.nn.log_softmax(logits / temperature)
  teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
  probs = jnp.exp(teacher)
  differences = jnp.where(probs == 0, 0.0, teacher - student)
  return temperature**2 * jnp.sum(probs * differences, axis=-1)


def fused_distillation_loss(
  logits: chex.Array,
  teacher_logits: chex.Array,
  labels: chex.Array,
  ratio: chex.Numeric,
  *,
  temperature: chex.Numeric = 1.5,
) -> jax.Array:
  """Distillation and cross-entropy to the label, in a ratio of its own for each example.

  Args:
    logits: the student's scores, `[..., k]`.
    teacher_logits: the teacher's scores, `[..., k]`; no gradient flows into them.
    labels: classes, int `[...]`.
    ratio: weight of the teacher, in [0, 1], `[...]` or a scalar, for example a
      `models.FusionRatioNet` of `trilateral_features`. Gradients flow into it.
    temperature: of `distillation_loss`, > 0.

  Returns:
    `ratio * distillation_loss + (1 - ratio) * cross-entropy` per example in nats, `[...]`, in
    float32 or wider.

  Raises:
    ValueError: if `temperature` <= 0, a known ratio lies outside [0, 1] or a known label outside
      [0, k).

  Reference: Hu et al., Less or More From Teacher, ICLR 2024, section 3,
  https://arxiv.org/abs/2312.15112. The authors' code takes the cross-entropy of probabilities as if
  they were logits; this does not.
  """
  check_range("ratio", ratio, "[0, 1]")
  check_arrays(
    logits=(logits, "[..., k]"),
    labels=(labels, "int [...]"),
    ratio=(ratio if np.ndim(ratio) else None, "[...]"),
  )
  classes = as_classes("labels", labels, np.shape(logits)[-1])
  from_teacher = distillation_loss(logits, teacher_logits, temperature=temperature)
  logits, ratio = as_accumulator(logits, ratio)
  from_labels = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
  return weighted(ratio, from_teacher) + weighted(1 - ratio, from_labels)


def class_mean_probs(probs: chex.Array, labels: chex.Array, *, num_classes: int) -> jax.Array:
  """Mean prediction over the examples of each class.

  It says how a teacher usually sees a class, whatever it makes of an outlier.

  Args:
    probs: predicted probabilities, `[n, k]`.
    labels: classes, int `[n]`; in a JAX array, labels outside the classes are left out.
    num_classes: number m of classes of the labels, at least 2.

  Returns:
    Means, `[m, k]`, in float32 or wider; uniform for a class without examples.

  Raises:
    ValueError: if `num_classes` < 2, or a known label lies outside [0, m).

  Reference: Hu et al., ICLR 2024, section 3, https://arxiv.org/abs/2312.15112.
  """
  check_at_least(2, num_classes=num_classes)
  check_arrays(probs=(probs, "[n, k]"), labels=(labels, "int [n]"))
  means = class_prototypes(probs, labels, num_classes=num_classes)
  classes = as_classes("labels", labels, num_classes)
  counts = jax.ops.segment_sum(jnp.ones_like(classes), classes, num_classes)
  return jnp.where((counts == 0)[:, None], 1.0 / max(probs.shape[1], 1), means)


def trilateral_features(
  student_probs: chex.Array,
  teacher_probs: chex.Array,
  labels: chex.Array,
  class_means: chex.Array,
  *,
  parts: Literal["all", "probabilities", "distances", "angles"] = "all",
) -> jax.Array:
  """What a network sees that decides how much a student listens to its teacher on an example.

  With the student's probabilities S, the teacher's T, the one-hot label G, and the teacher's mean
  of the label's class O; squares and products are elementwise:

  - "all": S, T, G, O, (O - S)^2, (G - S)^2, (T - S)^2, (T - G)^2, (O - G)^2.
  - "probabilities": S, T, G, O.
  - "distances": (O - S)^2, (G - S)^2, (T - S)^2.
  - "angles": (O - S)(G - S), (T - S)(G - S).

  Args:
    student_probs: S, `[n, k]`.
    teacher_probs: T, `[n, k]`.
    labels: classes, int `[n]`.
    class_means: the teacher's mean prediction for each class, as `class_mean_probs` gives it,
      `[k, k]`.
    parts: which features.

  Returns:
    Features `[n, 9 k]`, `[n, 4 k]`, `[n, 3 k]` or `[n, 2 k]`, in float32 or wider. No gradient
    flows.

  Raises:
    ValueError: if `parts` is unknown, or a known label lies outside [0, k).

  Reference: Hu et al., ICLR 2024, section 3 and the authors' code,
  https://arxiv.org/abs/2312.15112.
  """
  check_choice("parts", parts, ("all", "probabilities", "distances", "angles"))
  check_arrays(
    student_probs=(student_probs, "[n, k]"),
    teacher_probs=(teacher_probs, "[n, k]"),
    labels=(labels, "int [n]"),
    class_means=(class_means, "[k, k]"),
  )
  num_classes = student_probs.shape[1]
  labels = as_classes("labels", labels, num_classes)
  s, t, means = jax.lax.stop_gradient(as_accumulator(student_probs, teacher_probs, class_means))
  # Of a label outside the classes, the whole row is NaN.
  rows = dict(axis=0, mode="fill", fill_value=jnp.nan)
  o, g = (jnp.take(x, labels, **rows) for x in (means, jnp.eye(num_classes, dtype=s.dtype)))
  if parts == "angles":
    return jnp.concatenate([(o - s) * (g - s), (t - s) * (g - s)], axis=-1)
  columns = {
    "probabilities": [s, t, g, o],
    "distances": [jnp.square(x - s) for x in (o, g, t)],
  }
  columns["all"] = [*columns["probabilities"], *columns["distances"]]
  columns["all"] += [jnp.square(t - g), jnp.square(o - g)]
  return jnp.concatenate(columns[parts], axis=-1)
