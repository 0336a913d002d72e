"""Digits whose labels are noisy, hidden, or both, so that noise and ignorance can be told apart."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
)

_NUM_CLASSES = 10
# The second answer of each digit, and whether it is drawn with every label or once per input.
_SECOND = np.array([0, 2, 2, 4, 4, 6, 6, 8, 8, 0], np.int32)
_IS_COIN = np.isin(np.arange(_NUM_CLASSES), (1, 3))
_IS_HINTED = np.arange(_NUM_CLASSES) == 9


class AmbiguousBatch(NamedTuple):
  """Inputs with two labels each.

  Attributes:
    inputs: noisy pixels and a cue, `[b, d + 1]`.
    labels_a: int32 `[b]`.
    labels_b: int32 `[b]`; independent of the other given `probs`.
    probs: true probabilities of the labels of each input, `[b, 10]`.
    digits: the digit that is shown, int32 or wider `[b]`.
  """

  inputs: chex.Array
  labels_a: chex.Array
  labels_b: chex.Array
  probs: chex.Array
  digits: chex.Array


def ambiguous_digit_batch(
  key: chex.PRNGKey,
  images: chex.Array,
  digits: chex.Array,
  *,
  batch_size: int,
  contrast: chex.Numeric = 1.0,
  pixel_noise: chex.Numeric = 0.1,
) -> AmbiguousBatch:
  """Draws images of digits, each with two labels from a distribution that depends on its digit.

  Every draw has a fair bit u of its own. Even digits are labeled as they are. 1 and 3 are noise:
  either label is the digit or the next one, by a coin. 5 and 7 are ignorance: u decides whether all
  labels are the digit or the next one, and nothing shows u. Of 9, u decides between 9 and 0, and
  the cue `contrast (2u - 1) + N(0, 1)` shows some of it: given the cue, u is 1 with probability
  `sigmoid(2 contrast cue)`. Other digits have a cue of noise.

  Args:
    key: random key.
    images: pixels in [0, 1], such as those of scikit-learn's digits over 16, `[n, d]`.
    digits: the digit of each, int `[n]`.
    batch_size: number of draws b, uniform and with replacement.
    contrast: how much the cue of a 9 shows, at least 0.
    pixel_noise: standard deviation of the noise added to the pixels, at least 0; every draw is then
      an input of its own.

  Returns:
    `AmbiguousBatch`. A traced digit outside [0, 10) gives NaN probabilities and the labels 10.

  Raises:
    ValueError: if `batch_size` < 1, `contrast` or `pixel_noise` is negative, there are no images, a
      known pixel lies outside [0, 1] or a known digit outside [0, 10).

  Reference: the problem is ours, for Johnson et al., Experts Don't Cheat: Learning What You Don't
  Know By Predicting Pairs, ICML 2024, https://arxiv.org/abs/2402.08733.
  """
  check_at_least(1, batch_size=batch_size)
  check_range("contrast", contrast, "[0, inf)")
  check_range("pixel_noise", pixel_noise, "[0, inf)")
  check_arrays(images=(images, "[n, d]"), digits=(digits, "int [n]"))
  check_filled(images=images)
  check_range("images", images, "[0, 1]")
  images, contrast, pixel_noise = as_accumulator(images, contrast, pixel_noise)
  row_key, bit_key, cue_key, noise_key, label_key = jax.random.split(key, 5)
  rows = jax.random.randint(row_key, (batch_size,), 0, images.shape[0])
  digits = as_classes("digits", digits, _NUM_CLASSES)[rows]
  known = digits < _NUM_CLASSES
  digit = jnp.where(known, digits, 0)
  bit = jax.random.bernoulli(bit_key, shape=(batch_size,))
  hint = jnp.where(jnp.asarray(_IS_HINTED)[digit], contrast * (2 * bit - 1), 0.0)
  cue = hint + jax.random.normal(cue_key, (batch_size,))
  noise = jax.random.normal(noise_key, (batch_size, images.shape[1]))
  inputs = jnp.concatenate([images[rows] + pixel_noise * noise, cue[:, None]], axis=1)
  # How likely the second answer is: ½ for a coin, else 0 or 1 by the bit.
  share = jnp.where(jnp.asarray(_IS_COIN)[digit], 0.5, bit.astype(inputs.dtype))[:, None]
  second = jnp.asarray(_SECOND)[digit]
  first_hot, second_hot = (
    jax.nn.one_hot(answer, _NUM_CLASSES, dtype=inputs.dtype) for answer in (digit, second)
  )
  probs = (1 - share) * first_hot + share * second_hot
  takes_second = jax.random.uniform(label_key, (2, batch_size)) < share[None, :, 0]
  labels = jnp.where(takes_second, second[None], digit[None])
  labels = jnp.where(known[None], labels, _NUM_CLASSES).astype(jnp.int32)
  probs = jnp.where(known[:, None], probs, jnp.nan)
  return AmbiguousBatch(inputs, labels[0], labels[1], probs, digits)
