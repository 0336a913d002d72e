"""Classes that overlap by a known amount, so that the best possible prediction is known too."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_range,
  is_known,
)


class PairedNoise(NamedTuple):
  """Noisy labels.

  Attributes:
    labels: int `[n]`.
    partners: the class that each class may turn into, int `[k]`.
    is_flipped: which labels were flipped, bool `[n]`.
  """

  labels: chex.Array
  partners: chex.Array
  is_flipped: chex.Array


class OverlappingGaussians(NamedTuple):
  """Samples of a mixture of Gaussians.

  Attributes:
    inputs: `[n, d]`.
    labels: class that each was drawn from, int `[n]`.
    posterior: probability of each class given the input, `[n, k]`.
  """

  inputs: chex.Array
  labels: chex.Array
  posterior: chex.Array


def paired_label_noise(
  key: chex.PRNGKey,
  labels: chex.Array,
  *,
  num_classes: int,
  noise_rate: chex.Numeric,
  partners: chex.Array | None = None,
) -> PairedNoise:
  """Turns some labels of each class into those of one partner class.

  The classes y and its partner then overlap: an input of y carries label y with probability
  1 - noise_rate. If inputs determine the clean classes, the Bayes risk is the entropy of a coin
  with that probability.

  Args:
    key: random key.
    labels: clean classes, int `[n]`.
    num_classes: number k of classes, at least 2.
    noise_rate: probability of a flip, in [0, 1].
    partners: partner of each class, int `[k]`; None draws each uniformly from the other classes
      (some may share one). Pass those of the training set to give test labels the same
      distribution.

  Returns:
    A `PairedNoise`.

  Raises:
    ValueError: if `num_classes` < 2, `noise_rate` lies outside [0, 1], a concrete label or partner
      is not a class, or a concrete partner is the class itself.

  Reference: Chidambaram and Ge, On the Limitations of Temperature Scaling for Distributions with
  Overlaps, ICLR 2024, section 5, https://arxiv.org/abs/2306.00740.
  """
  check_at_least(2, num_classes=num_classes)
  check_range("noise_rate", noise_rate, "[0, 1]")
  check_arrays(labels=(labels, "int [n]"), partners=(partners, f"int [{num_classes}]"))
  check_range("labels", labels, f"[0, {num_classes})")
  labels = jnp.asarray(labels)
  labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
  partner_key, flip_key = jax.random.split(key)
  classes = jnp.arange(num_classes, dtype=labels.dtype)
  if partners is None:
    others = jax.random.randint(partner_key, (num_classes,), 0, num_classes - 1, labels.dtype)
    partners = others + (others >= classes)
  else:
    check_range("partners", partners, f"[0, {num_classes})")
    if is_known(partners) and np.any(np.asarray(partners) == np.arange(num_classes)):
      raise ValueError(f"partners must differ from their classes, got {partners}.")
    partners = jnp.asarray(partners, labels.dtype)
  is_flipped = jax.random.bernoulli(flip_key, as_accumulator(noise_rate), labels.shape)
  return PairedNoise(jnp.where(is_flipped, partners[labels], labels), partners, is_flipped)


def sample_overlapping_gaussians(
  key: chex.PRNGKey, *, num_samples: int, num_classes: int, dim: int, separation: chex.Numeric
) -> OverlappingGaussians:
  """Draws from Gaussians of unit variance, whose means lie on different axes.

  Args:
    key: random key.
    num_samples: number n of samples; their classes are drawn uniformly.
    num_classes: number k of classes.
    dim: number d of features, at least k; those beyond k are noise.
    separation: distance of each mean from the origin; the classes overlap more if it is smaller.

  Returns:
    An `OverlappingGaussians` in float32, with the exact posterior.

  Raises:
    ValueError: if `num_samples` or `num_classes` is less than 1, `dim` less than `num_classes`, or
      `separation` negative.

  Reference: Chidambaram and Ge, On the Limitations of Temperature Scaling for Distributions with
  Overlaps, ICLR 2024, section 5, https://arxiv.org/abs/2306.00740.
  """
  check_at_least(1, num_samples=num_samples, num_classes=num_classes)
  if dim < num_classes:
    raise ValueError(f"dim must be at least the number of classes, got {dim} < {num_classes}.")
  check_range("separation", separation, "[0, inf)")
  separation = as_accumulator(separation)
  label_key, noise_key = jax.random.split(key)
  labels = jax.random.randint(label_key, (num_samples,), 0, num_classes)
  inputs = jax.random.normal(noise_key, (num_samples, dim))
  inputs = inputs + separation * jax.nn.one_hot(labels, dim)
  # The means have equal norms, so all other terms cancel.
  return OverlappingGaussians(inputs, labels, jax.nn.softmax(separation * inputs[:, :num_classes]))
