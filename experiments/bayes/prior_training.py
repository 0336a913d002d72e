"""Trains a prior-data fitted network with the engine, for the experiments on them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.seeded_batches import SeededBatches, key_data
from jaxlab import algorithms, losses, models, samplers, training, uncertainty


class PriorBatches(SeededBatches):
  """An endless iterator of what a prior needs to draw a batch: keys and the context size.

  The data sets themselves are drawn inside the jitted update, each device its own share.
  """

  def __init__(
    self,
    *,
    seed: int,
    batch_size: int,
    max_context: int,
    scheme: str = "uniform",
    min_context: int = 0,
    group_size: int = 1,
    steps_per_call: int = 1,
  ):
    """Draws `batch_size // group_size` keys a step; each key yields `group_size` data sets."""
    if batch_size % group_size:
      raise ValueError(f"batch_size {batch_size} is not a multiple of group_size {group_size}")
    probs = np.asarray(samplers.context_size_probs(max_context, scheme=scheme), np.float64)
    probs[:min_context] = 0.0
    probs /= probs.sum()
    shape = (steps_per_call, batch_size // group_size)

    def draw(rng):
      num_context = rng.choice(len(probs), size=(steps_per_call, 1), p=probs)
      batch = {
        "key": key_data(rng, shape),
        "num_context": np.broadcast_to(num_context, shape).astype(np.int32),
      }
      return batch if steps_per_call > 1 else {name: value[0] for name, value in batch.items()}

    super().__init__(draw, seed=seed)


def draw_prior(prior_fn, key_data) -> samplers.PriorBatch:
  """Draws `prior_fn` once per raw key `[k, 2]` and joins the draws along the batch axis."""
  draws = jax.vmap(lambda data: prior_fn(jax.random.wrap_key_data(data)))(key_data)
  return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:]), draws)


def draw_data_sets(prior_fn, key, count: int) -> samplers.PriorBatch:
  """Draws `count` fresh data sets of a prior that makes one a key."""
  draws = jax.jit(lambda keys: jax.lax.map(prior_fn, keys))(jax.random.split(key, count))
  return jax.tree.map(lambda leaf: leaf[:, 0], draws)


def prior_borders(key, prior_fn, num_bars: int, num_values: int = 20_000) -> jax.Array:
  """Borders of bars that hold equal shares of the prior's targets."""
  size = jax.eval_shape(prior_fn, key).y.size
  keys = jax.random.split(key, -(-num_values // size))
  values = jax.jit(lambda keys: jax.lax.map(lambda k: prior_fn(k).targets, keys))(keys)
  return uncertainty.bar_borders(values.reshape(-1)[:num_values], num_bars)


def prior_loss(module, prior_fn, loss_fn):
  """The engine's loss of a PFN: `loss_fn(outputs, targets)` averaged over the queries."""

  def loss(params, model_state, batch, key):
    draw = draw_prior(prior_fn, batch["key"])
    num_context = batch["num_context"][0]
    outputs = module.apply(
      {"params": params}, draw.x, draw.y, num_context, deterministic=False, rngs={"dropout": key}
    )
    values = loss_fn(outputs, draw.targets)
    weights = jnp.broadcast_to(jnp.arange(values.shape[-1]) >= num_context, values.shape)
    return training.LossOutput(values, weights.astype(jnp.float32), model_state)

  return loss


class PriorTrainer(NamedTuple):
  """A compiled update and what it takes to run it for another seed."""

  module: object
  optimizer: optax.GradientTransformation
  update: object
  batches: dict
  num_steps: int
  steps_per_call: int
  sample: tuple

  def init(self, key) -> training.TrainState:
    """A fresh state; `key` fixes the initial parameters and the dropout masks."""
    init_key, state_key = jax.random.split(key)
    params = jax.jit(self.module.init)(init_key, *self.sample, 1)["params"]
    return training.init_state(state_key, params, self.optimizer)

  def train(self, context, name: str, seed: int, **options):
    """Trains one seed as the resumable stage `name`; returns the parameters."""
    state = self.init(context.seed_key(seed))
    batches = PriorBatches(seed=seed, steps_per_call=self.steps_per_call, **self.batches)
    result = context.fit(
      name,
      state,
      self.update,
      batches,
      num_steps=self.num_steps,
      steps_per_call=self.steps_per_call,
      **options,
    )
    return jax.tree.map(np.asarray, result.state.params)

  def train_and_score(self, context, task: str, score, **options) -> dict[str, dict[str, list]]:
    """Trains every seed and scores it by `score(seed, params) -> {method: {quantity: number}}`.

    Training and scoring are stages of their own; the result has one number a seed.
    """
    rows: dict[str, dict[str, list]] = {}
    for seed in range(context.seeds):
      params = self.train(context, f"{task}/seed{seed}", seed, **options)
      scores = context.cached(f"{task}/scores/seed{seed}", score, seed, params)
      for method, row in scores.items():
        for name, value in row.items():
          rows.setdefault(method, {}).setdefault(f"{task}/{name}", []).append(value)
    return rows


def prior_trainer(
  module,
  prior_fn,
  loss_fn,
  *,
  num_steps: int,
  batch_size: int,
  num_points: int,
  num_features: int,
  max_context: int,
  learning_rate: float,
  warmup_fraction: float = 0.25,
  scheme: str = "uniform",
  min_context: int = 0,
  group_size: int = 1,
  steps_per_call: int = 1,
  accumulate: int = 1,
  mesh=None,
) -> PriorTrainer:
  """Builds the trainer of `module` on `prior_fn(key) -> PriorBatch` of `group_size` data sets.

  Adam with a global-norm clip of 1, linear warm-up and cosine decay to 0.
  """
  schedule = algorithms.warmup_cosine(learning_rate, num_steps, warmup_fraction=warmup_fraction)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
  update = training.build_update(
    prior_loss(module, prior_fn, loss_fn),
    optimizer,
    mesh=mesh,
    accumulate=accumulate,
    steps_per_call=steps_per_call,
  )
  batches = dict(
    batch_size=batch_size,
    max_context=max_context,
    scheme=scheme,
    min_context=min_context,
    group_size=group_size,
  )
  sample = (jnp.zeros((1, num_points, num_features)), jnp.zeros((1, num_points)))
  return PriorTrainer(module, optimizer, update, batches, num_steps, steps_per_call, sample)


def bar_trainer(
  config,
  prior_fn,
  borders,
  *,
  embed_dim: int,
  num_layers: int,
  num_steps: int,
  batch_size: int,
  num_points: int,
  num_features: int,
  max_context: int,
  scheme: str = "uniform",
  accumulate: int = 1,
  mesh,
) -> PriorTrainer:
  """Builds the trainer of a network with a bar distribution; a key of its prior is a data set.

  Heads, learning rate and steps a call are the configuration's; the keywords are what differs
  between tasks.
  """
  module = models.PFN(
    config.num_bars, embed_dim=embed_dim, num_layers=num_layers, num_heads=config.num_heads
  )
  return prior_trainer(
    module,
    prior_fn,
    lambda logits, targets: losses.bar_nll(logits, targets, borders),
    num_steps=num_steps,
    batch_size=batch_size,
    num_points=num_points,
    num_features=num_features,
    max_context=max_context,
    scheme=scheme,
    accumulate=accumulate,
    learning_rate=config.learning_rate,
    warmup_fraction=config.warmup_fraction,
    steps_per_call=config.steps_per_call,
    mesh=mesh,
  )
