"""Open-set test-time adaptation: only rows that gain confidence are learnt from.

A network trained on some classes meets a long stream of corrupted batches, half of whose rows are
of classes it has never seen. All methods see the same stream and step the scales and biases of the
normalisation layers by the same rule, and differ in the rows and in the loss.
"""

import dataclasses
import functools
import sys
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.classification import Split
from experiments.mixing_adaptation import open_set_tta_task as tasks
from jaxlab import algorithms, augment, losses, metrics, training

PAPER = "open_set_tta"
SOURCE, NORM, TENT = "source", "norm adaptation", "TENT"
DIVERSE, FILTERED, MAIN = "TENT with marginal", "filter alone", "filter with marginal"
ORACLE = "oracle filter with marginal"
METHODS = (SOURCE, NORM, TENT, DIVERSE, FILTERED, MAIN, ORACLE)
_STILL, _SELECTING = (SOURCE, NORM), (FILTERED, MAIN, ORACLE)


@dataclasses.dataclass(frozen=True)
class Config:
  """The source model, the stream, and the adaptation."""

  dataset: Literal["mnist1d", "cifar10"] = "mnist1d"  # cifar10: with SVHN's digits as unknown.
  num_known: int = 7  # Classes 0, 1, ... of the source model; MNIST-1D's others are unknown.
  num_train: int = 5000  # Training rows of known classes.
  num_test: int = 500  # Known test rows, and as many unknown ones, under each corruption.
  train_steps: int = 2000  # Updates of the source model.
  train_batch: int = 100  # Rows an update.
  train_learning_rate: float = 2e-3  # Of AdamW, falling to 0 as a cosine.
  label_smoothing: float = 0.1  # Of the source model; the rows that learn must not be saturated.
  kinds: tuple[str, ...] = (
    "gaussian_noise",
    "blur",
    "contrast",
    "elastic",
    "pixelate",
    "quantize",
  )  # Corruptions of a round, in order.
  severity: int = 4  # Their severity.
  batch_size: int = 100  # Known rows of a batch, and as many unknown ones.
  rounds: int = 20  # Times that the corruptions come, drawn anew.
  learning_rates: tuple[float, ...] = (1e-3, 3e-3)  # Of Adam; every method is run at each.
  diversity_weight: float = 0.5  # Weight of the marginal entropy.


PRESETS = {
  "smoke": Config(
    num_train=60,
    num_test=20,
    train_steps=4,
    train_batch=20,
    kinds=("gaussian_noise", "quantize"),
    batch_size=10,
    rounds=2,
    learning_rates=(1e-3,),
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10",
    num_known=10,
    num_train=50_000,
    num_test=10_000,
    train_steps=78_000,  # 200 epochs; the paper's network is trained with AugMix.
    train_batch=128,
    kinds=augment.IMAGE_CORRUPTIONS,
    severity=5,
    batch_size=200,
    rounds=50,
    learning_rates=(1e-3,),
  ),
}


def adapters(config: Config, batch_stats, learning_rate: chex.Numeric) -> dict:
  """Every method, on batches `Split`; only the oracle looks at the labels."""
  module = tasks.network(config)

  def forward(params, batch, train=True):
    return module.apply({"params": params, **batch_stats}, batch.inputs, train=train)

  def diverse(key, batch):
    del key
    logits = batch.outputs.logits
    marginal = losses.marginal_entropy(logits)
    return algorithms.AdaptLoss(losses.softmax_entropy(logits) - config.diversity_weight * marginal)

  def oracle(key, batch):
    del key
    logits = batch.outputs.logits
    # No unknown row is right: its label is no class.
    right = (jnp.argmax(logits, -1) == batch.inputs.labels).astype(jnp.float32)
    share = right * right.size / jnp.maximum(right.sum(), 1)
    marginal = losses.marginal_entropy(logits)
    values = share * losses.softmax_entropy(logits) - config.diversity_weight * marginal
    return algorithms.AdaptLoss(values, right)

  optimizer, affine = optax.adam(learning_rate), algorithms.norm_affine_only
  filtered = functools.partial(algorithms.filtered_entropy_minimization, forward, optimizer)
  return {
    SOURCE: algorithms.norm_adaptation(functools.partial(forward, train=False)),
    NORM: algorithms.norm_adaptation(forward),
    TENT: algorithms.entropy_minimization(forward, optimizer),
    DIVERSE: algorithms.loss_adapter(forward, diverse, optimizer, trainable=affine),
    FILTERED: filtered(diversity_weight=0.0),
    MAIN: filtered(diversity_weight=config.diversity_weight),
    ORACLE: algorithms.loss_adapter(forward, oracle, optimizer, trainable=affine),
  }


def run(config: Config, context: common.Context) -> common.Results:
  """Trains a source model a seed, and lets every method meet its stream at every rate."""
  task = tasks.load_task(config)
  train = functools.partial(tasks.train_source, config, task)
  sources, clean = context.cached("source", _over_seeds, context, train)
  rows: dict[str, dict] = {method: {} for method in METHODS}
  rows[SOURCE]["error of clean rows"] = clean
  extras, streamed = {}, {}
  for rate in config.learning_rates:
    group = f"rate {rate:g}"
    for method in METHODS:
      name = f"stream/{method}" if method in _STILL else f"stream/{method}, {group}"
      if name not in streamed:
        judge = functools.partial(_long_stream, config, task, method, rate)
        streamed[name] = context.cached(name, _over_sources, context, sources, judge)
      rows[method] |= _summary(group, streamed[name], method)
      for score, values in streamed[name].items():
        extras[f"{group}/{method}/{score}"] = values
    judge = functools.partial(_one_step, config, task, rate)
    found = context.cached(f"one step/{group}", _over_sources, context, sources, judge)
    for method, scores in found.items():
      rows[method] |= {f"{group}, one step/{score}": values for score, values in scores.items()}
  return common.Results(rows, extras)


def _over_seeds(context, one_seed):
  """`one_seed(key)` of every seed, spread over the devices."""
  return training.over_seeds(context.key, one_seed, num_seeds=context.seeds, mesh=context.mesh)


def _over_sources(context, sources, judge):
  """`judge(key, params, model_state)` for every seed, with the source model of that seed."""
  keys = jax.random.key_data(jax.random.split(context.key, context.seeds))

  def one_seed(key):
    seed = jnp.argmax(jnp.all(keys == jax.random.key_data(key), axis=-1))
    own = jax.tree.map(lambda x: jnp.asarray(x)[seed], sources)
    return judge(jax.random.fold_in(key, 1), own["params"], own["model_state"])

  return _over_seeds(context, one_seed)


def _long_stream(config, task, method, rate, key, params, model_state):
  """Scores in every round, means over corruptions: name -> `[rounds]`."""
  adapter = adapters(config, model_state, rate)[method]

  def one_round(state, key):
    stream = tasks.open_set_stream(key, config, task)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stream)
    state, info = algorithms.adapt_stream(key, adapter, state, flat)
    logits, kept = (
      x.reshape(*stream.labels.shape, *x.shape[2:]) for x in (info.logits, info.selected)
    )
    return state, jax.tree.map(jnp.mean, jax.vmap(_scores)(logits, kept, stream.labels))

  _, scores = jax.lax.scan(one_round, adapter.init(params), jax.random.split(key, config.rounds))
  return scores


def _scores(logits, kept, labels):
  """All that is measured under one corruption, from `[batches, 2 b, ...]`."""
  (logits, kept, labels), num = _known_first(logits, kept, labels)
  predictions, confidence = jnp.argmax(logits, -1), jax.nn.softmax(logits).max(-1)
  known = labels != tasks.UNKNOWN
  right = predictions == labels

  def share(rows):
    return jnp.sum(kept * rows) / jnp.maximum(rows.sum(), 1)

  return {
    "closed-set error": metrics.closed_set_error(predictions, labels, known=known),
    "AUROC": metrics.auroc(confidence, known),
    "OSCR": metrics.open_set_classification_rate(
      confidence[:num], confidence[num:], predictions[:num], labels[:num]
    ),
    "kept of right": share(right),
    "kept of wrong": share(known & ~right),
    "kept of unknown": share(~known),
  }


def _known_first(*arrays):
  """Rows of all batches `[rows, ...]`, known ones before unknown ones, and how many are known."""
  half = arrays[0].shape[1] // 2

  def gather(x):
    parts = x[:, :half], x[:, half:]
    return jnp.concatenate([part.reshape(-1, *x.shape[2:]) for part in parts])

  return tuple(map(gather, arrays)), arrays[0].shape[0] * half


def _one_step(config, task, rate, key, params, model_state):
  """How well confidence, and what one entropy step adds to it, tell right rows from others."""
  stream = tasks.open_set_stream(key, config, task)
  methods = adapters(config, model_state, rate)
  still, tent = methods[NORM], methods[TENT]

  def batch_logits(batch):
    state, info = tent.update(key, tent.init(params), batch)
    _, after = still.update(key, still.init(state.params), batch)
    return info.logits, after.logits

  def corruption(stream):
    before, after = jax.lax.map(batch_logits, stream)
    (before, after, labels), num = _known_first(before, after, stream.labels)
    right = jnp.argmax(before, -1) == labels
    gain = losses.confidence_difference(after, before)
    ranked = {TENT: gain, NORM: jax.nn.softmax(before).max(-1)}
    return {
      method: {
        "AUROC, right against wrong": metrics.auroc(score[:num], right[:num]),
        "AUROC, right against wrong and unknown": metrics.auroc(score, right),
      }
      for method, score in ranked.items()
    }

  return jax.tree.map(jnp.mean, jax.lax.map(corruption, stream))


def _summary(group: str, scores: dict, method: str) -> dict:
  """First and last round, one number a seed."""
  row = {}
  for name in ("closed-set error", "AUROC", "OSCR"):
    row[f"{group}/{name}, first round"] = scores[name][:, 0]
    row[f"{group}/{name}, last round"] = scores[name][:, -1]
  if method in _SELECTING:
    for name in ("kept of right", "kept of wrong", "kept of unknown"):
      row[f"{group}, selection/{name}"] = scores[name].mean(1)
  return row


# ------------------------------------------------------------------------------- claims and figure


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements, at every learning rate."""
  rows = results.quantities
  found = []
  ending = "/closed-set error, last round"
  for group in [name.removesuffix(ending) for name in rows[MAIN] if name.endswith(ending)]:
    error = {method: row[group + ending] for method, row in rows.items()}
    kept = {
      name: rows[MAIN][f"{group}, selection/kept of {name}"]
      for name in ("right", "wrong", "unknown")
    }
    found += [
      common.compare(
        f"{group}: TENT ends worse than norm adaptation", error[TENT], error[NORM], paper=0.4584
      ),
      common.compare(
        f"{group}: the filter ends better than norm adaptation",
        error[MAIN],
        error[NORM],
        better="lower",
        paper=0.141,
      ),
      common.compare(
        f"{group}: the filter ends 5 points better than TENT",
        error[MAIN],
        error[TENT],
        better="lower",
        margin=0.05,
        paper=0.141,
      ),
    ]
    for other in ("wrong", "unknown"):
      found.append(
        common.compare(
          f"{group}: right rows are kept more often than {other} ones", kept["right"], kept[other]
        )
      )
    for against in ("wrong", "wrong and unknown"):
      name = f"{group}, one step/AUROC, right against {against}"
      found.append(
        common.compare(
          f"{group}: gained confidence tells right from {against} better than confidence",
          rows[TENT][name],
          rows[NORM][name],
        )
      )
  return found


def figure(results: common.Results):
  """Error and AUROC by round, and what the filter keeps, a row a learning rate."""
  import matplotlib.pyplot as plt

  extras = results.extras
  groups = list(dict.fromkeys(name.split("/")[0] for name in extras))
  fig, axes = plt.subplots(
    len(groups), 3, figsize=(14, 3.6 * len(groups)), squeeze=False, layout="constrained"
  )
  for row, group in zip(axes, groups):
    for ax, name in zip(row, ("closed-set error", "AUROC")):
      for method in METHODS:
        values = extras[f"{group}/{method}/{name}"]
        rounds = np.arange(1, values.shape[1] + 1)
        (line,) = ax.plot(rounds, values.mean(0), label=method)
        ax.fill_between(rounds, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)
      ax.set(xlabel="round", ylabel=name, title=f"{name}, {group}")
    for name in ("right", "wrong", "unknown"):
      values = extras[f"{group}/{MAIN}/kept of {name}"]
      row[2].plot(np.arange(1, values.shape[1] + 1), values.mean(0), label=name)
    for ax in row:
      ax.xaxis.get_major_locator().set_params(integer=True)
    row[2].set(xlabel="round", ylabel="share kept", title=f"{MAIN}, {group}", ylim=(0, 1))
  axes[0, 0].legend(fontsize=7)
  axes[0, 2].legend(fontsize=8)
  return fig


def abstract(config: Config, mesh):
  """One update of the source model, for a dry run."""
  module, optimizer = tasks.network(config), tasks.source_optimizer(config)
  update = training.build_update(tasks.source_loss(config), optimizer, mesh=mesh)
  shape = (32, 32, 3) if config.dataset == "cifar10" else (40, 1)

  def init(key):
    variables = dict(module.init(key, jnp.zeros((1, *shape))))
    params = variables.pop("params")
    return training.init_state(key, params, optimizer, model_state=variables)

  inputs = jax.ShapeDtypeStruct((config.train_batch, *shape), jnp.float32)
  labels = jax.ShapeDtypeStruct((config.train_batch,), jnp.int32)
  return update, jax.eval_shape(init, jax.random.key(0)), Split(inputs, labels)


if __name__ == "__main__":
  common.main(sys.modules[__name__])
