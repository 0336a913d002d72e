"""Losses on unlabeled examples, with the network's own guesses as targets."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range


def fixmatch_loss(
  logits: chex.Array, weak_logits: chex.Array, *, threshold: chex.Numeric = 0.95
) -> jax.Array:
  """Cross-entropy of a strong view to the class that a weak view predicts with confidence.

  Rows where the weak view is not confident have loss 0. Take the mean over all rows, not over the
  confident ones, so that the loss gains weight as the network learns.

  Args:
    logits: scores of the strongly augmented view, `[..., k]`.
    weak_logits: scores of the weakly augmented view, `[..., k]`; no gradient flows into them.
    threshold: smallest probability of the guessed class that counts, in [0, 1].

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `threshold` lies outside [0, 1].

  Reference: Sohn et al., FixMatch, NeurIPS 2020, equation 4, https://arxiv.org/abs/2001.07685.
  """
  check_range("threshold", threshold, "[0, 1]")
  check_arrays(logits=(logits, "[..., k]"), weak_logits=(weak_logits, "[..., k]"))
  logits, weak_logits = as_accumulator(logits, weak_logits)
  weak_logits = jax.lax.stop_gradient(weak_logits)
  confident = jnp.max(jax.nn.softmax(weak_logits, axis=-1), axis=-1) >= threshold
  guess = jnp.argmax(weak_logits, axis=-1)
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  values = -jnp.take_along_axis(log_probs, guess[..., None], axis=-1)[..., 0]
  return jnp.where(confident, values, 0.0)
