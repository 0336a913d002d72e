"""Language models of a laptop: trained, scored and sampled, one program a seed.

Pairs of responses, reward models and post-training are in `kit.alignment`, models that experiments
share in `kit.zoo`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.kit.train import Trained, adamw_cosine, first_reaching, train
from jaxlab import algorithms, losses, models, samplers, training
from jaxlab.algorithms import Rollout
from jaxlab.data.reasoning import EOS_TOKEN


def decoder(
  vocab_size: int,
  length: int,
  *,
  hidden_size: int = 48,
  num_layers: int = 2,
  num_heads: int = 4,
  dropout_rate: float = 0.0,
  family: str = "llama",
  unstacked: bool = False,
) -> models.DecoderLM:
  """A decoder of texts of at most `length` tokens; "gpt2" has learned positions.

  Unstacked, every layer has parameters of its own, which is faster on a CPU.
  """
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads}
  sizes |= {"max_positions": length, "family": family}
  architecture = models.decoder_config(vocab_size=vocab_size, **sizes)
  return models.DecoderLM(architecture, dropout_rate=dropout_rate, unstacked=unstacked)


def text_loss(model: models.DecoderLM, perturb: Callable[..., chex.Array] | None = None):
  """The engine's loss of supervised training on batches with `tokens` and `loss_mask`.

  It is the mean over all tokens of the mask in a batch. `perturb(key, batch) -> tokens` changes
  what the model reads, not what it learns to predict.
  """

  def loss(params, model_state, batch, key):
    del model_state
    dropout_key, perturb_key = jax.random.split(key)
    tokens = batch.tokens if perturb is None else perturb(perturb_key, batch)
    options = {"deterministic": False, "rngs": {"dropout": dropout_key}}
    logits = model.apply({"params": params}, tokens, **options).logits
    log_probs = losses.causal_token_log_probs(logits, batch.tokens)
    return training.LossOutput(-log_probs, batch.loss_mask)

  return loss


def fit_decoder(
  key: chex.PRNGKey,
  model: nn.Module,
  batch: Any,
  *,
  num_steps: int,
  batch_size: int,
  learning_rate: chex.Numeric = 3e-3,
  weight_decay: chex.Numeric = 0.01,
  loss_fn: Callable[..., training.LossOutput] | None = None,
  **options: Any,
) -> Trained:
  """Trains with AdamW, its rate falling to 0 as a cosine; traceable.

  Args:
    key: of parameters, order and draws.
    model: the decoder, or a reward model.
    batch: rows `[n, ...]`, or `(key, batch_size) -> rows`, as `kit.train` takes them.
    num_steps: number of updates.
    batch_size: rows per update.
    learning_rate: at the first update.
    weight_decay: of AdamW.
    loss_fn: the engine's loss; `text_loss` by default.
    **options: `start`, `schedule`, `evaluate`, `eval_every` of `kit.train`.

  Returns:
    The `Trained`.
  """
  optimizer = adamw_cosine(learning_rate, num_steps, weight_decay=weight_decay)
  sizes = {"num_steps": num_steps, "batch_size": batch_size}
  return train(key, model, loss_fn or text_loss(model), optimizer, batch, **sizes, **options)


def search_decoder(
  key: chex.PRNGKey,
  model: nn.Module,
  batch: Any,
  *,
  learning_rates: Sequence[float],
  num_steps: int,
  num_evaluations: int,
  validate: Callable[[chex.ArrayTree], chex.Array],
  **options: Any,
) -> tuple[chex.ArrayTree, dict[str, jax.Array]]:
  """Trains with several learning rates, and keeps the rate and the update of the highest score.

  Args:
    key: as for `fit_decoder`; all rates share it.
    model: likewise.
    batch: likewise.
    learning_rates: the rates.
    num_steps: updates with each.
    num_evaluations: how often each training is scored; divides `num_steps`.
    validate: `params -> score`; NaN is never the highest if there is a number.
    **options: other options of `fit_decoder`.

  Returns:
    The parameters, and what was chosen: `validation`, `learning rate` and `update`.
  """
  every = num_steps // num_evaluations

  def with_rate(rate):
    evaluate = lambda now: (validate(now.params), now.params)  # noqa: E731
    sizes = {"num_steps": num_steps, "eval_every": every, "evaluate": evaluate}
    return fit_decoder(key, model, batch, learning_rate=rate, **sizes, **options).scores

  rates = jnp.asarray(learning_rates)
  scores, params = jax.lax.map(with_rate, rates)
  best = jnp.argmax(jnp.where(jnp.isnan(scores), -jnp.inf, scores))
  params = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[best], params)
  return params, {
    "validation": scores.ravel()[best],
    "learning rate": rates[best // num_evaluations],
    "update": (best % num_evaluations + 1) * every,
  }


# Texts at a time: with more, arrays leave the processor's cache and sampling is 6 times slower.
_MOST_ROWS = 1024


def fit_until(
  key: chex.PRNGKey,
  model: nn.Module,
  batch: Any,
  *,
  enough: float,
  num_steps: int,
  num_evaluations: int,
  validate: Callable[[chex.ArrayTree], chex.Array],
  **options: Any,
) -> tuple[chex.ArrayTree, dict[str, jax.Array]]:
  """Trains until a score is reached: seeds differ in when they learn by more than in what.

  Args:
    key: as for `fit_decoder`.
    model: likewise.
    batch: likewise.
    enough: the score at which training ends.
    num_steps: updates at most, over which the rate falls.
    num_evaluations: how often it is scored; divides `num_steps`.
    validate: `params -> score`.
    **options: other options of `fit_decoder`.

  Returns:
    The parameters of the first evaluation whose score is enough, else of the last; and its
    `validation` score and number of the `update`.
  """
  every = num_steps // num_evaluations
  evaluate = lambda now: (validate(now.params), now.params)  # noqa: E731
  sizes = {"num_steps": num_steps, "eval_every": every, "evaluate": evaluate}
  scores, params = fit_decoder(key, model, batch, **sizes, **options).scores
  stop = first_reaching(scores, enough)
  found = {"validation": scores[stop], "update": (stop + 1) * every}
  return jax.tree.map(lambda x: x[stop], params), found


def token_log_probs(
  model: models.DecoderLM, params: chex.ArrayTree, tokens: chex.Array
) -> jax.Array:
  """Log-probability of each token given those before it, `[..., T]`; 0 at the first position."""

  def of_rows(rows):
    logits = model.apply({"params": params}, rows).logits
    return losses.causal_token_log_probs(logits, rows)

  rows = tokens.reshape(-1, tokens.shape[-1])
  if len(rows) <= _MOST_ROWS:
    return of_rows(rows).reshape(tokens.shape)
  scores = jax.lax.map(lambda row: of_rows(row[None])[0], rows, batch_size=_MOST_ROWS)
  return scores.reshape(tokens.shape)


def response_log_probs(
  model: models.DecoderLM,
  params: chex.ArrayTree,
  tokens: chex.Array,
  mask: chex.Array,
  *,
  normalize_length: bool = False,
) -> jax.Array:
  """Log-probability of the masked tokens of each row, `[...]`: their sum, or their mean."""
  log_probs = token_log_probs(model, params, tokens)
  return losses.sequence_log_prob(log_probs, mask, normalize_length=normalize_length)


def respond(
  key: chex.PRNGKey,
  model: models.DecoderLM,
  params: chex.ArrayTree,
  prompts: chex.Array,
  *,
  num_samples: int,
  max_new_tokens: int,
  prompt_lengths: chex.Array | None = None,
  temperature: chex.Numeric = 1.0,
  eos_token_id: int = EOS_TOKEN,
  num_chunks: int | None = None,
) -> Rollout:
  """Samples several responses of each prompt, as one program; traceable.

  Args:
    key: random key.
    model: the decoder.
    params: its parameters.
    prompts: tokens, int32 `[b, P]`.
    num_samples: responses of each prompt, n.
    max_new_tokens: tokens of a response, its end included.
    prompt_lengths: int32 `[b]`; None for P.
    temperature: 0 is greedy; log-probabilities are the model's own in any case.
    eos_token_id: the token that ends a response.
    num_chunks: parts, one after another, in which the samples of a prompt are drawn; divides
      `num_samples`. None for the fewest parts of at most 1,024 texts.

  Returns:
    The `Rollout`: tokens, mask and log-probabilities `[b, n, P + max_new_tokens]`.
  """
  if num_chunks is None:
    num_rows, parts = len(prompts) * num_samples, range(1, num_samples + 1)
    fits = [n for n in parts if num_samples % n == 0 and num_rows // n <= _MOST_ROWS]
    num_chunks = min(fits, default=num_samples)
  if num_samples % num_chunks:
    raise ValueError(f"num_samples={num_samples} is no multiple of num_chunks={num_chunks}.")
  lengths = jnp.full(len(prompts), prompts.shape[1]) if prompt_lengths is None else prompt_lengths
  fns = samplers.flax_decode_fns(model, params)

  def some(key):
    sizes = {"num_samples": num_samples // num_chunks, "max_new_tokens": max_new_tokens}
    options = {"temperature": temperature, "eos_token_id": eos_token_id}
    return algorithms.sample_rollout(key, fns, prompts, lengths, **sizes, **options)

  if num_chunks == 1:
    return some(key)
  parts = jax.lax.map(some, jax.random.split(key, num_chunks))
  together = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, x.shape[-1])  # noqa: E731
  return jax.tree.map(together, parts)
