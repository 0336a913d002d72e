"""Modular chains as texts of a language model: their steps, and what the model answers."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.language_models import decoder, respond, token_log_probs
from jaxlab import data, losses, models, training
from jaxlab.data import ModularChainConfig, ParsedChain

_MOST_ROWS = 1024  # Texts that are completed at a time; more do not fit the processor's cache.
_DRAWS_PER_ENTRY = 24  # An entry of the table is missed with probability e^-24.


class Steps(NamedTuple):
  """Texts whose steps are learned by weight.

  Attributes:
    tokens: int32 `[n, T]`.
    advantages: of the steps, `[n, S]`; 0 is weight 1.
    mask: which steps are learned, `[n, S]`.
  """

  tokens: chex.Array
  advantages: chex.Array
  mask: chex.Array


def network(chains: ModularChainConfig, size: tuple[int, int], **options: Any) -> models.DecoderLM:
  """A decoder of texts of these chains, of a width and a number of blocks."""
  length = chains.prompt_length + chains.response_length
  return decoder(chains.vocab_size, length, hidden_size=size[0], num_layers=size[1], **options)


def step_length(chains: ModularChainConfig) -> int:
  """Tokens of a step."""
  return chains.response_length // (chains.num_terms - 1)


def step_ids(chains: ModularChainConfig) -> np.ndarray:
  """Which step each token of a text belongs to, the end to the last one; -1 in the problem."""
  places = np.arange(-chains.prompt_length, chains.response_length)
  return np.where(places < 0, -1, np.minimum(places // step_length(chains), chains.num_terms - 2))


def step_log_probs(
  model: models.DecoderLM, params: chex.ArrayTree, chains: ModularChainConfig, tokens: chex.Array
) -> jax.Array:
  """Log-probabilities of the steps of texts `[n, T]`, the end with the last one, `[n, S]`."""
  ids = jnp.broadcast_to(jnp.asarray(step_ids(chains)), tokens.shape)
  log_probs = token_log_probs(model, params, tokens)
  return losses.segment_log_probs(log_probs, ids, num_segments=chains.num_terms - 1)


def step_loss(model: models.DecoderLM, chains: ModularChainConfig, **options: Any):
  """The engine's loss on `Steps`; options are those of `losses.advantage_weighted_nll`."""

  def loss(params, model_state, batch, key):
    del model_state, key
    log_probs = step_log_probs(model, params, chains, batch.tokens)
    weighted = losses.advantage_weighted_nll(
      log_probs, batch.advantages, mask=batch.mask, **options
    )
    return training.LossOutput(weighted)

  return loss


def parse(chains: ModularChainConfig, tokens: chex.Array) -> ParsedChain:
  """Steps `[..., S]` and answers `[...]` of texts `[..., T]`; what follows a text is ignored."""
  rows = tokens.reshape(-1, tokens.shape[-1])[:, chains.prompt_length :]
  parsed = data.parse_chain(chains, rows)
  return ParsedChain(*(x.reshape(*tokens.shape[:-1], *x.shape[1:]) for x in parsed))


def right_steps(chains: ModularChainConfig, tokens: chex.Array) -> jax.Array:
  """Whether each step of texts `[..., T]` follows from the one before, bool `[..., S]`."""
  steps = parse(chains, tokens).steps
  rows = tokens.reshape(-1, tokens.shape[-1])[:, : chains.prompt_length]
  right = data.check_steps(chains, rows, steps.reshape(-1, steps.shape[-1]))
  return right.reshape(steps.shape)


def num_clean_steps(chains: ModularChainConfig, tokens: chex.Array, clean: chex.Array) -> jax.Array:
  """How many steps, from the first one on, texts `[..., T]` share with clean ones, `[...]`.

  All tokens count, also those that restate the problem, and the end counts to the last step; of the
  text that has all steps the probability is that of `clean`.
  """
  ids = jnp.asarray(step_ids(chains))
  differs = (tokens[..., : len(ids)] != clean) & (ids >= 0)
  return jnp.where(differs.any(-1), ids[jnp.argmax(differs, axis=-1)], chains.num_terms - 1)


def exact_coverage(probs: chex.Array, ks: chex.Array) -> jax.Array:
  """Share of problems, solved with probabilities `[..., n]`, that k attempts solve, `[..., m]`."""
  missed = jnp.log1p(-jnp.minimum(probs, 1.0))[..., None] * jnp.asarray(ks, jnp.float32)
  return jnp.mean(-jnp.expm1(missed), axis=-2)


def greedy_texts(
  model: models.DecoderLM, params: chex.ArrayTree, chains: ModularChainConfig, tokens: chex.Array
) -> jax.Array:
  """Texts `[n, T]` of the same problems with the model's greedy solutions."""
  prompts = tokens[:, : chains.prompt_length]
  sizes = {"num_samples": 1, "max_new_tokens": chains.response_length, "temperature": 0.0}
  return respond(jax.random.key(0), model, params, prompts, **sizes).tokens[:, 0]


def greedy_accuracy(
  model: models.DecoderLM,
  params: chex.ArrayTree,
  chains: ModularChainConfig,
  tokens: chex.Array,
  answers: chex.Array,
) -> jax.Array:
  """Share of problems with the right answer; NaN if the model gives no numbers."""
  right = parse(chains, greedy_texts(model, params, chains, tokens)).answer == answers
  finite = jnp.all(jnp.isfinite(token_log_probs(model, params, tokens[:1])))
  return jnp.where(finite, jnp.mean(right.astype(jnp.float32)), jnp.nan)


def always_wrong(chains: ModularChainConfig) -> ModularChainConfig:
  """Chains that show every misconception that they meet, and are right elsewhere."""
  return dataclasses.replace(chains, misconception_prob=1.0, noise=0.0)


def misconception_table(key: chex.PRNGKey, chains: ModularChainConfig) -> jax.Array:
  """The wrong value of each (operator, left, right), `[3, modulus, modulus]`; -1 where none is.

  It is read from problems of one step.
  """
  one_step = dataclasses.replace(always_wrong(chains), num_terms=2)
  shape = (3, chains.modulus, chains.modulus)
  batch = data.modular_chain_batch(key, one_step, _DRAWS_PER_ENTRY * int(np.prod(shape)))
  wrong = ~data.check_steps(one_step, batch.tokens, batch.steps)
  places = entries(one_step, batch.tokens, batch.steps)
  return jnp.full(shape, -1, jnp.int32).at[places].set(jnp.where(wrong, batch.steps, -1))


def entries(chains: ModularChainConfig, tokens: chex.Array, steps: chex.Array):
  """The entries (operator, left, right) that the steps `[..., S]` of texts `[..., T]` meet."""
  first_number = chains.vocab_size - chains.modulus
  problem = tokens[..., : chains.prompt_length - 1]
  terms, operators = problem[..., ::2] - first_number, problem[..., 1::2] - (first_number - 3)
  left = jnp.concatenate([terms[..., :1], steps[..., :-1]], axis=-1)
  return operators, left, terms[..., 1:]


def complete(
  key: chex.PRNGKey,
  model: models.DecoderLM,
  params: chex.ArrayTree,
  chains: ModularChainConfig,
  texts: tuple[chex.Array, chex.Array],
  done: chex.Array,
  *,
  num_rollouts: int,
) -> dict[str, jax.Array]:
  """Completes texts after some of their steps.

  Args:
    key: random key.
    model: the decoder.
    params: its parameters.
    chains: the chains.
    texts: tokens `[n, T]`, and the right answers `[n]`.
    done: how many steps of each text stay, `[n]`.
    num_rollouts: completions of each.

  Returns:
    `hits`: which completions end with the right answer, bool `[n, num_rollouts]`; and the number of
    `sampled tokens`.
  """
  num, parts = len(done), -(-len(done) // _MOST_ROWS)
  rows = jnp.arange(parts * -(-num // parts)) % num  # The last part is as large as the others.

  def some(inputs):
    key, rows = inputs
    tokens, answers = (x[rows] for x in texts)
    rollout = respond(
      key,
      model,
      params,
      tokens[:, :-1],
      num_samples=num_rollouts,
      max_new_tokens=chains.response_length,
      prompt_lengths=chains.prompt_length + step_length(chains) * done[rows],
    )
    hits = parse(chains, rollout.tokens).answer == answers[:, None]
    return hits, jnp.sum(rollout.mask, axis=(1, 2))

  found = jax.lax.map(some, (jax.random.split(key, parts), rows.reshape(parts, -1)))
  hits, counts = (x.reshape(-1, *x.shape[2:])[:num] for x in found)
  return {"hits": hits, "sampled tokens": jnp.sum(counts)}


def complete_prefixes(
  key: chex.PRNGKey,
  model: models.DecoderLM,
  params: chex.ArrayTree,
  chains: ModularChainConfig,
  texts: tuple[chex.Array, chex.Array],
  *,
  num_rollouts: int,
) -> dict[str, jax.Array]:
  """`complete` after each number of steps: `hits` `[n, S + 1, num_rollouts]`.

  After the last step nothing is left to sample, and all hit or none.
  """
  num_steps, (tokens, answers) = chains.num_terms - 1, texts
  sizes = {"num_rollouts": num_rollouts}

  def after(inputs):
    key, done = inputs
    return complete(key, model, params, chains, texts, jnp.full(len(tokens), done), **sizes)

  keys = jax.random.split(key, num_steps)
  found = jax.lax.map(after, (keys, jnp.arange(num_steps)))
  ended = (parse(chains, tokens).answer == answers)[:, None, None]
  ended = jnp.broadcast_to(ended, (len(tokens), 1, num_rollouts))
  hits = jnp.concatenate([jnp.moveaxis(found["hits"], 0, 1), ended], axis=1)
  return {"hits": hits, "sampled tokens": jnp.sum(found["sampled tokens"])}


def replace_steps(
  key: chex.PRNGKey,
  model: models.DecoderLM,
  params: chex.ArrayTree,
  chains: ModularChainConfig,
  texts: tuple[chex.Array, chex.Array],
  step: chex.Array,
  *,
  num_candidates: int,
  num_rollouts: int,
) -> dict[str, jax.Array]:
  """Samples other steps in the place of one `[n]`, and completions after them.

  Gives the `tokens` of the prefixes with the other steps, `[n, num_candidates, T]`; their `hits`,
  `[n, num_candidates, num_rollouts]`; and the number of `sampled tokens`.
  """
  length, (tokens, answers) = step_length(chains), texts
  draw_key, hits_key = jax.random.split(key)
  rollout = respond(
    draw_key,
    model,
    params,
    tokens[:, :-1],
    num_samples=num_candidates,
    max_new_tokens=length,
    prompt_lengths=chains.prompt_length + length * step,
  )
  begun = rollout.tokens[..., : tokens.shape[1]]
  answers, done = (jnp.repeat(x, num_candidates) for x in (answers, step + 1))
  rows = begun.reshape(-1, begun.shape[-1]), answers
  sizes = {"num_rollouts": num_rollouts}
  found = complete(hits_key, model, params, chains, rows, done, **sizes)
  return {
    "tokens": begun,
    "hits": found["hits"].reshape(*begun.shape[:2], -1),
    "sampled tokens": found["sampled tokens"] + jnp.sum(rollout.mask),
  }
