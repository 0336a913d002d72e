"""Gaussian classes of equal shape, whose distance grows with the number of features."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_at_least
from jaxlab._programs import varying_carry


class GaussianClasses(NamedTuple):
  """Features `[m, n]` and labels, int32 `[m]`."""

  features: chex.Array
  labels: chex.Array


def gaussian_class_means(*, num_features: int, num_classes: int) -> jax.Array:
  """Means of the classes of `sample_gaussian_classes`.

  Args:
    num_features: number n of features.
    num_classes: number k of classes.

  Returns:
    float32 `[k, n]`: -1 in every feature of class 0, and 2^(c - 1) in those of class c.

  Raises:
    ValueError: if `num_features` or `num_classes` is below 2.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  check_at_least(2, num_features=num_features, num_classes=num_classes)
  levels = jnp.exp2(jnp.arange(num_classes, dtype=jnp.float32) - 1).at[0].set(-1.0)
  return jnp.broadcast_to(levels[:, None], (num_classes, num_features))


def sample_gaussian_classes(
  key: chex.PRNGKey, *, num_samples: int, num_features: int, num_classes: int
) -> GaussianClasses:
  """Draws examples that naive Bayes learns from a handful, and logistic regression from O(n).

  Features are independent given the class, with variance n in the first ⌊n/2⌋ and 1 in the others.
  Two classes have the Bayes error Φ(-sqrt(⌊n/2⌋ / n + n - ⌊n/2⌋)).

  Args:
    key: random key.
    num_samples: number m of examples, at least one for each class.
    num_features: number n of features.
    num_classes: number k of classes, with equal priors. Labels in which a class is missing are
      drawn again, which takes long if m is hardly more than k and both are large.

  Returns:
    `GaussianClasses` in float32, before any scaling.

  Raises:
    ValueError: if `num_features` or `num_classes` is below 2, or `num_samples` below `num_classes`.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  check_at_least(2, num_features=num_features, num_classes=num_classes)
  check_at_least(num_classes, num_samples=num_samples)
  return _sample(key, num_samples, num_features, num_classes)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _sample(key, num_samples, num_features, num_classes) -> GaussianClasses:
  label_key, noise_key = jax.random.split(key)
  classes = jnp.arange(num_classes)

  def draw(carry):
    attempt, _ = carry
    key = jax.random.fold_in(label_key, attempt)
    return attempt + 1, jax.random.randint(key, (num_samples,), 0, num_classes)

  def misses_a_class(carry):
    _, labels = carry
    return ~jnp.all(jnp.any(labels[:, None] == classes[None], axis=0))

  none = jnp.int32(0), jnp.zeros(num_samples, jnp.int32)
  _, labels = jax.lax.while_loop(misses_a_class, draw, varying_carry(draw, none))
  is_wide = jnp.arange(num_features) < num_features // 2
  scale = jnp.where(is_wide, jnp.sqrt(jnp.float32(num_features)), 1.0)
  noise = jax.random.normal(noise_key, (num_samples, num_features), jnp.float32)
  means = gaussian_class_means(num_features=num_features, num_classes=num_classes)
  return GaussianClasses(means[labels] + scale[None] * noise, labels)
