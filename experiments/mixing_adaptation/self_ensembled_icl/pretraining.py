"""The decoder of the few-shot language: its prompts, its loss, its pretraining on random tasks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.mixing_adaptation.self_ensembled_icl.decoder import Decoder
from jaxlab import data, training
from jaxlab.data.prompt_variants import NUM_TEMPLATES, PROMPT_VOCAB_SIZE, WORD_DIM
from jaxlab.experiment import Context

NUM_WORDS = 8  # Words in a sentence.
NUM_CLASSES = 4
_STEPS_PER_CALL = 10


class Batch(NamedTuple):
  """Prompts and the answers asked for.

  Attributes:
    tokens: `[b, L]`.
    positions: where answers are read, `[b, a]`.
    answers: label words, `[b, a]`.
    weights: how much each counts, `[b, a]`.
  """

  tokens: jax.Array
  positions: jax.Array
  answers: jax.Array
  weights: jax.Array


def make_decoder(config) -> Decoder:
  """The decoder, without weights."""
  return Decoder(
    PROMPT_VOCAB_SIZE,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    mlp_ratio=config.mlp_ratio,
  )


def initial_state(config, key) -> training.TrainState:
  """Random weights, and the state of the pretraining."""
  init_key, state_key = jax.random.split(key)
  tokens = jnp.zeros((1, NUM_WORDS + 2), jnp.int32)
  params = make_decoder(config).init(init_key, tokens, tokens[:, :1])["params"]
  return training.init_state(state_key, params, pretraining_optimizer(config))


def answer_loss(config):
  """The engine's loss on a `Batch`: cross-entropy of label words over the whole vocabulary."""

  def loss(params, model_state, batch, key):
    del model_state, key
    logits = make_decoder(config).apply({"params": params}, batch.tokens, batch.positions)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.answers)
    return training.LossOutput(values, batch.weights)

  return loss


# ------------------------------------------------------------------------------------ pretraining


def pretrain(config, context: Context):
  """Weights of all seeds, stacked, and their losses `[seeds, rows]` with the steps `[rows]`."""
  optimizer = pretraining_optimizer(config)
  per_call = min(_STEPS_PER_CALL, config.pretraining_steps)
  update = training.build_update(
    pretraining_loss(config), optimizer, mesh=context.mesh, steps_per_call=per_call
  )
  init = jax.jit(functools.partial(initial_state, config))
  params, losses = [], []
  for seed in range(context.seeds):
    result = context.fit(
      f"pretraining/seed{seed}",
      init(context.seed_key(seed)),
      update,
      prompt_keys(config, seed=seed, steps_per_call=per_call),
      num_steps=config.pretraining_steps,
      steps_per_call=per_call,
    )
    params.append(jax.tree.map(np.asarray, result.state.params))
    losses.append([row["loss"] for row in result.history])
  steps = np.array([row["step"] for row in result.history])
  return jax.tree.map(lambda *leaves: np.stack(leaves), *params), np.array(losses), steps


def prompt_keys(config, *, seed: int, steps_per_call: int) -> data.SeededBatches:
  """Batches of raw keys, one per prompt."""
  steps = (steps_per_call,) if steps_per_call > 1 else ()
  shape = *steps, config.pretraining_batch
  return data.SeededBatches(lambda rng: {"key": data.draw_key_data(rng, shape)}, seed=seed)


def pretraining_optimizer(config) -> optax.GradientTransformation:
  """AdamW under clipping, warmed up over a twentieth, then a cosine to a tenth."""
  steps, peak = config.pretraining_steps, config.pretraining_rate
  schedule = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps, peak / 10)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))


def pretraining_loss(config):
  """The engine's loss on what `prompt_keys` gives: each device draws its own prompts."""
  on_prompts = answer_loss(config)

  def loss(params, model_state, batch, key):
    draw = jax.vmap(functools.partial(pretraining_prompt, config))
    prompts = draw(jax.random.wrap_key_data(batch["key"]))
    return on_prompts(params, model_state, prompts, key)

  return loss


def pretraining_prompt(config, key) -> Batch:
  """A prompt of a fresh task; every label in it is an answer, given those before it.

  Where labels stand before their sentences only the query has an answer, so there a random number
  of demonstrations is cut off the front. Every prompt counts the same.
  """
  task_key, template_key, cut_key = jax.random.split(key, 3)
  shots = config.max_shots
  task = sample_tasks(config, task_key, num_tasks=1, num_examples=shots + 1)
  template = jax.random.randint(template_key, (), 0, NUM_TEMPLATES)
  labels = task.labels[0]
  sentences = task.sentences[0]
  prompt = render_prompt(sentences[-1], sentences[:-1], labels[:-1], template)
  label_first, longer = template == 1, 2 * (template == 2)
  stride, order = NUM_WORDS + 3 + longer, jnp.arange(shots + 1)
  cut = jnp.where(label_first, jax.random.randint(cut_key, (), 0, shots + 1), 0) * stride
  dense = stride * order + NUM_WORDS + longer // 2
  return Batch(
    # What is cut off lands behind the answer, which does not see it.
    jnp.roll(prompt.tokens, -cut),
    jnp.where(label_first, prompt.lengths - 1 - cut, dense),
    data.label_words(template)[labels],
    jnp.where(label_first, order == shots, 1 / (shots + 1)),
  )


def sample_tasks(config, key, *, num_tasks: int, num_examples: int) -> data.RuleTasks:
  """Tasks whose rules read the first `rule_dims` dimensions of the words' vectors."""
  tasks = data.sample_rule_tasks(key, num_tasks=num_tasks, num_examples=num_examples)
  vectors = data.word_vectors()[tasks.sentences].mean(-2)
  noise = tasks.labels - jnp.argmax(vectors @ tasks.rule, axis=-1)
  rule = tasks.rule * (jnp.arange(WORD_DIM) < config.rule_dims)[:, None]
  labels = (jnp.argmax(vectors @ rule, axis=-1) + noise) % NUM_CLASSES
  return data.RuleTasks(tasks.sentences, labels.astype(jnp.int32), rule)


def render_prompt(sentence, shots, labels, template) -> data.Prompts:
  """The prompt of one query in one wording: tokens `[L]`, length a scalar."""
  prompts = data.render_prompts(
    sentence[None], shots[None, None], labels[None, None], template_ids=template[None]
  )
  return jax.tree.map(lambda x: x[0, 0], prompts)
