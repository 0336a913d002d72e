"""Fits networks to priors: with the engine, or as one program where a seed has data of its own."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.kit import sizes
from jaxlab import algorithms, data, samplers, training
from jaxlab.experiment import Context


@dataclasses.dataclass(frozen=True, eq=False)
class PriorTrainer:
  """How a network is fitted to a prior; the update is compiled once and serves all seeds.

  Attributes:
    module: called as `module.apply(variables, x, y, num_context, deterministic=...)`.
    prior_fn: `key -> PriorBatch`, as many data sets as share a key.
    loss_fn: `(outputs, targets) -> [b, T]`.
    num_steps: updates.
    batch_size: data sets per update.
    learning_rate: peak of the schedule.
    warmup_fraction: share of the updates that the learning rate rises.
    min_context: smallest context size.
    max_context: context sizes are drawn below it; None for the number of points.
    scheme: how context sizes are drawn.
    accumulate: micro-batches per update.
    steps_per_call: updates in one compiled program.
    save_every: updates between checkpoints.
    mesh: the devices.
  """

  module: nn.Module
  prior_fn: Callable[[chex.PRNGKey], samplers.PriorBatch]
  loss_fn: Callable[[Any, chex.Array], chex.Array]
  num_steps: int
  batch_size: int
  learning_rate: float
  warmup_fraction: float = 0.25
  min_context: int = 0
  max_context: int | None = None
  scheme: str = "uniform"
  accumulate: int = 1
  steps_per_call: int = 1
  save_every: int | None = None
  mesh: jax.sharding.Mesh | None = None

  @functools.cached_property
  def _optimizer(self):
    return algorithms.prior_fitting_optimizer(
      self.learning_rate, self.num_steps, warmup_fraction=self.warmup_fraction
    )

  @functools.cached_property
  def _drawn(self) -> samplers.PriorBatch:
    """The shapes of what a key draws."""
    return jax.eval_shape(self.prior_fn, jax.random.key(0))

  @functools.cached_property
  def update(self):
    """The compiled `(state, batch) -> (state, metrics)`."""
    return training.build_update(
      self._loss,
      self._optimizer,
      mesh=self.mesh,
      accumulate=self.accumulate,
      steps_per_call=self.steps_per_call,
    )

  def _loss(self, params, model_state, batch, key) -> training.LossOutput:
    draw = samplers.draw_data_sets(jax.random.wrap_key_data(batch["key"]), self.prior_fn)

    def apply(params, *arrays):
      rngs = {"dropout": key}
      return self.module.apply({"params": params}, *arrays, deterministic=False, rngs=rngs)

    num_context = batch["num_context"][0]
    losses = algorithms.query_losses(apply, params, draw, self.loss_fn, num_context=num_context)
    return training.LossOutput(*losses, model_state)

  def init(self, key) -> training.TrainState:
    """A fresh state; `key` fixes the initial parameters and the dropout masks."""
    return self._init(key)

  @functools.cached_property
  def _init(self):
    @jax.jit  # As one program; otherwise every array would be made by one of its own.
    def init(key):
      init_key, state_key = jax.random.split(key)
      x, y = (jnp.zeros((1, *drawn.shape[1:])) for drawn in (self._drawn.x, self._drawn.y))
      params = self.module.init(init_key, x, y, 1)["params"]
      return training.init_state(state_key, params, self._optimizer)

    return init

  def batches(self, seed: int) -> data.SeededBatches:
    """What the update consumes."""
    group_size, num_points = self._drawn.y.shape
    return data.prior_batches(
      seed=seed,
      batch_size=self.batch_size,
      max_context=num_points if self.max_context is None else self.max_context,
      scheme=self.scheme,
      min_context=self.min_context,
      group_size=group_size,
      steps_per_call=self.steps_per_call,
    )

  def train(self, context: Context, name: str, *, seeds: int | None = None) -> list[chex.ArrayTree]:
    """Trains every seed, or the first ones, as a stage `name/seed...`; their parameters."""
    params = []
    for seed, number in enumerate(context.seed_numbers[:seeds]):
      result = context.fit(
        f"{name}/seed{seed}",
        self.init(context.seed_key(seed)),
        self.update,
        self.batches(number),
        num_steps=self.num_steps,
        steps_per_call=self.steps_per_call,
        save_every=self.save_every,
      )
      params.append(jax.tree.map(np.asarray, result.state.params))
    return params

  def abstract(self):
    """What an experiment's `abstract` returns: one update, its state and batch as shapes."""
    single = dataclasses.replace(self, steps_per_call=1)
    state = jax.eval_shape(single.init, jax.random.key(0))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), next(single.batches(0)))
    return single.update, state, batch


class PriorFit(NamedTuple):
  """What `fit_prior` gives.

  Attributes:
    params: the parameters after the last update.
    losses: of the updates, `[num_steps]`.
    scores: what `evaluate` gave, stacked over evaluations; None without one.
    bad_step: updates before the first loss that is not finite; -1 if there was none.
  """

  params: chex.ArrayTree
  losses: jax.Array
  scores: Any
  bad_step: jax.Array


def fit_prior(
  key: chex.PRNGKey,
  fitting: algorithms.PriorFitting,
  params: chex.ArrayTree,
  *,
  num_steps: int,
  evaluate: Callable[[chex.ArrayTree], Any] | None = None,
  eval_every: int | None = None,
) -> PriorFit:
  """Runs `algorithms.prior_fitting`: a traceable function, for `over_seeds` and `jit`.

  `PriorTrainer` compiles its prior into the update. Here the prior may hold traced arrays, the
  data of a seed, and see the updates done, so that one program serves all seeds.

  Args:
    key: of the data sets.
    fitting: init and update.
    params: where to begin.
    num_steps: number of updates.
    evaluate: `params -> pytree`, every `eval_every` updates, which must divide `num_steps`.
    eval_every: updates between evaluations; None evaluates at the end.

  Returns:
    A `PriorFit`.

  Raises:
    ValueError: if `eval_every` does not divide `num_steps`.
  """
  eval_every = eval_every or num_steps
  sizes.check_divides(eval_every, num_steps=num_steps)

  def step(state, key):
    state, info = fitting.update(key, state)
    return state, info.loss

  def phase(state, keys):
    state, losses = jax.lax.scan(step, state, keys)
    return state, (losses, None if evaluate is None else evaluate(state.params))

  keys = jax.random.split(key, num_steps).reshape(-1, eval_every)
  state, (losses, scores) = jax.lax.scan(phase, fitting.init(params), keys)
  bad = ~jnp.isfinite(losses.ravel())
  bad_step = jnp.where(jnp.any(bad), jnp.argmax(bad), -1)
  return PriorFit(state.params, losses.ravel(), scores, bad_step)


# What is seen of a data set in an evaluation, and what there is of it.
_CONTEXTS = {"context_sizes": "num_points", "max_context": "num_points", "cutoffs": "length"}


def validate(config) -> None:
  """Raises ValueError where sizes of a paper that fits networks to priors are impossible."""
  sizes.check_sizes(config, zero=("context_sizes",), shares=("warmup_fraction", "dropout"))
  sizes.check_divides(getattr(config, "accumulate", 1), batch_size=config.batch_size)
  for name, whole in _CONTEXTS.items():
    if (seen := getattr(config, name, None)) is not None:
      sizes.check_at_most(getattr(config, whole), **{name: np.max(seen)})


class Fitted(NamedTuple):
  """A network of bars that was fitted to a prior.

  Attributes:
    module: the network.
    params: the parameters of every seed.
    borders: of the bars.
  """

  module: nn.Module
  params: list[chex.ArrayTree]
  borders: chex.Array

  def of(self, seed: int) -> tuple[nn.Module, chex.Array, chex.ArrayTree]:
    """The module, the borders and the parameters of a seed."""
    return self.module, self.borders, self.params[seed]


def score_seeds(
  context: Context, name: str, score: Callable[[int], dict[str, dict[str, Any]]]
) -> dict[str, dict[str, np.ndarray]]:
  """Scores every seed as a stage of its own.

  Args:
    context: of the run.
    name: the stages are `name/seed...`.
    score: `seed -> {method: {quantity: array}}`.

  Returns:
    method -> quantity -> `[seeds, ...]`.
  """
  scores = [context.cached(f"{name}/seed{seed}", score, seed) for seed in range(context.seeds)]
  return {
    method: {quantity: np.stack([s[method][quantity] for s in scores]) for quantity in row}
    for method, row in scores[0].items()
  }
