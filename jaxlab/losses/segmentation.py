"""Losses of two-class segmentation from probabilities of the foreground, one value per task.

A mask without a valid pixel gives 0 and no gradient. Probabilities of exactly 0 and 1 give finite
values and gradients.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays

_EPSILON = 1e-10
_IGNORE = 255


def foreground_cross_entropy(foreground: chex.Array, masks: chex.Array) -> jax.Array:
  """Cross-entropy of the pixels of each task.

  Args:
    foreground: probability of the foreground, `[n, s, h, w]`.
    masks: 1 for foreground, 0 for background, 255 for pixels that do not count, `[n, s, h, w]`.

  Returns:
    Mean over the pixels that count, in nats, `[n]`; NaN for a task with other values in its mask.

  Reference: Boudiaf et al., Few-Shot Segmentation Without Meta-Learning, CVPR 2021, equation 1,
  https://arxiv.org/abs/2012.06166.
  """
  check_arrays(foreground=(foreground, "[n, s, h, w]"), masks=(masks, "[n, s, h, w]"))
  foreground, masks = as_accumulator(foreground), jnp.asarray(masks)
  # In 8 signed bits there is no 255.
  masks = masks.astype(jnp.promote_types(masks.dtype, jnp.int32))
  background = jnp.where(masks == 0, _background(foreground), jnp.nan)
  likelihood = jnp.where(masks == 1, foreground, background)
  return _mean(-jnp.log(likelihood + _EPSILON), masks != _IGNORE)


def pixel_entropy(foreground: chex.Array, valid: chex.Array) -> jax.Array:
  """Entropy of the predictions of the pixels; minimizing it makes a query's pixels confident.

  Args:
    foreground: probability of the foreground, `[n, s, h, w]`.
    valid: 1 for pixels that count, else 0, `[n, s, h, w]`.

  Returns:
    Mean over the pixels that count, in nats, `[n]`.

  Reference: Boudiaf et al., CVPR 2021, equation 1, https://arxiv.org/abs/2012.06166.
  """
  check_arrays(foreground=(foreground, "[n, s, h, w]"), valid=(valid, "[n, s, h, w]"))
  foreground, valid = as_accumulator(foreground), jnp.asarray(valid)
  background = _background(foreground)
  entropy = -(
    foreground * jnp.log(foreground + _EPSILON) + background * jnp.log(background + _EPSILON)
  )
  return _mean(entropy, valid == 1)


def proportion_kl(foreground: chex.Array, proportion: chex.Array, valid: chex.Array) -> jax.Array:
  """KL divergence from the predicted share of the foreground to an estimate of it.

  Without it, the entropy is smallest if all pixels are of one class.

  Args:
    foreground: probability of the foreground, `[n, s, h, w]`.
    proportion: estimated share of the foreground, in [0, 1], `[n]`.
    valid: 1 for pixels that count, else 0, `[n, s, h, w]`.

  Returns:
    Divergence of the two-class shares, in nats, `[n]`.

  Reference: Boudiaf et al., CVPR 2021, equations 1 and 2, https://arxiv.org/abs/2012.06166.
  """
  check_arrays(
    foreground=(foreground, "[n, s, h, w]"),
    proportion=(proportion, "[n]"),
    valid=(valid, "[n, s, h, w]"),
  )
  foreground, proportion = as_accumulator(foreground, proportion)
  valid = jnp.asarray(valid) == 1

  def term(probs, share):
    predicted = _mean(probs, valid)
    absent = predicted <= 0
    log_ratio = jnp.log(jnp.where(absent, 1.0, predicted)) - jnp.log(share + _EPSILON)
    return jnp.where(absent, 0.0, predicted * log_ratio)

  return term(_background(foreground), _background(proportion)) + term(foreground, proportion)


def _background(foreground: jax.Array) -> jax.Array:
  # The maximum keeps the compiler from folding (1 - p) + epsilon into 1 - p, whose log may be -inf.
  return jnp.maximum(1.0 - foreground, 0.0)


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
  """Mean over the pixels that count, 0 if none does."""
  axes = tuple(range(1, values.ndim))
  num = jnp.sum(counts, axis=axes, dtype=values.dtype)
  return jnp.sum(jnp.where(counts, values, 0.0), axis=axes) / jnp.maximum(num, 1.0)
