"""Evaluation of predictions where an example has several right labels."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays


def multilabel_top1(logits: chex.Array, label_sets: chex.Array) -> jax.Array:
  """Whether the best-scored class is any of an example's labels.

  With labels of every object in an image, it does not punish a model for naming another object
  than the annotator did.

  Args:
    logits: scores of the classes, `[n, k]`.
    label_sets: which classes are right, bool `[n, k]`.

  Returns:
    1 or 0 per example, float32 or wider, `[n]`; 0 for an empty set, NaN for scores with NaN. The
    lowest class is the best on ties.

  Reference: Beyer et al., Are we done with ImageNet?, 2020, section 3,
  https://arxiv.org/abs/2006.07159.
  """
  check_arrays(logits=(logits, "[n, k]"), label_sets=(label_sets, "bool [n, k]"))
  logits, label_sets = as_accumulator(logits), jnp.asarray(label_sets)
  best = jnp.argmax(logits, axis=-1, keepdims=True)
  right = jnp.take_along_axis(label_sets, best, axis=-1)[:, 0].astype(logits.dtype)
  return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), jnp.nan, right)
