"""What a feature space keeps of the differences between examples."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least
from jaxlab.losses.adaptation import class_prototypes, unit_vectors

_MIN_NORM = 1e-12


def intra_class_spread(features: chex.Array, labels: chex.Array, *, num_classes: int) -> jax.Array:
  """One minus the mean cosine similarity of two different examples of a class.

  It falls to 0 where training pulls a class into one point, and other tasks lose what told its
  examples apart.

  Args:
    features: features of any length, `[n, d]`; a vector of zeros has similarity 0 to every other.
    labels: classes, int `[n]`; in a JAX array, labels outside the classes are left out.
    num_classes: number k of classes.

  Returns:
    Spread of each class, in [0, 2], `[k]`, in float32 or wider; 0 for a class with fewer than two
    examples.

  Raises:
    ValueError: if `num_classes` < 1, or a known label lies outside [0, k).

  Reference: it measures the collapse that Feng et al. describe, Rethinking Supervised Pre-training
  for Better Downstream Transferring, ICLR 2022, https://arxiv.org/abs/2110.06014.
  """
  check_at_least(1, num_classes=num_classes)
  check_arrays(features=(features, "[n, d]"), labels=(labels, "int [n]"))
  labels = as_classes("labels", labels, num_classes)
  vectors = unit_vectors(as_accumulator(features), _MIN_NORM)
  means = class_prototypes(vectors, labels, num_classes=num_classes)
  lengths = jnp.sum(jnp.square(vectors), axis=-1)
  deviations = jnp.sum(jnp.square(vectors - means[labels]), axis=-1)

  def total(values):
    return jax.ops.segment_sum(values, labels, num_classes)

  counts = total(jnp.ones_like(lengths))
  # Without a difference of large sums: for unit vectors, 1 minus the mean cosine of pairs is the
  # variance; a vector near 0 adds what it lacks, which must not be the rounding of a unit vector.
  lacking = total(jnp.where(lengths < 0.999, 1 - lengths, 0.0)) / jnp.maximum(counts, 1)
  spread = total(deviations) / jnp.maximum(counts - 1, 1) + lacking
  return jnp.where(counts < 2, 0.0, spread)
