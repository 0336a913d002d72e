"""Losses and weights of unlabeled examples, with the network's own guesses as targets."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_range, reaches, weighted


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
  confidence = jnp.max(jax.nn.softmax(weak_logits, axis=-1), axis=-1)
  guess = jnp.argmax(weak_logits, axis=-1)
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  values = -jnp.take_along_axis(log_probs, guess[..., None], axis=-1)[..., 0]
  return weighted(reaches(confidence, threshold), values)


def pseudo_label_mix_weight(
  max_prob: chex.Array,
  ratio: chex.Numeric,
  *,
  cutoff: chex.Numeric = 0.95,
  mix_cutoff: chex.Numeric = 0.95,
) -> jax.Array:
  """Whether a mixture with a guessed label counts.

  The smaller the share of the guessed example in the mixture, the lower the required confidence.

  Args:
    max_prob: probability of the guessed class on the weak view, `[b]`.
    ratio: share of the example with a known label, `[b]` or a scalar. It is used as given: pass
      max(ratio, 1 - ratio) if the known example has the larger share.
    cutoff: a probability of at least this is always enough, in [0, 1].
    mix_cutoff: a probability below this is not enough unless it reaches `cutoff`, in [0, 1]; if
      both are equal, the ratio has no effect.

  Returns:
    1 where max_prob >= min(cutoff, max(mix_cutoff, 1 - ratio)) and 0 elsewhere, `[b]`; NaN where
    the probability or the ratio is NaN.

  Raises:
    ValueError: if a cutoff or a known ratio lies outside [0, 1].

  Reference: Liu et al., NeurIPS 2023, section 4.3, https://arxiv.org/abs/2203.10761.
  """
  for name, value in (("cutoff", cutoff), ("mix_cutoff", mix_cutoff), ("ratio", ratio)):
    check_range(name, value, "[0, 1]")
  check_arrays(max_prob=(max_prob, "[...]"), ratio=(ratio if np.ndim(ratio) else None, "[...]"))
  max_prob, ratio = as_accumulator(max_prob, ratio)
  needed = jnp.minimum(cutoff, jnp.maximum(mix_cutoff, 1.0 - ratio))
  return reaches(max_prob, needed)
