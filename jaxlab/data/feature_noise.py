"""Patches of which one shows a common or a rare feature of the class, and the others are noise."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_at_least, check_range


class PatchData(NamedTuple):
  """Examples made of patches.

  Attributes:
    patches: `[n, P, d]`, in random order within an example.
    labels: class, i32 `[n]`.
    is_rare: whether the example has the rare feature of its class, bool `[n]`.
    features: orthonormal directions, `[4, d]`: common ones of class 0 and 1, rare ones of 0 and 1.
  """

  patches: chex.Array
  labels: chex.Array
  is_rare: chex.Array
  features: chex.Array


def sample_patches(
  key: chex.PRNGKey,
  *,
  num_samples: int,
  dim: int = 500,
  num_patches: int = 4,
  rare_prob: float = 0.06,
  distractor_scale: float = 0.05,
  noise_std: float = 0.2,
  num_distractors: int = 1,
  rare: bool | None = None,
  stratified: bool = False,
) -> PatchData:
  """Draws two classes that most examples show by a common feature and some by a rare one.

  One patch is the feature of the class. `num_distractors` patches hold a weak common feature of
  either class, whatever the label. The others are Gaussian noise orthogonal to all features, by
  which a network can remember an example instead of learning its feature.

  Args:
    key: random key.
    num_samples: number n of examples.
    dim: dimension d of a patch, at least 5.
    num_patches: number P of patches.
    rare_prob: share of examples with the rare feature, in [0, 1].
    distractor_scale: length of a distractor.
    noise_std: standard deviation of the noise, in each direction.
    num_distractors: patches with a distractor.
    rare: True or False gives all examples the rare or the common feature, and overrides
      `rare_prob`.
    stratified: whether labels alternate and every class has exactly round(rare_prob n / 2) rare
      examples.

  Returns:
    A `PatchData`; the features are the first four axes.

  Raises:
    ValueError: if `dim` < 5, `num_samples` < 1, `num_distractors` or `noise_std` < 0,
      `num_patches` < num_distractors + 1, or `rare_prob` lies outside [0, 1].

  Reference: Zou et al., The Benefits of Mixup for Feature Learning, ICML 2023, definition 3.1,
  https://arxiv.org/abs/2303.08433.
  """
  check_at_least(5, dim=dim)
  check_at_least(1, num_samples=num_samples)
  check_at_least(0, num_distractors=num_distractors)
  check_range("noise_std", noise_std, "[0, inf)")
  if num_patches < num_distractors + 1:
    raise ValueError(
      f"num_patches must be at least num_distractors + 1 = {num_distractors + 1}, "
      f"got {num_patches}."
    )
  check_range("rare_prob", rare_prob, "[0, 1]")
  label_key, rare_key, distractor_key, noise_key, order_key = jax.random.split(key, 5)
  rows = jnp.arange(num_samples)
  if stratified:
    labels = rows % 2
    is_rare = rows // 2 < round(rare_prob * num_samples / 2)
  else:
    labels = jax.random.randint(label_key, (num_samples,), 0, 2)
    is_rare = jax.random.bernoulli(rare_key, rare_prob, (num_samples,))
  if rare is not None:
    is_rare = jnp.full((num_samples,), rare)
  features = jnp.eye(4, dim)
  shown = features[jnp.where(is_rare, 2, 0) + labels][:, None]
  sides = jax.random.randint(distractor_key, (num_samples, num_distractors), 0, 2)
  shape = (num_samples, num_patches - 1 - num_distractors, dim)
  noise = noise_std * jax.random.normal(noise_key, shape)
  noise = jnp.where(jnp.arange(dim) < 4, 0.0, noise)
  patches = jnp.concatenate([shown, distractor_scale * features[sides], noise], axis=1)
  orders = jax.vmap(lambda k: jax.random.permutation(k, num_patches))(
    jax.random.split(order_key, num_samples)
  )
  patches = jnp.take_along_axis(patches, orders[..., None], axis=1)
  return PatchData(patches, labels.astype(jnp.int32), is_rare, features)
