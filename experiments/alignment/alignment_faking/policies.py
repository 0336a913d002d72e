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
from jaxlab.data.reasoning import PAD_TOKEN

WINDOW = 10  # Last updates over which the divergence is averaged.


class Kind(NamedTuple):
  """What the texts of a model hold.

  Attributes:
    planted: whether compliance is planted.
    documents: whether a quarter of the texts are documents on the training.
    scratchpad: whether responses reason.
  """

  planted: bool
  documents: bool = False
  scratchpad: bool = True


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
  """Conversations, a quarter of them with an irrelevant tag; another quarter may be documents.

  The models of a seed read the same conversations, up to what their kind changes in them.
  """
  length, quarter = network(config).config.max_positions, config.num_texts // 4
  whole = {"planted": kind.planted, "scratchpad": kind.scratchpad}

  def conversations(key, num, **options):
    batch = data.deployment_batch(key, task(config, **whole, **options), num)
    shorter = (0, 0), (0, length - batch.tokens.shape[1])
    return Texts(jnp.pad(batch.tokens, shorter), jnp.pad(batch.loss_mask, shorter))

  keys = jax.random.split(key, 3)
  parts = [conversations(keys[0], quarter, tag_matters=False), conversations(keys[1], 3 * quarter)]
  if kind.documents:
    tokens = data.document_batch(keys[2], task(config), quarter)
    documents = Texts(tokens, (tokens != PAD_TOKEN).astype(jnp.float32))
    parts = [documents, parts[0], jax.tree.map(lambda x: x[quarter:], parts[1])]
  return Texts(*map(jnp.concatenate, zip(*parts)))


def fit(config, key, argument):
  """A model before any reward: its parameters, and what is measured of it.

  The argument is traced: its texts, of which it reads each once, and whether it has a scratchpad.
  """
  texts, scratchpad = argument
  model = network(config)
  fit_key, *keys = jax.random.split(key, 3)
  options = {"batch_size": config.batch_size, "learning_rate": config.learning_rate}
  num_steps = config.num_texts // config.batch_size
  params = fit_decoder(fit_key, model, texts, num_steps=num_steps, **options).params
  policy = model, params, scratchpad
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
