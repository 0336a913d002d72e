"""Few-shot segmentation by a linear classifier that is fitted to one task, query included."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.losses.segmentation import foreground_cross_entropy, pixel_entropy, proportion_kl

_EPSILON = 1e-10


class ProportionRegularized(NamedTuple):
  """The result of the inference for each task.

  Attributes:
    prototype: direction of the foreground, `[n, c]`.
    bias: logit at which a pixel counts as foreground, `[n]`.
    proportion: the last target of the share of foreground, `[n]`.
    foreground: probability of the foreground of the query's pixels, `[n, 1, h, w]`.
  """

  prototype: chex.Array
  bias: chex.Array
  proportion: chex.Array
  foreground: chex.Array


def masked_prototype(features: chex.Array, masks: chex.Array) -> jax.Array:
  """Mean feature of the foreground's pixels.

  Args:
    features: support features, `[n, s, h, w, c]`.
    masks: 1 for foreground, `[n, s, h, w]`.

  Returns:
    Prototypes, `[n, c]`; 0 where there is no foreground.

  Raises:
    ValueError: if the shapes do not agree.

  Reference: Zhang et al., SG-One, 2018, https://arxiv.org/abs/1810.09091; Boudiaf et al., Few-Shot
  Segmentation Without Meta-Learning, CVPR 2021, section 3, https://arxiv.org/abs/2012.06166.
  """
  features, masks = as_accumulator(features), jnp.asarray(masks)
  check_arrays(features=(features, "[n, s, h, w, c]"), masks=(masks, "[n, s, h, w]"))
  inside = (masks == 1).astype(features.dtype)
  total = jnp.einsum("nshwc,nshw->nc", features, inside)
  return total / (jnp.sum(inside, axis=(1, 2, 3))[:, None] + _EPSILON)


def cosine_logits(
  features: chex.Array, prototype: chex.Array, *, scale: chex.Numeric = 20.0
) -> jax.Array:
  """Scaled cosine of every pixel's feature with its task's prototype.

  Args:
    features: `[n, s, h, w, c]`.
    prototype: `[n, c]`.
    scale: inverse temperature, above 0.

  Returns:
    Logits in [-scale, scale], 0 for a feature or a prototype of 0, `[n, s, h, w]`.

  Raises:
    ValueError: if `scale` is not positive or the shapes do not agree.

  Reference: Boudiaf et al., CVPR 2021, section 3, https://arxiv.org/abs/2012.06166.
  """
  check_range("scale", scale, "(0, inf)")
  features, prototype = as_accumulator(features, prototype)
  check_arrays(features=(features, "[n, s, h, w, c]"), prototype=(prototype, "[n, c]"))
  return _cosine_logits(features, _norm(features), prototype, scale)


def _cosine_logits(features, norms, prototype, scale) -> jax.Array:
  products = jnp.einsum("nshwc,nc->nshw", features, prototype)
  return scale * products / (norms * _norm(prototype)[:, None, None, None] + _EPSILON)


def _norm(vectors: jax.Array) -> jax.Array:
  """Euclidean length, whose gradient at 0 is 0."""
  squares = jnp.sum(jnp.square(vectors), axis=-1)
  empty = squares == 0
  return jnp.where(empty, 0.0, jnp.sqrt(jnp.where(empty, 1.0, squares)))


def proportion_regularized_inference(
  support_features: chex.Array,
  support_masks: chex.Array,
  query_features: chex.Array,
  query_valid: chex.Array,
  *,
  scale: chex.Numeric = 20.0,
  num_steps: int = 50,
  learning_rate: chex.Numeric = 0.025,
  proportion_update_step: int = 10,
  cross_entropy_weight: chex.Numeric = 1.0,
  kl_weight: chex.Numeric | None = None,
  entropy_weight: chex.Numeric | None = None,
  proportion: chex.Array | None = None,
) -> ProportionRegularized:
  """Segments a query from a few shots, on features of a frozen network.

  Gradient steps on a prototype and a bias: cross-entropy on the support, entropy of the query's
  pixels, and a KL term that holds the query's share of foreground near an estimate. The estimate
  comes from the initial classifier. It is replaced once by that of the current classifier; from
  then on the weight of the KL term is larger by 1. A mask without a valid pixel turns its term off.

  Features are best normalized over channels first, and masks resized by nearest neighbor.

  Args:
    support_features: `[n, s, h, w, c]` of n independent tasks with s shots.
    support_masks: 1 for foreground, 0 for background, 255 for neither, int `[n, s, h, w]`.
    query_features: `[n, 1, h, w, c]`.
    query_valid: 1 for pixels that count, else 0, int `[n, 1, h, w]`.
    scale: inverse temperature of the cosine, above 0.
    num_steps: number of iterates: the initial one, then `num_steps` - 1 gradient steps.
    learning_rate: of plain gradient descent.
    proportion_update_step: the estimate is replaced after `proportion_update_step` - 1 gradient
      steps; never if that is 0 or more than all steps.
    cross_entropy_weight: weight of the support's cross-entropy.
    kl_weight: weight of the KL term before it rises; None for 1 / s.
    entropy_weight: weight of the query's entropy; None for 1 / s.
    proportion: known share of the foreground, `[n]`, which is never replaced; None to estimate it.

  Returns:
    A `ProportionRegularized`.

  Raises:
    ValueError: if `num_steps` < 1, `scale` is not positive, the rate or a weight is negative, a
      proportion lies outside [0, 1], there are no shots, or the shapes do not agree.

  Reference: Boudiaf et al., Few-Shot Segmentation Without Meta-Learning: A Good Transductive
  Inference Is All You Need?, CVPR 2021, section 3, https://arxiv.org/abs/2012.06166.
  """
  check_range("scale", scale, "(0, inf)")
  check_at_least(1, num_steps=num_steps)
  support, query = as_accumulator(support_features, query_features)
  check_arrays(
    support_features=(support, "[n, s, h, w, c]"),
    support_masks=(support_masks, "[n, s, h, w]"),
    query_features=(query, "[n, 1, h, w, c]"),
    query_valid=(query_valid, "[n, 1, h, w]"),
    proportion=(proportion, "[n]"),
  )
  shots = support.shape[1]
  check_at_least(1, **{"the number of shots": shots})
  kl_weight = 1 / shots if kl_weight is None else kl_weight
  entropy_weight = 1 / shots if entropy_weight is None else entropy_weight
  for name, value in (
    ("learning_rate", learning_rate),
    ("cross_entropy_weight", cross_entropy_weight),
    ("kl_weight", kl_weight),
    ("entropy_weight", entropy_weight),
  ):
    check_range(name, value, "[0, inf)")
  if proportion is not None:
    check_range("proportion", proportion, "[0, 1]")
  return _infer(
    support,
    jnp.asarray(support_masks),
    query,
    jnp.asarray(query_valid) == 1,
    None if proportion is None else jnp.asarray(proportion, support.dtype),
    scale=scale,
    num_steps=num_steps,
    learning_rate=learning_rate,
    proportion_update_step=proportion_update_step,
    cross_entropy_weight=cross_entropy_weight,
    kl_weight=kl_weight,
    entropy_weight=entropy_weight,
  )


@compiled_once
def _infer(
  support,
  support_masks,
  query,
  valid,
  proportion,
  *,
  scale,
  num_steps,
  learning_rate,
  proportion_update_step,
  cross_entropy_weight,
  kl_weight,
  entropy_weight,
) -> ProportionRegularized:
  support_norms, query_norms = _norm(support), _norm(query)
  num_valid = jnp.maximum(jnp.sum(valid, axis=(1, 2, 3)), 1)

  def probabilities(params, features, norms):
    prototype, bias = params
    logits = _cosine_logits(features, norms, prototype, scale)
    return jax.nn.sigmoid(logits - bias[:, None, None, None])

  def share(params):
    foreground = probabilities(params, query, query_norms)
    return jnp.sum(jnp.where(valid, foreground, 0.0), axis=(1, 2, 3)) / num_valid

  def objective(params, target, kl_weight):
    foreground = probabilities(params, query, query_norms)
    losses = (
      cross_entropy_weight
      * foreground_cross_entropy(probabilities(params, support, support_norms), support_masks)
      + kl_weight * proportion_kl(foreground, target, valid)
      + entropy_weight * pixel_entropy(foreground, valid)
    )
    return jnp.sum(losses)  # Tasks are independent: each gets its own gradient.

  def step(carry, i):
    params, target, weight = carry
    grads = jax.grad(objective)(params, target, weight)
    params = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
    if proportion is None:
      due = i == proportion_update_step - 1
      target = jax.lax.cond(due, share, lambda _: target, params)
      weight = jnp.where(due, weight + 1, weight)
    return (params, target, weight), None

  start = masked_prototype(support, support_masks)
  params = start, jnp.mean(_cosine_logits(query, query_norms, start, scale), axis=(1, 2, 3))
  target = share(params) if proportion is None else proportion
  carry = params, target, jnp.asarray(kl_weight, support.dtype)
  # One more index than steps, since the first must exist to tell the type.
  carry = varying_carry(step, carry, jnp.arange(1, num_steps + 1))
  (params, target, _), _ = jax.lax.scan(step, carry, jnp.arange(1, num_steps))
  return ProportionRegularized(*params, target, probabilities(params, query, query_norms))
