"""Accuracy in which all classes (or groups) have the same weight."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least


def mean_class_accuracy(
  predictions: chex.Array, labels: chex.Array, *, num_classes: int
) -> jax.Array:
  """Mean over classes of the accuracy on the samples of each class.

  Under label shift the plain accuracy measures the frequent classes; this one does not change
  with the class counts.

  Args:
    predictions: predicted classes, int `[n]`.
    labels: true classes, int `[n]`. Those outside [0, num_classes), such as the unknown classes
      of an open set, are left out.
    num_classes: number of classes; those without samples are left out.

  Returns:
    Accuracy in [0, 1], float32, `[]`; 0 if no class has a sample.

  Raises:
    ValueError: if `num_classes` < 1.

  Reference: Lee et al., Few-shot Fine-tuning is All You Need for Source-free Domain Adaptation,
  https://arxiv.org/abs/2304.00792.
  """
  check_at_least(1, num_classes=num_classes)
  check_arrays(predictions=(predictions, "int [n]"), labels=(labels, "int [n]"))
  predictions, labels = (jnp.asarray(x).astype(jnp.int32) for x in (predictions, labels))
  # Labels outside the classes give rows of zeros.
  member = jax.nn.one_hot(labels, num_classes)
  counts = jnp.sum(member, axis=0)
  right = as_accumulator(predictions == labels) @ member
  accuracies = right / jnp.maximum(counts, 1)
  return jnp.sum(accuracies) / jnp.maximum(jnp.sum(counts > 0), 1)
