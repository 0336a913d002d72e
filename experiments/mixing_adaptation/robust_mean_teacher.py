"""Test-time adaptation to corruptions that follow each other: robust mean teacher and its rivals.

One source network meets streams in which corruptions come in turn (three times over), swell and
fade, or change with every batch. Every method predicts a batch before it learns from it, and all
run through the same two functions, `init` and `update`.
"""

import dataclasses
import functools
import sys
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import classification, common
from experiments.members import over_members
from experiments.mixing_adaptation import robust_mean_teacher_methods as methods
from experiments.mixing_adaptation import robust_mean_teacher_tasks as tasks
from jaxlab import algorithms, augment

PAPER = "robust_mean_teacher"


@dataclasses.dataclass(frozen=True)
class Config:
  """The source, the streams, and what adapts."""

  dataset: Literal["mnist1d", "cifar10"] = "mnist1d"  # Source data and its corruptions.
  num_train: int = 4000  # Source samples.
  num_test: int = 2000  # Test samples under each corruption.
  widths: tuple[int, ...] = (32, 64, 64)  # Channels of the signal network.
  depth: int = 28  # Layers of the image network.
  widen_factor: int = 10  # Its width.
  checkpoint: str = ""  # Safetensors file of a trained image network; empty: train it.
  train_steps: int = 2000  # Updates of the source network.
  train_learning_rate: float = 2e-3  # Of AdamW.
  batch_size: int = 100  # Samples a batch, in training and on the stream.
  kinds: tuple[str, ...] = augment.SIGNAL_CORRUPTIONS  # Corruptions, in order.
  severity: int = 5  # Severity of the corruptions, 1 to 5.
  rounds: int = 3  # How often the continual stream comes.
  num_gradual: int = 300  # Test samples at each step of the gradual stream.
  settings: tuple[str, ...] = ("continual", "episodic", "gradual", "mixed")  # Streams.
  learning_rate: float = 1e-3  # Of Adam, for all that adapt.
  tent_learning_rates: tuple[float, ...] = (1e-3, 1e-4)  # Tent has a choice; the better counts.
  decay: float = 0.99  # Of the teachers.
  warm_up_steps: int = 100  # Source batches before the stream, for the mean teachers.
  projector_width: int = 128  # Width of the contrastive projector.
  num_augmentations: int = 16  # Augmentations that CoTTA averages; the paper has 32.
  confidence_threshold: float = 0.92  # Below this confidence it does.
  restore_prob: float = 0.01  # Chance that CoTTA restores a weight.


PRESETS = {
  "smoke": Config(
    num_train=60,
    num_test=20,
    widths=(4,),
    train_steps=4,
    batch_size=10,
    kinds=("gaussian_noise", "blur"),
    severity=2,
    num_gradual=10,
    rounds=2,
    tent_learning_rates=(1e-3,),
    warm_up_steps=2,
    projector_width=4,
    num_augmentations=2,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10",
    num_train=50_000,
    num_test=10_000,
    train_steps=100_000,
    train_learning_rate=1e-3,
    batch_size=200,
    kinds=(
      *("gaussian_noise", "shot_noise", "impulse_noise"),
      *("defocus_blur", "frosted_glass_blur", "motion_blur", "zoom_blur"),
      *("snow", "frost", "fog", "brightness"),
      *("contrast", "elastic", "pixelate", "jpeg_compression"),
    ),
    rounds=1,
    settings=("continual",),
    decay=0.999,
    warm_up_steps=250,
    num_augmentations=32,
  ),
}


def run(config: Config, context: common.Context) -> common.Results:
  """Trains the sources and lets every method meet the same streams."""
  task = tasks.make_task(config)
  train = functools.partial(methods.train_source, config, task)
  sources = methods.Source(**context.cached("source", lambda: _for_seeds(context, train)._asdict()))
  keys = [jax.random.fold_in(context.seed_key(seed), 1) for seed in range(context.seeds)]
  streams = [tasks.make_streams(config, task, key) for key in keys]
  streams = jax.tree.map(lambda *arrays: jnp.stack(arrays), *streams)
  quantities, extras = {}, {"kinds": np.array(config.kinds)}
  for name in methods.method_names(config):
    stage = context.cached(f"method/{name}", _judge, config, context, task, name, sources, streams)
    quantities[name] = stage["quantities"]
    extras |= {f"{name}/{setting}": errors for setting, errors in stage["curves"].items()}
  quantities["source"]["source/clean error"] = 100 * sources.clean_error
  return common.Results(quantities, extras)


def _for_seeds(context, fn, *per_seed):
  """`fn(key, *values of a seed)` of all seeds, spread over the devices."""
  keys = jax.random.split(context.key, context.seeds)
  return over_members(lambda member: fn(*member), (keys, *per_seed), context.mesh)


def _judge(config, context, task, name, sources, streams) -> dict:
  """Errors of a method on all streams, and what it costs."""
  adapts = name not in ("source", "norm adaptation")
  meet = functools.partial(online_errors, config, task, name)
  errors, states = _for_seeds(context, meet, sources, streams)
  quantities, curves = {}, {}
  for setting, wrong in errors.items():
    if setting == "episodic" and not adapts:
      continue  # There is nothing to reset.
    wrong = 100 * np.asarray(wrong)
    quantities[f"{setting}/error"] = wrong.mean(1)
    if setting == "continual":
      rounds = wrong.reshape(context.seeds, config.rounds, -1).mean(2)
      for i in (0, config.rounds - 1):
        quantities[f"{setting}/round {i + 1}"] = rounds[:, i]
    if setting != "mixed":
      blocks = len(config.kinds) * (config.rounds if setting == "continual" else 1)
      curves[setting] = wrong.mean(0).reshape(blocks, -1).mean(1)
  first = jax.tree.map(lambda values: jnp.asarray(values)[0], (sources, states, streams))
  quantities |= _cost(config, task, name, context.key, *first)
  return {"quantities": quantities, "curves": curves}


def online_errors(config: Config, task: tasks.Task, name: str, key, source, streams):
  """Share of wrong predictions in each batch of each stream, `[m]`, and the last state.

  All streams run in one scan, in which the state begins anew where a stream says so.
  """
  method_key, adapt_key, replay_key = jax.random.split(key, 3)
  stream = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *streams.values())
  method = methods.make_method(config, task, name, method_key, source)
  start = method.start()

  def update(key, state, row, *extra):
    inputs, labels, reset = row
    state = jax.tree.map(functools.partial(jnp.where, reset), start, state)
    state, info = method.adapter.update(key, state, inputs, *extra)
    return state, jnp.mean(jnp.argmax(info.logits, -1) != labels)

  source_batches = None
  if method.replays:
    rows = classification.epoch_rows(
      replay_key,
      len(task.train.labels),
      num_steps=len(stream.labels),
      batch_size=config.batch_size,
    )
    source_batches = tuple(jnp.asarray(array)[rows] for array in task.train)
  resetting = algorithms.OnlineAdapter(method.start, update)
  state, wrong = algorithms.adapt_stream(adapt_key, resetting, start, stream, source_batches)
  ends = np.cumsum([len(part.labels) for part in streams.values()])[:-1]
  return dict(zip(streams, jnp.split(wrong, ends))), state


def _cost(config, task, name, key, source, state, streams, *, repeats: int = 30) -> dict:
  """Bytes of an adapter's state, and the seconds that it takes for a sample of the stream."""
  method = methods.make_method(config, task, name, key, source)
  batch = jax.tree.map(lambda array: jnp.asarray(array[: config.batch_size]), task.train)
  extra = (tuple(batch),) if method.replays else ()
  # A method may do less for clean inputs.
  inputs = next(iter(streams.values())).inputs[0]
  update = jax.jit(method.adapter.update)
  jax.block_until_ready(update(key, state, inputs, *extra))
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(update(key, state, inputs, *extra))
    seconds.append(time.perf_counter() - started)
  return {
    "cost/state bytes": float(sum(leaf.nbytes for leaf in jax.tree.leaves(state))),
    # The least of all: what other programs took from the machine is not the method's.
    "cost/sample seconds": min(seconds) / config.batch_size,
  }


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements, on the streams that ran."""
  quantities = results.quantities

  def better_tent(quantity):
    rows = [row[quantity] for name, row in quantities.items() if name.startswith("TENT")]
    return min(rows, key=np.mean)

  lower = functools.partial(common.compare, better="lower")
  found = []
  for setting in ("continual", "gradual"):
    quantity = f"{setting}/error"
    if quantity not in quantities["RMT"]:
      continue
    rmt, norm = quantities["RMT"][quantity], quantities["norm adaptation"][quantity]
    in_paper = setting == "continual"
    found += [
      lower(
        f"{setting}: RMT's error below that of the better TENT",
        rmt,
        better_tent(quantity),
        paper="17.0 against 20.0 (CIFAR10-C), 30.2 against 62.2 (CIFAR100-C)" if in_paper else None,
      ),
      lower(
        f"{setting}: RMT's error below that of norm adaptation",
        rmt,
        norm,
        paper="17.0 against 20.4 (CIFAR10-C), 30.2 against 35.4 (CIFAR100-C)" if in_paper else None,
      ),
      lower(
        f"{setting}: norm adaptation's error below the source's",
        norm,
        quantities["source"][quantity],
        paper="20.4 against 43.5 (CIFAR10-C)" if in_paper else None,
      ),
      lower(
        f"{setting}: source replay lowers RMT's error",
        quantities["RMT + source"][quantity],
        rmt,
        paper="14.5 against 17.0 (CIFAR10-C)" if in_paper else None,
      ),
      lower(
        f"{setting}: RMT's error below CoTTA's",
        rmt,
        quantities["CoTTA"][quantity],
        paper="17.0 against 16.5 (CIFAR10-C), 30.2 against 32.8 (CIFAR100-C)" if in_paper else None,
      ),
    ]
  last = [name for name in quantities["RMT"] if name.startswith("continual/round")]
  if len(last) > 1:
    first, last = last
    tent = next(name for name in quantities if name.startswith("TENT"))
    found += [
      lower(
        "continual: symmetric below plain cross-entropy for the bare mean teacher, last round",
        quantities["mean teacher, SCE"][last],
        quantities["mean teacher, CE"][last],
      ),
      common.compare(
        f"continual: the error of {tent} rises from the first round to the last",
        quantities[tent][last],
        quantities[tent][first],
      ),
    ]
  return found


def figure(results: common.Results):
  """What is gained over norm adaptation, by corruption; errors by stream, round and cost."""
  import matplotlib.pyplot as plt

  quantities, extras = results.quantities, results.extras
  names = [name for name in quantities if name != "source"]
  colors = {name: f"C{i}" for i, name in enumerate(names)}
  curves = [name for name in ("continual", "gradual") if f"RMT/{name}" in extras]
  fig, axes = plt.subplots(
    len(curves) + 1, 1, figsize=(11, 3.4 * (len(curves) + 1)), squeeze=False, layout="constrained"
  )
  for ax, setting in zip(axes[:, 0], curves):
    base = extras[f"norm adaptation/{setting}"]
    for name in names:
      gain = base - extras[f"{name}/{setting}"]
      ax.plot(gain, ".-", linewidth=1, color=colors[name], label=name)
    kinds = extras["kinds"]
    ticks = np.arange(len(base))
    ax.set_xticks(ticks, np.resize(kinds, len(base)), rotation=60, ha="right", fontsize=7)
    for end in range(len(kinds), len(base), len(kinds)):
      ax.axvline(end - 0.5, color="gray", linewidth=1)
    ax.set(ylabel="points below norm adaptation", title=f"{setting.capitalize()} stream")
    ax.grid(alpha=0.3)
  axes[0, 0].legend(fontsize=7, ncols=4)
  below = axes[-1, 0].get_subplotspec().subgridspec(1, 2, width_ratios=(2, 1))
  axes[-1, 0].remove()
  _plot_errors(fig.add_subplot(below[0]), quantities, colors)
  ax = fig.add_subplot(below[1])
  for name in names:
    row = quantities[name]
    ax.plot(
      1e3 * row["cost/sample seconds"], row["continual/error"].mean(), "o", color=colors[name]
    )
  ax.set(xlabel="milliseconds a sample", ylabel="continual error (%)")
  ax.grid(alpha=0.3)
  return fig


def _plot_errors(ax, quantities, colors):
  """Errors of the streams and of the continual stream's rounds, each in its own column."""
  shown = [name for name in quantities["RMT"] if not name.startswith("cost/")]
  for i, (name, color) in enumerate(colors.items()):
    row = quantities[name]
    columns = [j for j, quantity in enumerate(shown) if quantity in row]
    values = [common.quantity(row[shown[j]]) for j in columns]
    ax.errorbar(
      np.array(columns) + 0.08 * (i - len(colors) / 2),
      [value.mean for value in values],
      yerr=[np.nan_to_num(value.standard_error) for value in values],
      fmt="o",
      markersize=4,
      color=color,
    )
  ax.set_xticks(
    range(len(shown)), [name.replace("/error", "").replace("/", "\n") for name in shown]
  )
  ax.set_ylabel("online error (%)")
  ax.grid(axis="y", alpha=0.3)


def abstract(config: Config, mesh):
  """One update of the robust mean teacher, for a dry run."""
  del mesh
  module = tasks.make_module(config)
  shape = (40, 1) if config.dataset == "mnist1d" else (32, 32, 3)
  inputs = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32)
  key = jax.eval_shape(jax.random.key, 0)
  variables = dict(jax.eval_shape(module.init, key, inputs))
  outputs = jax.eval_shape(module.apply, variables, inputs)
  prototypes = jax.ShapeDtypeStruct((10, outputs.features.shape[-1]), jnp.float32)
  jitter = augment.jitter_signals if config.dataset == "mnist1d" else tasks.jitter_images
  nothing = tasks.Split(None, np.zeros(config.batch_size, np.int32))
  task = tasks.Task(module, nothing, nothing, None, jitter)

  def method(source):
    return methods.make_method(config, task, "RMT", jax.random.key(0), source)

  source = methods.Source(variables.pop("params"), variables, prototypes, None)

  def init(key, source):
    projector_params = methods.projector(config).init(key, source.prototypes)
    return method(source).adapter.init(source.params, projector_params)

  def update(state, source, key, inputs):
    return method(source).adapter.update(key, state, inputs)

  return update, jax.eval_shape(init, key, source), source, key, inputs


if __name__ == "__main__":
  common.main(sys.modules[__name__])
