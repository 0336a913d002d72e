"""Open-set test-time adaptation: only rows that gain confidence are learned from.

A network trained on some classes meets a long stream of corrupted batches, half of whose rows are
of classes it has never seen. All methods see the same stream and step the scales and biases of the
normalization layers by the same rule, and differ in the rows and in the loss.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import jax.numpy as jnp

from experiments import catalogue
from experiments.kit import datasets, plots
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import grid
from experiments.mixing_adaptation.open_set_tta import task
from experiments.mixing_adaptation.open_set_tta.adapters import (
  DIVERSE,
  FILTERED,
  MAIN,
  METHODS,
  NORM,
  ORACLE,
  SOURCE,
  TENT,
  adapters,
)
from jaxlab import algorithms, augment, losses, metrics, training
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "open_set_tta"
GAIN, CONFIDENCE = "confidence gained in one step", "confidence"
AGAINST = ("wrong", "wrong and unknown")
ERROR, KEPT, AUROC = "closed-set error", "share kept", "AUROC of right rows"


@dataclasses.dataclass(frozen=True)
class Config:
  """The source model, the stream, and the adaptation."""

  dataset: Literal["mnist1d", "cifar10"] = "mnist1d"  # cifar10: with SVHN's digits as unknown.
  num_known: int = 7  # Classes 0, 1, ... of the source model; MNIST-1D's others are unknown.
  widths: tuple[int, ...] = (32, 64, 64)  # Channels of the signal network.
  num_train: int = 5000  # Training rows of known classes.
  num_test: int = 500  # Known test rows, and as many unknown ones, under each corruption.
  train_steps: int = 2000  # Updates of the source model.
  train_batch: int = 100  # Rows per update.
  train_learning_rate: float = 2e-3  # Of AdamW, falling to 0 as a cosine.
  label_smoothing: float = 0.1  # Of the source model; the rows that learn must not be saturated.
  kinds: tuple[str, ...] = (  # Corruptions of a round, in order.
    *("gaussian_noise", "blur", "contrast", "elastic", "pixelate", "quantize"),
  )
  severity: int = 4  # Their severity.
  batch_size: int = 100  # Known rows of a batch, and as many unknown ones.
  rounds: int = 20  # Times that the corruptions come, drawn anew.
  learning_rates: tuple[float, ...] = (1e-3, 3e-3)  # Of Adam; every method is run at each.
  diversity_weight: float = 0.5  # Weight of the marginal entropy.


PRESETS = {
  "smoke": Config(
    widths=(4,),
    num_train=60,
    num_test=20,
    train_steps=4,
    train_batch=20,
    kinds=("contrast", "quantize"),
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


def run(config: Config, context: Context) -> Results:
  """Trains a source model per seed, and lets every method meet its stream at every rate."""
  tasks = datasets.stack_seeds(functools.partial(task.load_task, config), context.seed_numbers)
  train = functools.partial(task.train_source, config=config)
  sources = context.cached(
    "source",
    training.over_seeds,
    context.key,
    train,
    num_seeds=context.seeds,
    arguments=tasks,
    mesh=context.mesh,
  )
  data = sources, tasks.known, tasks.unknown
  settings = [{"learning_rate": rate} for rate in config.learning_rates]
  results = Results()
  results.add({SOURCE: {"error of clean rows": sources["clean error"]}})
  stream, step = (functools.partial(fn, config) for fn in (long_stream, one_step))
  streams = context.cached("stream", grid, context, stream, data, settings)
  for m, method in enumerate(METHODS):
    learns = method not in (SOURCE, NORM)
    scores = {name: values[:, :, m] for name, values in streams.items()}
    kept = {rows: scores.pop(rows) for rows in ("right", "wrong", "unknown")}
    for i, setting in enumerate(settings if learns else settings[:1]):
      for r in range(config.rounds):
        where = {"round": r + 1, **(setting if learns else {})}
        row = {name: values[:, i, r] for name, values in scores.items()}
        results.add({method: row}, **where)
        for rows, share in kept.items() if method in (FILTERED, MAIN, ORACLE) else ():
          results.add({method: {KEPT: share[:, i, r]}}, rows=rows, **where)
  areas = context.cached("one step", grid, context, step, data, settings)
  for j, against in enumerate(AGAINST):
    results.add({CONFIDENCE: {AUROC: areas[CONFIDENCE][:, 0, j]}}, against=against)
    for i, setting in enumerate(settings):
      results.add({GAIN: {AUROC: areas[GAIN][:, i, j]}}, against=against, **setting)
  return results


def long_stream(config: Config, key, data, *, setting) -> dict[str, jax.Array]:
  """Scores of all methods in every round, means over corruptions: name -> `[methods, rounds]`."""
  source, known, unknown = data
  methods = adapters(config, source["model_state"], setting["learning_rate"])
  key = jax.random.fold_in(key, 1)

  def scores_of(logits, kept, labels):
    logits, kept = (x.reshape(*labels.shape, *x.shape[2:]) for x in (logits, kept))
    return jax.tree.map(jnp.mean, jax.vmap(stream_scores)(logits, kept, labels))

  def one_round(states, key):
    stream = task.open_set_stream(key, config, known, unknown)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stream)
    new_states, seen = {}, []
    for method in METHODS:
      new_states[method], info = algorithms.adapt_stream(key, methods[method], states[method], flat)
      seen.append((info.logits, info.selected))
    seen = jax.tree.map(lambda *arrays: jnp.stack(arrays), *seen)
    return new_states, jax.lax.map(lambda rows: scores_of(*rows, stream.labels), seen)

  states = {method: adapter.init(source["params"]) for method, adapter in methods.items()}
  _, scores = jax.lax.scan(one_round, states, jax.random.split(key, config.rounds))
  return jax.tree.map(jnp.transpose, scores)


def stream_scores(logits, kept, labels):
  """All that is measured under one corruption, from `[batches, 2 b, ...]`."""
  (logits, kept, labels), num = _known_first(logits, kept, labels)
  predictions, confidence = jnp.argmax(logits, -1), jax.nn.softmax(logits).max(-1)
  known = labels != task.UNKNOWN
  right = predictions == labels

  def share(rows):
    return jnp.sum(kept * rows) / jnp.maximum(rows.sum(), 1)

  return {
    "closed-set error": metrics.closed_set_error(predictions, labels, known=known),
    "AUROC": metrics.auroc(confidence, known),
    "OSCR": metrics.open_set_classification_rate(
      confidence[:num], confidence[num:], predictions[:num], labels[:num]
    ),
    "right": share(right),
    "wrong": share(known & ~right),
    "unknown": share(~known),
  }


def _known_first(*arrays):
  """Rows of all batches `[rows, ...]`, known ones before unknown ones, and how many are known."""
  half = arrays[0].shape[1] // 2

  def gather(x):
    parts = x[:, :half], x[:, half:]
    return jnp.concatenate([part.reshape(-1, *x.shape[2:]) for part in parts])

  return tuple(map(gather, arrays)), arrays[0].shape[0] * half


def one_step(config: Config, key, data, *, setting) -> dict[str, jax.Array]:
  """AUROC of right rows `AGAINST` others, by confidence and by what one entropy step adds to it."""
  source, known, unknown = data
  key = jax.random.fold_in(key, 1)
  stream = task.open_set_stream(key, config, known, unknown)
  methods = adapters(config, source["model_state"], setting["learning_rate"])
  still, tent = methods[NORM], methods[TENT]

  def batch_logits(batch):
    state, info = tent.update(key, tent.init(source["params"]), batch)
    _, after = still.update(key, still.init(state.params), batch)
    return info.logits, after.logits

  def corruption(stream):
    before, after = jax.lax.map(batch_logits, stream)
    (before, after, labels), num = _known_first(before, after, stream.labels)
    right = jnp.argmax(before, -1) == labels
    gain = losses.confidence_difference(after, before)
    scores = {GAIN: gain, CONFIDENCE: jax.nn.softmax(before).max(-1)}
    return {
      name: jnp.stack([metrics.auroc(score[:num], right[:num]), metrics.auroc(score, right)])
      for name, score in scores.items()
    }

  return jax.tree.map(lambda x: x.mean(0), jax.lax.map(corruption, stream))


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, at the first learning rate and after the last round."""
  rate = {"learning_rate": config.learning_rates[0]}

  def error(method, **where):
    return results.select(ERROR, method=method, round=config.rounds, **where)

  def kept(rows):
    return results.select(KEPT, method=MAIN, rows=rows, average=("round",), **rate)

  norm, tent, ours = error(NORM), error(TENT, **rate), error(MAIN, **rate)
  works = precondition("norm adaptation errs on 20% or less", norm, at_most=0.2)
  collapses = precondition(
    "TENT's error ends 5 points or more above norm adaptation's", tent - norm, at_least=0.05
  )
  statements = [
    compare(
      "after a long open-set stream the filter's closed-set error is lower than TENT's",
      *(ours, tent),
      better="lower",
      margin=0.05,
      headline=True,
      requires=(works, collapses),
      paper="45.84% to 14.10%, CIFAR-10 with SVHN-C",
    ),
    compare(
      "after a long open-set stream the filter's closed-set error is below norm adaptation's",
      *(ours, norm),
      better="lower",
      margin=0.002,
      requires=(works,),
      paper="14.49% to 14.10%, CIFAR-10 with SVHN-C",
    ),
    compare(
      "the filter lowers the final error of TENT with the marginal entropy",
      *(ours, error(DIVERSE, **rate)),
      better="lower",
      margin=0.005,
      requires=(works,),
    ),
  ]
  for others in ("wrong", "unknown"):
    text = f"right rows are kept more often than {others} ones"
    statements.append(compare(text, kept("right"), kept(others), margin=0.1, requires=(works,)))
  against = {"against": AGAINST[1]}
  statements.append(
    compare(
      "gained confidence tells right rows from others better than confidence itself",
      results.select(AUROC, method=GAIN, **against, **rate),
      results.select(AUROC, method=CONFIDENCE, **against),
      requires=(works,),
    )
  )
  return statements


def figure(results: Results):
  """Error and AUROC by round, and what the filter keeps, at the first learning rate."""
  rate, *_ = results.distinct("learning_rate")
  shown = Results(record for record in results if record.field("learning_rate") in (None, rate))
  kept = shown.distinct("round", quantity=KEPT)
  figure, axes = plots.panels(3 if kept else 2)
  for ax, quantity in zip(axes, (ERROR, "AUROC")):
    plots.curves(ax, shown, quantity, x="round")
    ax.set_title(f"learning rate {rate:g}")
    ax.xaxis.get_major_locator().set_params(integer=True)
  if kept:
    plots.curves(axes[2], shown, KEPT, x="round", color="rows", method=MAIN)
    axes[2].set(title=MAIN, ylim=(-0.02, 1.02))
    axes[2].legend(fontsize=8)
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
  return figure


def abstract(config: Config, mesh):
  """One update of the source model, for a dry run."""
  batch = datasets.describe(config.dataset).batch(config.train_batch)
  return abstract_step(task.network(config), *task.source_training(config), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
