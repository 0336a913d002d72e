"""Mixing examples: convex combinations, pasted boxes and segments, hidden layers.

Every policy is called as `policy(key, inputs, labels, *, alpha, ...)` and returns a `Mixed`. Every
loss of two labels, such as `losses.mixup_cross_entropy`, takes the fields of a `Mixed`, so that any
policy works with any loss::

    mixed = augment.cutmix(key, images, labels, alpha=0.2)
    logits = apply(params, mixed.inputs)
    values = losses.decoupled_mixup_loss(logits, mixed.labels_a, mixed.labels_b, mixed.ratio)

To mix hidden activations, draw once with `draw_mix` and `mixing_layer`, and let the network call
`interpolate_pairs` at the drawn layer. The ratio is always the share of a row's own example.
"""

import operator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab.augment.boxes import (
  box_masks,
  box_mix,
  center_surround_saliency,
  segment_masks,
)
from jaxlab.augment.interpolation import batch_labels, interpolate_pairs, mix_arrays, mixable


class Mixed(NamedTuple):
  """A mixed batch: what every policy returns and every mixup loss takes.

  Attributes:
    inputs: the mixed inputs, `[b, ...]`.
    labels_a: labels of the rows themselves: the given labels, unchanged.
    labels_b: labels of the partners.
    ratio: share of a row's own example, float32 `[b]`.
    permutation: row of each partner, int32 `[b]`.
  """

  inputs: chex.Array
  labels_a: chex.ArrayTree
  labels_b: chex.ArrayTree
  ratio: chex.Array
  permutation: chex.Array


class MixDraw(NamedTuple):
  """Which rows are mixed, and in which ratio.

  Attributes:
    ratio: share of a row's own example, float32 `[b]`.
    permutation: row of each partner, int32 `[b]`.
  """

  ratio: chex.Array
  permutation: chex.Array


class MixedPair(NamedTuple):
  """Two batches mixed row by row.

  Attributes:
    inputs: the mixed inputs, `[n, ...]`.
    targets: the targets mixed in the same ratio, `[n, k]`.
    ratio: share of the first batch, one for all rows, float32 `[]`.
  """

  inputs: chex.Array
  targets: chex.Array
  ratio: chex.Array


def mixup(
  key: chex.PRNGKey,
  inputs: chex.Array,
  labels: chex.ArrayTree,
  *,
  alpha: chex.Numeric = 1.0,
  per_example: bool = False,
) -> Mixed:
  """Convex combinations of random pairs of a batch.

  Args:
    key: random key.
    inputs: `[b, ...]`; integers give float32.
    labels: pytree of arrays `[b, ...]`, such as classes, one-hot or soft labels.
    alpha: ratios are drawn from Beta(alpha, alpha), alpha > 0.
    per_example: whether to draw one ratio per row; else one for the batch.

  Returns:
    A `Mixed`.

  Raises:
    ValueError: if `alpha` is not positive or labels do not have b rows.

  Reference: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018,
  https://arxiv.org/abs/1710.09412.
  """
  check_arrays(inputs=(inputs, "[b, ...]"))
  inputs = jnp.asarray(inputs)
  draw = draw_mix(key, batch_size=inputs.shape[0], alpha=alpha, per_example=per_example)
  return _mixed(interpolate_pairs(inputs, draw.permutation, draw.ratio), labels, draw)


def mixup_pairs(
  key: chex.PRNGKey,
  inputs_a: chex.Array,
  inputs_b: chex.Array,
  targets_a: chex.Array,
  targets_b: chex.Array,
  *,
  alpha: chex.Numeric = 0.75,
  keep_first: bool = True,
) -> MixedPair:
  """Convex combinations of two batches, of inputs and targets in the same ratio.

  Args:
    key: random key.
    inputs_a: the first batch, `[n, ...]`; integers give float32.
    inputs_b: the second batch, `[n, ...]`, such as unlabeled examples.
    targets_a: one-hot or soft labels of the first, `[n, k]`.
    targets_b: those of the second, such as guesses, `[n, k]`.
    alpha: one ratio for all rows is drawn from Beta(alpha, alpha), alpha > 0.
    keep_first: whether the first batch gets the larger share, max(ratio, 1 - ratio).

  Returns:
    A `MixedPair`.

  Raises:
    ValueError: if `alpha` is not positive or shapes do not agree.

  Reference: Berthelot et al., MixMatch, NeurIPS 2019, section 3.3,
  https://arxiv.org/abs/1905.02249.
  """
  check_range("alpha", alpha, "(0, inf)")
  check_arrays(
    inputs_a=(inputs_a, "[n, ...]"),
    inputs_b=(inputs_b, "[n, ...]"),
    targets_a=(targets_a, "[n, k]"),
    targets_b=(targets_b, "[n, k]"),
  )
  ratio = jax.random.beta(key, alpha, alpha, (), jnp.float32)
  if keep_first:
    ratio = jnp.maximum(ratio, 1.0 - ratio)
  inputs, targets = (
    mix_arrays(mixable(a), mixable(b), ratio)
    for a, b in ((inputs_a, inputs_b), (targets_a, targets_b))
  )
  return MixedPair(inputs, targets, ratio)


def cutmix(
  key: chex.PRNGKey,
  images: chex.Array,
  labels: chex.ArrayTree,
  *,
  alpha: chex.Numeric = 1.0,
  per_example: bool = False,
) -> Mixed:
  """Pastes a box of a random partner into every image.

  Args:
    key: random key.
    images: `[b, h, w, c]`.
    labels: pytree of arrays `[b, ...]`, such as classes, one-hot or soft labels.
    alpha: the share that is kept is drawn from Beta(alpha, alpha), alpha > 0; the box is clipped
      at the borders, and the ratio returned counts the pixels.
    per_example: whether to draw one box per row; else one for the batch.

  Returns:
    A `Mixed`, its inputs in the dtype of `images`.

  Raises:
    ValueError: if `alpha` is not positive or labels do not have b rows.

  Reference: Yun et al., CutMix, ICCV 2019, https://arxiv.org/abs/1905.04899.
  """
  check_arrays(images=(images, "[b, h, w, c]"))
  images = jnp.asarray(images)
  b, height, width, _ = images.shape
  draw_key, center_key = jax.random.split(key)
  draw = draw_mix(draw_key, batch_size=b, alpha=alpha, per_example=per_example)
  shape = (b if per_example else 1, 2)
  centers = jax.random.randint(center_key, shape, 0, jnp.array([[height, width]]))
  centers = jnp.broadcast_to(centers, (b, 2))
  masks = box_masks(centers, draw.ratio, height=height, width=width)
  return _pasted(images, labels, draw, masks)


def saliency_box_mix(
  key: chex.PRNGKey, images: chex.Array, labels: chex.ArrayTree, *, alpha: chex.Numeric = 1.0
) -> Mixed:
  """Pastes the partner's box around its most salient pixel.

  A randomly placed box may miss the object that the partner's label names. Here the center of the
  box is the first maximum of `center_surround_saliency`.

  Args:
    key: random key.
    images: `[b, h, w, c]`.
    labels: pytree of arrays `[b, ...]`, such as classes, one-hot or soft labels.
    alpha: the share that is kept is drawn from Beta(alpha, alpha), one for the batch, alpha > 0.

  Returns:
    A `Mixed`, its inputs in the dtype of `images`.

  Raises:
    ValueError: if `alpha` is not positive or labels do not have b rows.

  Reference: Uddin et al., SaliencyMix, ICLR 2021, https://arxiv.org/abs/2006.01791.
  """
  check_arrays(images=(images, "[b, h, w, c]"))
  images = jnp.asarray(images)
  b, height, width, _ = images.shape
  draw = draw_mix(key, batch_size=b, alpha=alpha)
  saliency = center_surround_saliency(images)[draw.permutation]
  peaks = jnp.argmax(saliency.reshape(b, height * width), axis=-1)
  centers = jnp.stack([peaks // width, peaks % width], axis=-1)
  masks = box_masks(centers, draw.ratio, height=height, width=width)
  return _pasted(images, labels, draw, masks)


def segment_mix(
  key: chex.PRNGKey,
  signals: chex.Array,
  labels: chex.ArrayTree,
  *,
  alpha: chex.Numeric = 1.0,
  per_example: bool = False,
) -> Mixed:
  """Pastes a segment of a random partner into every signal: `cutmix` in one dimension.

  Args:
    key: random key.
    signals: `[b, t, c]`.
    labels: pytree of arrays `[b, ...]`, such as classes, one-hot or soft labels.
    alpha: the share that is kept is drawn from Beta(alpha, alpha), alpha > 0.
    per_example: whether to draw one segment per row; else one for the batch.

  Returns:
    A `Mixed`, its inputs in the dtype of `signals`.

  Raises:
    ValueError: if `alpha` is not positive or labels do not have b rows.

  Reference: Yun et al., CutMix, ICCV 2019, https://arxiv.org/abs/1905.04899.
  """
  check_arrays(signals=(signals, "[b, t, c]"))
  signals = jnp.asarray(signals)
  b, length, _ = signals.shape
  draw_key, center_key = jax.random.split(key)
  draw = draw_mix(draw_key, batch_size=b, alpha=alpha, per_example=per_example)
  centers = jax.random.randint(center_key, (b if per_example else 1,), 0, length)
  masks = segment_masks(jnp.broadcast_to(centers, (b,)), draw.ratio, length=length)
  return _pasted(signals, labels, draw, masks)


def draw_mix(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  alpha: chex.Numeric = 1.0,
  per_example: bool = False,
  majority: bool = False,
) -> MixDraw:
  """Draws partners and ratios for a batch.

  Args:
    key: random key.
    batch_size: number b of rows.
    alpha: ratios are drawn from Beta(alpha, alpha), alpha > 0.
    per_example: whether to draw one ratio per row; else one for the batch.
    majority: whether the row itself gets the larger share, max(ratio, 1 - ratio), so that a known
      label dominates the guessed label of its partner.

  Returns:
    A `MixDraw`; partners are a uniform permutation of the rows.

  Raises:
    ValueError: if `alpha` is not positive or `batch_size` < 0.

  Reference: Zhang et al., ICLR 2018, https://arxiv.org/abs/1710.09412.
  """
  check_range("alpha", alpha, "(0, inf)")
  check_at_least(0, batch_size=batch_size)
  ratio_key, order_key = jax.random.split(key)
  shape = (batch_size if per_example else 1,)
  ratio = jax.random.beta(ratio_key, alpha, alpha, shape, jnp.float32)
  if majority:
    ratio = jnp.maximum(ratio, 1.0 - ratio)
  order = jax.random.permutation(order_key, batch_size).astype(jnp.int32)
  return MixDraw(jnp.broadcast_to(ratio, (batch_size,)), order)


def mixing_layer(key: chex.PRNGKey, *, num_layers: int) -> jax.Array:
  """Draws the layer at which manifold mixup mixes.

  The network compares the number with each of its layers and mixes where they are equal
  (`jnp.where` or `jax.lax.switch`), so that one program serves all layers.

  Args:
    key: random key.
    num_layers: number of layers, including the input as layer 0.

  Returns:
    A number in `[0, num_layers)`, int32 `[]`.

  Raises:
    ValueError: if `num_layers` < 1.

  Reference: Verma et al., Manifold Mixup, ICML 2019, https://arxiv.org/abs/1806.05236.
  """
  check_at_least(1, num_layers=num_layers)
  return jax.random.randint(key, (), 0, num_layers, jnp.int32)


def _mixed(inputs: jax.Array, labels: chex.ArrayTree, draw: MixDraw) -> Mixed:
  labels = batch_labels(labels, inputs.shape[0])
  partners = jax.tree.map(operator.itemgetter(draw.permutation), labels)
  return Mixed(inputs, labels, partners, *draw)


def _pasted(images: jax.Array, labels: chex.ArrayTree, draw: MixDraw, masks: jax.Array) -> Mixed:
  """Pastes the partners; the ratio becomes the share of kept pixels in place of the drawn one."""
  pasted = box_mix(images, images[draw.permutation], masks)
  return _mixed(pasted.images, labels, draw._replace(ratio=pasted.ratio))
