"""The dialogue task of papers on rewards: its reference policy, samples, true rewards, tilts.

Arrays of samples have the prompts first: all P of them, in order.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.kit import sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import (
  decoder,
  fit_decoder,
  respond,
  response_log_probs,
  text_loss,
)
from experiments.kit.train import adamw_cosine
from jaxlab import data, losses, metrics, models
from jaxlab.algorithms import Rollout

# What a tilt is searched within, in standard deviations of the rewards, and how often it is halved.
_BETAS, _HALVINGS = (1e-5, 1e5), 60
# Samples of a prompt that are drawn at once.
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class DialogueSizes:
  """The part of a configuration that papers on dialogues share."""

  num_prompts: int = 64  # Prompts, each with a Markov chain of responses.
  response_length: int = 8  # Tokens of a response.
  response_tokens: int = 16  # Tokens that responses are made of.
  decoder: tuple[int, ...] = (48, 2)  # Width and blocks of the policy.
  num_heads: int = 4  # Its attention heads.
  reference_updates: int = 1500  # Updates of the reference.
  reference_rows: int = 128  # Fresh dialogues per update.
  reference_rate: float = 3e-3  # AdamW with a cosine to 0.


def dialogues(config: DialogueSizes, **fields: Any) -> data.DialogueConfig:
  """The task of a configuration; the seed among the fields may be traced."""
  counts = (config.num_prompts, config.response_length, config.response_tokens)
  return data.DialogueConfig(*counts, **fields)


def policy(config: DialogueSizes) -> models.DecoderLM:
  """The decoder that is reference and policy."""
  task = dialogues(config)
  width, num_layers = config.decoder
  shape = {"hidden_size": width, "num_layers": num_layers, "num_heads": config.num_heads}
  return decoder(task.vocab_size, task.prompt_length + task.response_length + 1, **shape)


def fit_reference(
  key: chex.PRNGKey, config: DialogueSizes, task: data.DialogueConfig
) -> chex.ArrayTree:
  """Parameters of a decoder that is trained on fresh dialogues; traceable."""

  def rows(key, batch_size):
    return data.dialogue_batch(key, task, batch_size)

  trained = fit_decoder(
    key,
    policy(config),
    rows,
    num_steps=config.reference_updates,
    batch_size=config.reference_rows,
    learning_rate=config.reference_rate,
  )
  return trained.params


def prompts(task: data.DialogueConfig) -> jax.Array:
  """Tokens of all prompts, int32 `[P, 2]`."""
  first = task.first_prompt_token + jnp.arange(task.num_prompts, dtype=jnp.int32)
  return jnp.stack([first, jnp.full_like(first, task.separator_token)], axis=1)


def sample(
  key: chex.PRNGKey, config: DialogueSizes, params: chex.ArrayTree, num_samples: int
) -> Rollout:
  """Responses of a policy to every prompt, `[P, n, T]`, drawn in parts that fit into memory."""
  task, num_chunks = dialogues(config), -(-num_samples // _AT_ONCE)
  drawn = respond(
    key,
    policy(config),
    params,
    prompts(task),
    num_samples=num_chunks * -(-num_samples // num_chunks),
    max_new_tokens=task.response_length + 1,
    eos_token_id=task.end_token,
    num_chunks=num_chunks,
  )
  return jax.tree.map(lambda x: x[:, :num_samples], drawn)


def are_valid(task: data.DialogueConfig, tokens: chex.Array) -> jax.Array:
  """Which texts `[..., T]` hold as many response tokens as there should be, and then end."""
  response = tokens[..., task.prompt_length : -1] - task.first_response_token
  inside = (response >= 0) & (response < task.num_response_tokens)
  return jnp.all(inside, axis=-1) & (tokens[..., -1] == task.end_token)


def true_rewards(task: data.DialogueConfig, tokens: chex.Array, kind: str) -> jax.Array:
  """Rewards of texts `[P, n, T]`; one that does not end is no response of the right length."""
  ended = tokens[..., -1:] == task.end_token
  responses = jnp.where(ended, tokens[..., task.prompt_length : -1], task.pad_token)
  ids = jnp.repeat(jnp.arange(task.num_prompts), tokens.shape[1])
  rewards = data.dialogue_reward(task, ids, responses.reshape(-1, task.response_length), kind=kind)
  return rewards.reshape(tokens.shape[:2])


def divergences(config: DialogueSizes, reference: chex.ArrayTree, rollout: Rollout) -> jax.Array:
  """Divergence of a policy from the reference on its own samples, nats by prompt `[P]`."""

  def of_prompt(rollout):
    theirs = response_log_probs(policy(config), reference, rollout.tokens, rollout.mask)
    return jnp.mean(losses.sequence_log_prob(rollout.log_probs, rollout.mask) - theirs)

  return jax.lax.map(of_prompt, rollout)


class Tilt(NamedTuple):
  """The best policy for a reward, as weights of a pool of the reference's samples.

  Attributes:
    beta: weight of the divergence.
    weights: of the samples, `[P, m]`; they sum to 1 over those of a prompt.
    kl: divergence by prompt in nats, `[P]`.
  """

  beta: chex.Array
  weights: chex.Array
  kl: chex.Array


def tilt_to(rewards: chex.Array, kl: chex.Numeric) -> Tilt:
  """Tilts a pool `[P, m]` so far that its mean divergence over prompts has a given value."""

  def tilted(log_beta):
    weights = losses.tilted_weights(rewards, beta=jnp.exp(log_beta))
    return weights, jax.vmap(metrics.density_kl)(weights.shape[1] * weights)

  def halve(_, bounds):
    middle = 0.5 * (bounds[0] + bounds[1])
    too_far = jnp.mean(tilted(middle)[1]) > kl
    return jnp.where(too_far, middle, bounds[0]), jnp.where(too_far, bounds[1], middle)

  bounds = jnp.log(jnp.std(rewards)) + jnp.log(jnp.array(_BETAS))
  low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (bounds[0], bounds[1]))
  log_beta = 0.5 * (low + high)
  return Tilt(jnp.exp(log_beta), *tilted(log_beta))


def check_dialogues(config: DialogueSizes) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])


def abstract_reference(config: DialogueSizes, mesh: jax.sharding.Mesh):
  """The step that trains the reference, as an experiment's `abstract` returns it."""
  task, model = dialogues(config), policy(config)
  key = jax.eval_shape(lambda: jax.random.key(0))
  draw = lambda key: data.dialogue_batch(key, task, config.reference_rows)  # noqa: E731
  rows = jax.eval_shape(draw, key)
  optimizer = adamw_cosine(config.reference_rate, config.reference_updates)
  return abstract_step(model, text_loss(model), optimizer, rows, mesh)
