"""What the three parts of the pass@N experiment share: the decoder, training, pass@N."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import losses, models


def make_optimizer(config, num_steps: int) -> optax.GradientTransformation:
  """AdamW on a cosine to 0."""
  schedule = optax.cosine_decay_schedule(config.learning_rate, num_steps)
  return optax.adamw(schedule, weight_decay=config.weight_decay)


def token_log_probs(model: models.DecoderLM, params, tokens, *, temperature=1.0) -> jax.Array:
  """Log-probability of every token given those before it, `[b, T]`, 0 for the first."""
  logits = model.apply({"params": params}, tokens).logits
  return losses.causal_token_log_probs(logits / temperature, tokens)


def pass_at_n(log_probs, num_samples) -> jax.Array:
  """Mean probability that one of N samples is right, where each is right with e^log_probs."""
  return jnp.mean(jnp.exp(-losses.coverage_loss(log_probs, num_samples=num_samples)), axis=-1)


def at_best(scores, values) -> np.ndarray:
  """`values` where `scores` are best along the axis after the seeds; both `[seeds, n, ...]`."""
  best = scores.argmax(1)
  return np.take_along_axis(values, np.expand_dims(best, 1), axis=1)[:, 0]


def points(values) -> np.ndarray:
  """Shares as percentages."""
  return 100 * np.asarray(values)
