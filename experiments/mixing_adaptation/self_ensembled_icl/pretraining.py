"""The decoder of the few-shot language: its prompts, its loss, its pretraining on random tasks."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import data, training
from jaxlab.data.prompt_variants import NUM_TEMPLATES, PROMPT_VOCAB_SIZE, WORD_DIM
from jaxlab.experiment import Context

NUM_CLASSES = 4
_STEPS_PER_CALL = 10


class Decoder(nn.Module):
  """Pre-norm transformer decoder with linear position biases, read at the answers' positions only.

  Head i of n subtracts 2^(-8 i / n) a token of distance from its scores (Press et al., Train Short,
  Test Long, ICLR 2022, https://arxiv.org/abs/2108.12409): the first heads see a sentence, the last
  ones the prompt, from the start of training.
  """

  config: Any

  @nn.compact
  def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Scores `[b, a, vocabulary]` of what follows positions `[b, a]` of tokens `[b, L]`."""
    width, num_heads = self.config.embed_dim, self.config.num_heads
    init = nn.initializers.normal(0.5)
    h = nn.Embed(PROMPT_VOCAB_SIZE, width, embedding_init=init, name="tokens")(tokens)
    slopes = 2.0 ** (-8 / num_heads * jnp.arange(1, num_heads + 1))
    places = jnp.arange(tokens.shape[1])
    bias = -slopes[:, None, None] * jnp.abs(places[:, None] - places)
    for _ in range(self.config.num_layers):
      normed = nn.LayerNorm()(h)
      heads = num_heads, width // num_heads
      query, key, value = (nn.DenseGeneral(heads)(normed) for _ in range(3))
      attended = jax.nn.dot_product_attention(query, key, value, bias[None], is_causal=True)
      h += nn.DenseGeneral(width, axis=(-2, -1))(attended)
      hidden = jax.nn.gelu(nn.Dense(self.config.mlp_ratio * width)(nn.LayerNorm()(h)))
      h += nn.Dense(width)(hidden)
    h = jnp.take_along_axis(h, positions[..., None], axis=1)
    return nn.Dense(PROMPT_VOCAB_SIZE, name="head")(nn.LayerNorm()(h))


class Batch(NamedTuple):
  """Prompts `[b, L]`; where answers are read, the label words, and what each counts, `[b, a]`."""

  tokens: jax.Array
  positions: jax.Array
  answers: jax.Array
  weights: jax.Array


def answer_loss(config):
  """The engine's loss on a `Batch`: cross-entropy of label words over the whole vocabulary."""

  def loss(params, model_state, batch, key):
    del model_state, key
    logits = Decoder(config).apply({"params": params}, batch.tokens, batch.positions)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.answers)
    return training.LossOutput(values, batch.weights)

  return loss


def pretrain(config, context: Context):
  """Weights of all seeds, stacked."""
  per_call = steps_per_call(config)
  init, update = pretraining_step(config, context.mesh, steps_per_call=per_call)
  init = jax.jit(init)
  shape = per_call, config.pretraining_batch
  params = []
  for seed, number in enumerate(context.seed_numbers):
    result = context.fit(
      f"pretraining/seed{seed}",
      init(context.seed_key(seed)),
      update,
      data.SeededBatches(lambda rng: {"key": data.draw_key_data(rng, shape)}, seed=number),
      num_steps=config.pretraining_steps,
      steps_per_call=per_call,
    )
    params.append(jax.tree.map(np.asarray, result.state.params))
  return jax.tree.map(lambda *leaves: np.stack(leaves), *params)


def steps_per_call(config) -> int:
  """Updates in one compiled program."""
  return min(_STEPS_PER_CALL, config.pretraining_steps)


def pretraining_step(config, mesh, **options):
  """The first state of a key, and the update: each device draws prompts from a batch of raw keys.

  AdamW under clipping, warmed up over a twentieth, then a cosine to a tenth.
  """
  steps, peak = config.pretraining_steps, config.pretraining_rate
  schedule = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps, peak / 10)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))
  on_prompts = answer_loss(config)

  def init(key):
    init_key, state_key = jax.random.split(key)
    tokens = jnp.zeros((1, config.num_words + 2), jnp.int32)
    params = Decoder(config).init(init_key, tokens, tokens[:, :1])["params"]
    return training.init_state(state_key, params, optimizer)

  def loss(params, model_state, batch, key):
    draw = jax.vmap(functools.partial(pretraining_prompt, config))
    prompts = draw(jax.random.wrap_key_data(batch["key"]))
    return on_prompts(params, model_state, prompts, key)

  return init, training.build_update(loss, optimizer, mesh=mesh, **options)


def pretraining_prompt(config, key) -> Batch:
  """A prompt of a fresh task; every label in it is an answer, given those before it.

  Where labels stand before their sentences only the query has an answer, so there a random number
  of demonstrations is cut off the front. Every prompt counts the same.
  """
  task_key, template_key, cut_key = jax.random.split(key, 3)
  shots, noise = config.num_draws * config.num_shots, config.pretraining_noise
  task = sample_tasks(config, task_key, num_tasks=1, num_examples=shots + 1, label_noise=noise)
  template = jax.random.randint(template_key, (), 0, NUM_TEMPLATES)
  labels = task.labels[0]
  sentences = task.sentences[0]
  prompt = render_prompt(sentences[-1], sentences[:-1], labels[:-1], template)
  label_first, longer = template == 1, 2 * (template == 2)
  stride, order = config.num_words + 3 + longer, jnp.arange(shots + 1)
  cut = jnp.where(label_first, jax.random.randint(cut_key, (), 0, shots + 1), 0) * stride
  dense = stride * order + config.num_words + longer // 2
  return Batch(
    # What is cut off lands behind the answer, which does not see it.
    jnp.roll(prompt.tokens, -cut),
    jnp.where(label_first, prompt.lengths - 1 - cut, dense),
    data.label_words(template)[labels],
    jnp.where(label_first, order == shots, 1 / (shots + 1)),
  )


def sample_tasks(
  config, key, *, num_tasks: int, num_examples: int, label_noise: float
) -> data.RuleTasks:
  """Tasks whose rules read the first `rule_dims` dimensions of the words' vectors."""
  tasks = data.sample_rule_tasks(
    key,
    num_tasks=num_tasks,
    sentence_length=config.num_words,
    label_noise=label_noise,
    num_examples=num_examples,
  )
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
