"""The source model, the methods that adapt it, and their errors on streams."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.source_model import forward_fn, smoothed_loss
from experiments.kit.train import Trained, accuracy, adamw_cosine, agrees, epoch_rows, train
from jaxlab import algorithms, augment, losses, models
from jaxlab.experiment import Results

SOURCE, NORM, TENT, COTTA = "source", "norm adaptation", "TENT", "CoTTA"
PLAIN, SYMMETRIC = "mean teacher, CE", "mean teacher, SCE"
RMT, REPLAY = "RMT", "RMT + source"
ERROR = "online error"


class Problem(NamedTuple):
  """What an adapter is made of; the values of `setting` may be traced."""

  config: Any
  source: Mapping[str, Any]
  setting: Mapping[str, chex.Numeric]

  def forward(self, *, train: bool = True) -> Callable:
    """The network, by the statistics of each batch or by the stored ones."""
    return forward_fn(network(self.config), self.source["model_state"], train=train)

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Adam, for all that adapt."""
    return optax.adam(self.setting["learning_rate"])

  @property
  def jitter(self) -> Callable:
    """The augmentation of the mean teachers."""
    signals = self.config.dataset == "mnist1d"
    return augment.jitter_signals if signals else augment.jitter_images


def network(config) -> nn.Module:
  """The network of a data set."""
  if config.dataset == "mnist1d":
    return models.ConvNet(10, widths=config.widths, strides=(2,) * len(config.widths))
  return models.WideResNet(10, depth=28, widen_factor=10)


def train_source(key: chex.PRNGKey, splits: tuple[Split, Split], *, config) -> dict[str, Any]:
  """Trains the source model with running statistics, or reads it; prototypes of its classes."""
  rows, test = splits
  module = network(config)
  if config.checkpoint:
    variables = models.load_vision_checkpoint(config.checkpoint, module)
    trained = Trained(variables.pop("params"), variables)
  else:
    trained = train(
      key,
      module,
      smoothed_loss(module, label_smoothing=0.0),
      adamw_cosine(config.train_learning_rate, config.train_steps),
      rows,
      num_steps=config.train_steps,
      batch_size=config.batch_size,
    )
  whole = len(rows.inputs) // config.batch_size * config.batch_size
  batches = rows.inputs[:whole].reshape(-1, config.batch_size, *rows.inputs.shape[1:])
  forward = functools.partial(forward_fn(module, trained.model_state), trained.params)
  features = jax.lax.map(lambda batch: forward(batch).features, batches).reshape(whole, -1)
  return {
    "params": trained.params,
    "model_state": trained.model_state,
    "prototypes": losses.class_prototypes(features, rows.labels[:whole], num_classes=10),
    "clean error": 1 - accuracy(module, trained.variables, test),
    **({} if config.checkpoint else {"bad_step": trained.bad_step}),
  }


def projector(config) -> nn.Module:
  """The two layers before the contrastive loss."""
  width = config.projector_width
  return nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(width)])


def _cotta(problem: Problem) -> algorithms.OnlineAdapter:
  return algorithms.continual_mean_teacher(
    *(problem.forward(), problem.jitter, problem.optimizer),
    decay=problem.setting["decay"],
    num_augmentations=problem.config.num_augmentations,
    confidence_threshold=0.92,
    restore_prob=0.01,
  )


def mean_teacher(problem: Problem, *, source_weight: float = 0.0) -> algorithms.OnlineAdapter:
  """The robust mean teacher and its ablations, which differ in traced settings."""
  return algorithms.robust_mean_teacher(
    *(problem.forward(), problem.jitter, problem.optimizer),
    prototypes=problem.source["prototypes"],
    project_fn=projector(problem.config).apply,
    alpha=problem.setting["alpha"],
    decay=problem.setting["decay"],
    contrastive_weight=problem.setting["contrastive_weight"],
    source_weight=source_weight,
  )


ADAPTERS: dict[str, Callable[[Problem], algorithms.OnlineAdapter]] = {
  SOURCE: lambda problem: algorithms.norm_adaptation(problem.forward(train=False)),
  NORM: lambda problem: algorithms.norm_adaptation(problem.forward()),
  TENT: lambda problem: algorithms.entropy_minimization(problem.forward(), problem.optimizer),
  COTTA: _cotta,
  RMT: mean_teacher,
  REPLAY: functools.partial(mean_teacher, source_weight=1.0),
}

# What is no part of the search. What sets alpha warms up by the loss of that alpha.
FIXED: dict[str, dict[str, float]] = {
  **{method: {} for method in (SOURCE, NORM, TENT)},
  COTTA: {"alpha": 0.0},
  PLAIN: {"alpha": 0.0, "contrastive_weight": 0.0},
  SYMMETRIC: {"alpha": 0.5, "contrastive_weight": 0.0},
  RMT: {"alpha": 0.5, "contrastive_weight": 1.0},
  REPLAY: {"alpha": 0.5, "contrastive_weight": 1.0},
}
ADAPTER_OF = {**{name: name for name in ADAPTERS}, PLAIN: RMT, SYMMETRIC: RMT}

# Six settings for each that adapts.
_TEACHERS = [{"learning_rate": r, "decay": d} for r in (3e-4, 1e-3, 3e-3) for d in (0.99, 0.999)]
SEARCH: dict[str, list[dict[str, float]]] = {
  **{method: [{}] for method in (SOURCE, NORM)},
  TENT: [{"learning_rate": rate} for rate in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)],
  **{method: _TEACHERS for method in (COTTA, PLAIN, SYMMETRIC, RMT, REPLAY)},
}
_PAPER_SETTING = {"learning_rate": 1e-3, "decay": 0.999}


def chosen_settings(dataset: str, pilot: Results) -> dict[str, dict[str, float]]:
  """Method -> setting: of images the paper's, of signals what was best on the pilot's streams."""
  chosen = {}
  for method, tried in SEARCH.items():
    if dataset == "mnist1d":
      tried = [
        {name: value for name, value in record.setting.items() if name != "stream"}
        for record in sorted(
          pilot.matching(quantity=ERROR, method=method, stream="continual"),
          key=lambda record: np.nan_to_num(record.values.mean(), nan=np.inf),
        )
      ]
      chosen[method] = tried[0]
    else:
      chosen[method] = {name: _PAPER_SETTING[name] for name in tried[0]}
  return chosen


def first_state(key, problem: Problem, adapter: algorithms.OnlineAdapter, rows: Split):
  """The state before the stream; of mean teachers after source batches at a rising rate."""
  config, source, setting = problem
  if "alpha" not in setting:
    return adapter.init(source["params"])
  init_key, order_key = jax.random.split(key)
  projected = "contrastive_weight" in setting
  extra = [projector(config).init(init_key, source["prototypes"])] if projected else []
  steps = {"num_steps": config.warm_up_steps, "batch_size": config.batch_size}
  return algorithms.mean_teacher_warm_up(
    problem.forward(),
    optax.adam(lambda step: setting["learning_rate"] * (step + 1) / config.warm_up_steps),
    adapter.init(source["params"], *extra),
    rows.inputs[epoch_rows(order_key, len(rows.labels), **steps)],
    alpha=setting["alpha"],
    decay=setting["decay"],
  )


def online_errors(config, name: str, key, data, *, setting) -> dict[str, jax.Array]:
  """Share of wrong predictions in each batch of each stream, `[m]`.

  All streams run in one scan, in which the state begins anew where a stream does.
  """
  source, rows, streams = data
  method_key, adapt_key, replay_key = jax.random.split(key, 3)
  stream = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *streams.values())
  ends = np.cumsum([len(part.labels) for part in streams.values()])
  begins = np.isin(np.arange(ends[-1]), [0, *ends])
  problem = Problem(config, source, setting)
  adapter = ADAPTERS[name](problem)
  first = first_state(method_key, problem, adapter, rows)

  def update(key, state, batch, *extra):
    (inputs, labels), begin = batch
    state = jax.tree.map(functools.partial(jnp.where, begin), first, state)
    state, info = adapter.update(key, state, inputs, *extra)
    return state, jnp.mean(1 - agrees(info.logits, labels))

  replayed = None
  if name == REPLAY:
    steps = {"num_steps": len(stream.labels), "batch_size": config.batch_size}
    order = epoch_rows(replay_key, len(rows.labels), **steps)
    replayed = tuple(array[order] for array in rows)
  resetting = algorithms.OnlineAdapter(adapter.init, update)
  _, wrong = algorithms.adapt_stream(adapt_key, resetting, first, (stream, begins), replayed)
  return dict(zip(streams, jnp.split(wrong, ends[:-1])))
