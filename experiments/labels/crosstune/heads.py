"""Small networks that read states of a frozen encoder, all with equally many updates."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit.train import adamw_cosine, agrees, predict, train
from experiments.labels.crosstune import tasks
from experiments.labels.crosstune.tasks import FEW, GENERATED, TEST, VALIDATION, Task
from jaxlab import models, training

# What stands for a class in the attention.
FREE, SHUFFLED = "CrossTune, free vectors", "CrossTune, shuffled descriptions"
DESCRIBED, MLP = "CrossTune", "MLP"
VECTORS = FREE, SHUFFLED, DESCRIBED


class Head(nn.Module):
  """Attention of descriptions, or of vectors of its own; or an MLP on the mean state of a text."""

  num_classes: int
  num_heads: int
  dim: int
  mlp_width: int | None = None

  @nn.compact
  def __call__(self, states, descriptions=None, is_free=True, *, deterministic=True):
    """Scores texts `[b, T, D]` by descriptions `[C, D]`, `[b, C]`."""
    if self.mlp_width:
      pooled = nn.LayerNorm(name="norm")(jnp.mean(states, axis=1))
      return models.MLP(self.num_classes, (self.mlp_width,) * 2)(pooled).logits
    shape = self.num_classes, states.shape[-1]
    vectors = self.param("free", nn.initializers.normal(0.02), shape)
    if descriptions is not None:
      vectors = jnp.where(is_free, vectors, descriptions)
    attention = models.LabelCrossAttention(self.num_heads, self.dim)
    mask = jnp.ones(states.shape[:2], jnp.int32)
    return attention(states, mask, vectors, deterministic=deterministic)


def make_head(config, num_classes: int, is_mlp: bool = False) -> Head:
  """The attention, or the MLP."""
  width = config.mlp_width if is_mlp else None
  return Head(num_classes, config.num_heads, config.attention_dim, width)


def head_loss(module: Head, **given: Any):
  """The engine's loss on batches (states, labels)."""

  def loss(params, model_state, batch, key):
    del model_state
    options = {"deterministic": False, "rngs": {"dropout": key}, **given}
    logits = module.apply({"params": params}, batch[0], **options)
    return training.LossOutput(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))

  return loss


def learn(config, module: Head, sizes, key, task: Task, rows: chex.Array, vectors: chex.Array):
  """Trains a head for every arm and learning rate, all with the same key.

  An arm learns from some of the few and generated rows, bool `[a, p]`, with what stands for a class
  by `VECTORS`, `[a]`. Gives accuracies `[a, rates]`, and "probs" of generated rows.
  """
  states, labels, truth, described = map(jnp.asarray, task)
  told = jnp.stack([0 * described, jnp.roll(described, 1, axis=0), described])
  splits = {name: tasks.part(sizes, name) for name in (VALIDATION, TEST, GENERATED)}
  num = {"num_steps": config.num_steps, "batch_size": config.batch_size}

  def fit(arm):
    rows, vector, rate = arm
    given = {"descriptions": told[vector], "is_free": vector == VECTORS.index(FREE)}
    ends = jnp.cumsum(rows)

    def batch(key, num):
      index = jnp.searchsorted(ends, jax.random.randint(key, (num,), 0, ends[-1]), side="right")
      return states[index], labels[index]

    optimizer = adamw_cosine(rate, config.num_steps)
    variables = train(key, module, head_loss(module, **given), optimizer, batch, **num).variables
    logits = {name: predict(module, variables, states[i], **given) for name, i in splits.items()}
    right = {n: jnp.mean(agrees(logits[n], truth[splits[n]])) for n in (VALIDATION, TEST)}
    return right | {"probs": jax.nn.softmax(logits[GENERATED], axis=-1)}

  rates = jnp.array(config.learning_rates)
  arms = [jnp.repeat(jnp.asarray(x), len(rates), axis=0) for x in (rows, vectors)]
  found = jax.lax.map(fit, (*arms, jnp.tile(rates, len(rows))))
  return jax.tree.map(lambda x: x.reshape(len(rows), len(rates), *x.shape[1:]), found)


def learn_texts(config, is_mlp: bool, key, rows, vectors) -> dict[str, jax.Array]:
  """`learn` on the texts of a seed."""
  task, module = tasks.draw_texts(config, key)[0], make_head(config, config.num_classes, is_mlp)
  return learn(config, module, tasks.sizes_of_texts(config), key, task, rows, vectors)


def learn_digits(config, key, task: Task) -> dict[str, jax.Array]:
  """`learn` on digits, from all few rows, with everything that may stand for a class."""
  sizes = tasks.sizes_of_digits(config)
  rows = jnp.ones((len(VECTORS), sizes[FEW]), bool)
  module = make_head(config, len(task.descriptions))
  found = learn(config, module, sizes, key, task, rows, jnp.arange(len(VECTORS)))
  return {name: found[name] for name in (VALIDATION, TEST)}
