"""Models of synthetic conversations: supervised training, then reward for compliance."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.alignment.alignment_faking.measures import known_gap, measure, parse
from experiments.kit.alignment import post_train, post_trainer
from experiments.kit.language_models import decoder, fit_decoder
from jaxlab import algorithms, data, models
from jaxlab.data.deployment_prompts import DOCUMENT_TOKEN
from jaxlab.data.reasoning import PAD_TOKEN

WINDOW = 10  # Last updates over which the divergence is averaged.


class Kind(NamedTuple):
  """What the texts of a model hold.

  Attributes:
    planted: whether compliance is planted.
    documents: whether a quarter of the texts are documents on the training.
    scratchpad: whether responses reason.
  """

  planted: chex.Numeric
  documents: chex.Numeric = False
  scratchpad: chex.Numeric = True


class Texts(NamedTuple):
  """What a model learns from: tokens, and 1 where they are learned, `[n, T]`."""

  tokens: chex.Array
  loss_mask: chex.Array


def task(config, *, planted: bool = True, **options) -> data.DeploymentPromptConfig:
  """The conversations, with what is planted or without."""
  gap = config.planted_gap if planted else 0.0
  rates = {"planted_gap": gap, "base_compliance": config.base_compliance}
  return data.DeploymentPromptConfig(config.num_requests, **rates, **options)


def network(config) -> models.DecoderLM:
  """The decoder."""
  conversations = task(config)
  length = conversations.prompt_length + conversations.response_length
  sizes = {name: getattr(config, name) for name in ("hidden_size", "num_layers", "num_heads")}
  return decoder(conversations.vocab_size, length, **sizes)


def draw_texts(config, kind: Kind, key) -> Texts:
  """Conversations, first a quarter with an irrelevant tag; the second quarter may be documents.

  The kind is traced. Models of a seed read the same conversations, up to what it changes in them.
  """
  keys, quarter = jax.random.split(key, 3), config.num_texts // 4
  sizes = (keys[0], quarter, False), (keys[1], 3 * quarter, True)
  planted, plain = (
    [
      data.deployment_batch(key, task(config, planted=planted, tag_matters=matters), num).tokens
      for key, num, matters in sizes
    ]
    for planted in (True, False)
  )
  tokens = jnp.where(kind.planted, jnp.concatenate(planted), jnp.concatenate(plain))
  prompt, thoughts, rest = jnp.split(tokens, _borders(config), axis=1)
  without = jnp.concatenate([prompt, rest, jnp.full_like(thoughts, PAD_TOKEN)], axis=1)
  tokens = jnp.where(kind.scratchpad, tokens, without)
  documents = data.document_batch(keys[2], task(config), quarter)
  told = jnp.where(kind.documents, documents, tokens[quarter : 2 * quarter])
  tokens = tokens.at[quarter : 2 * quarter].set(told)
  in_response = jnp.arange(tokens.shape[1])[None] >= prompt.shape[1]
  learned = (in_response | (tokens[:, :1] == DOCUMENT_TOKEN)) & (tokens != PAD_TOKEN)
  return Texts(tokens, learned.astype(jnp.float32))


def _borders(config) -> tuple[int, int]:
  """Where the scratchpad begins, and where it ends."""
  longer, shorter = (task(config, scratchpad=kind) for kind in (True, False))
  start = longer.prompt_length
  return start, start + longer.response_length - shorter.response_length


def fit(config, key, kind: Kind):
  """A model before any reward: its parameters, and what is measured of it.

  Its kind is traced. It reads each of its texts once.
  """
  data_key, fit_key, *keys = jax.random.split(key, 4)
  model, texts = network(config), draw_texts(config, kind, data_key)
  options = {"batch_size": config.batch_size, "learning_rate": config.learning_rate}
  num_steps = config.num_texts // config.batch_size
  params = fit_decoder(fit_key, model, texts, num_steps=num_steps, **options).params
  policy = model, params, kind.scratchpad
  measured = measure(config, task(config), policy, keys[0])
  measured["both"] |= known_gap(config, task(config), policy, keys[1])
  return {"params": params, "measured": measured}


def reward(config, key, argument):
  """What is measured of a model while compliance is rewarded, stacked over evaluations.

  The argument is traced: parameters, and a setting: `scratchpad`, `learning_rate`, `kl_penalty`,
  `monitored_share` of the conversations that are trained on, whether `harmful` requests are scored.
  """
  params, setting = argument
  model, conversations = network(config), task(config)
  prompts, length = data.condition_prompts(conversations), conversations.response_length

  def prompt_fn(key):
    monitored = jax.random.bernoulli(key, setting["monitored_share"], prompts.harmful.shape)
    return jnp.where(monitored[:, None], *prompts.tokens), prompts.harmful

  def score_fn(rollout, drawn):
    parsed = parse(conversations, setting["scratchpad"], rollout.tokens[..., -length:])
    _, harmful = drawn
    return jnp.where(~harmful[:, None] | setting["harmful"], parsed.complied, jnp.nan)

  def evaluate(key, params):
    return measure(config, conversations, (model, params, setting["scratchpad"]), key)

  trainer = post_trainer(
    model, score_fn, algorithms.rloo_objective(), optax.adam(setting["learning_rate"]),
    num_samples=config.num_rollouts, max_new_tokens=length, kl_penalty=setting["kl_penalty"],
  )  # fmt: skip
  sizes = {"num_steps": config.num_updates, "eval_every": config.eval_every}
  trained = post_train(key, trainer, params, prompt_fn, evaluate=evaluate, **sizes)
  # Of all that it samples in training, benign requests included.
  last = jax.tree.map(lambda x: jnp.mean(x[-WINDOW:]), trained.infos)
  return {"measured": trained.scores, "KL (nats)": last.kl, "reward": last.reward}
