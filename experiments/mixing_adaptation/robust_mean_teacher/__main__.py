"""Test-time adaptation to corruptions that follow each other: the robust mean teacher.

One source network per seed meets streams in which corruptions come in turn (three times over) or
swell and fade. Every method predicts a batch before it learns from it, and all run through the same
two functions, `init` and `update`.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.sweep import grid, run_seeds
from experiments.mixing_adaptation.robust_mean_teacher import methods, streams
from experiments.mixing_adaptation.robust_mean_teacher.methods import (
  ERROR,
  NORM,
  RMT,
  SOURCE,
  TENT,
)
from jaxlab import augment
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "robust_mean_teacher"
SEEDS = {"laptop": 8}
CLEAN_ERROR, ROUND_ERROR = "error of clean rows", "online error in a round"


@dataclasses.dataclass(frozen=True)
class Config:
  """The source, the streams, and what adapts."""

  dataset: Literal["mnist1d", "cifar10"] = "mnist1d"  # Source data and its corruptions.
  num_train: int = 4000  # Source samples.
  num_test: int = 1000  # Test samples under each corruption.
  widths: tuple[int, ...] = (16, 32, 32)  # Channels of the signal network.
  checkpoint: str = ""  # Safetensors file of a trained image network; empty: train it.
  train_steps: int = 3000  # Updates of the source network.
  train_learning_rate: float = 5e-3  # Of AdamW, falling to 0 as a cosine.
  batch_size: int = 100  # Samples a batch, in training and on the stream.
  kinds: tuple[str, ...] = augment.SIGNAL_CORRUPTIONS  # Corruptions, in order.
  severity: int = 3  # Severity of the corruptions, 1 to 5.
  rounds: int = 3  # How often the continual stream comes.
  num_gradual: int = 200  # Test samples at each step of the gradual stream; 0: none.
  search: bool = False  # Whether every method runs in all its settings, not in the chosen one.
  warm_up_steps: int = 100  # Source batches before the stream, for the mean teachers.
  projector_width: int = 128  # Width of the contrastive projector.
  num_augmentations: int = 16  # Augmentations that CoTTA averages; the paper has 32.


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
    kinds=datasets.CIFAR10_CORRUPTIONS,
    rounds=1,
    num_gradual=0,
    warm_up_steps=250,
    num_augmentations=32,
  ),
}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, zero=("num_gradual",))
  signals = config.dataset == "mnist1d"
  kinds = augment.SIGNAL_CORRUPTIONS if signals else datasets.CIFAR10_CORRUPTIONS
  sizes.check_known(kinds, kinds=config.kinds)
  sizes.check_at_most(5, severity=config.severity)
  datasets.describe(config.dataset).check_splits(config.num_train, config.num_test)
  streams = [config.num_test, *([config.num_gradual] if config.num_gradual else [])]
  sizes.check_at_most(min(config.num_train, *streams), batch_size=config.batch_size)


def run(config: Config, context: Context) -> Results:
  """Trains the sources and lets every method meet the same streams."""
  splits = datasets.stack_seeds(functools.partial(streams.load, config), context.seed_numbers)
  train = functools.partial(methods.train_source, config=config)
  sources = run_seeds(context, "source", train, arguments=splits)

  def draw(seed):
    test = jax.tree.map(lambda array: array[seed], splits[1])
    return streams.make_streams(jax.random.fold_in(context.seed_key(seed), 1), config, test)

  data = sources, splits[0], datasets.stack_seeds(draw, range(context.seeds))
  results = Results()
  results.add({SOURCE: {CLEAN_ERROR: 100 * sources["clean error"]}})
  evaluate = {
    name: functools.partial(methods.online_errors, config, name) for name in methods.ADAPTERS
  }
  space = methods.SEARCH
  if not config.search:
    space = {method: [setting] for method, setting in chosen_settings(config).items()}
  for method, tried in space.items():
    settings = [setting | methods.FIXED[method] for setting in tried]
    adapter = evaluate[methods.ADAPTER_OF[method]]
    scores = grid(context, f"method/{method}", adapter, data, settings)
    for i, where in enumerate(tried):
      add_scores(results, config, method, {k: v[:, i] for k, v in scores.items()}, **where)
  return results


def chosen_settings(config: Config) -> dict[str, dict[str, float]]:
  """Method -> the setting that the pilot chose, or the paper's."""
  return methods.chosen_settings(config.dataset, catalogue.selection(PAPER))


def add_scores(results: Results, config: Config, method: str, scores: dict, **where) -> None:
  """Adds percentages, of streams and rounds, from shares of wrong predictions `[seeds, m]`."""
  for stream, wrong in scores.items():
    wrong = 100 * wrong
    results.add({method: {ERROR: wrong.mean(1)}}, stream=stream, **where)
    if stream == "continual":
      for i, errors in enumerate(wrong.reshape(len(wrong), config.rounds, -1).mean(2).T):
        results.add({method: {ROUND_ERROR: errors}}, stream=stream, round=i + 1, **where)


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, in the chosen settings; errors are percentages. A search has none."""
  if config.search:
    return []
  chosen = chosen_settings(config)

  def error(method, stream="continual"):
    return results.select(ERROR, method=method, stream=stream, **chosen[method])

  def last_round(method):
    return results.select(ROUND_ERROR, method=method, round=config.rounds, **chosen[method])

  def lower(text, method, baseline, margin, **options):
    return compare(text, method, baseline, better="lower", margin=margin, **options)

  clean, norm, ours = results.select(CLEAN_ERROR), error(NORM), error(RMT)
  requires = [
    precondition("the source model errs on 15% of clean rows or less", clean, at_most=15),
    precondition(
      "norm adaptation takes 5 points or more off its error", error(SOURCE) - norm, at_least=5
    ),
    precondition("norm adaptation errs on 10% or more", norm, at_least=10),
  ]
  lower = functools.partial(lower, requires=requires)
  statements = [
    lower(
      "continual stream: RMT's error is lower than TENT's",
      *(ours, error(TENT), 1),
      headline=True,
      paper="17.0 against 20.0 (CIFAR10-C), 30.2 against 62.2 (CIFAR100-C)",
    ),
    lower(
      "continual stream: RMT's error is lower than that of norm adaptation",
      *(ours, norm, 1),
      paper="17.0 against 20.4 (CIFAR10-C), 30.2 against 35.4 (CIFAR100-C)",
    ),
    lower(
      "continual stream: RMT's error is lower than CoTTA's",
      *(ours, error(methods.COTTA), 0.5),
      paper="17.0 against 16.5 (CIFAR10-C), 30.2 against 32.8 (CIFAR100-C)",
    ),
    lower(
      "continual stream: source replay lowers RMT's error",
      *(error(methods.REPLAY), ours, 0.5),
      paper="14.5 against 17.0 (CIFAR10-C)",
    ),
    lower(
      "last round: symmetric beats plain cross-entropy in a mean teacher without contrastive loss",
      *(last_round(method) for method in (methods.SYMMETRIC, methods.PLAIN)),
      margin=0.5,
    ),
  ]
  if config.num_gradual:
    text = "gradual stream: RMT's error is lower than TENT's"
    statements.append(lower(text, error(RMT, "gradual"), error(TENT, "gradual"), 1))
  return statements


def figure(results: Results):
  """What is gained over norm adaptation, by stream and round, in each method's best setting."""
  gains = Results()
  adapting = [m for m in results.distinct("method", quantity=ERROR) if m not in (SOURCE, NORM)]
  for method in adapting:
    tried = results.matching(quantity=ERROR, method=method, stream="continual")
    best = dict(min(tried, key=lambda record: record.values.mean()).setting)
    best.pop("stream")
    for _, quantity, setting, values in results.matching(method=method, **best):
      where = {name: value for name, value in setting.items() if name not in best}
      gain = results.select(quantity, method=NORM, **where) - values
      gains.add({method: {quantity: gain}}, **where)
  figure, axes = plots.panels(2, width=5.5)
  plots.intervals(axes[0], gains, ERROR, by="stream")
  plots.curves(axes[1], gains, ROUND_ERROR, x="round")
  axes[1].xaxis.get_major_locator().set_params(integer=True)
  axes[1].set_xlabel("round of the continual stream")
  for ax in axes:
    ax.axhline(0, color="gray", linewidth=1)
    ax.set_ylabel("error below norm adaptation's, points")
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
  return figure


def abstract(config: Config, mesh):
  """One update of the robust mean teacher, for a dry run."""
  del mesh
  key, dataset = jax.eval_shape(jax.random.key, 0), datasets.describe(config.dataset)
  rows, test = dataset.batch(config.num_train), dataset.batch(config.num_test)
  train = functools.partial(methods.train_source, config=config)
  source = jax.eval_shape(train, key, (rows, test))
  setting = chosen_settings(config)[RMT] | methods.FIXED[RMT]

  def init(key, source, rows):
    problem = methods.Problem(config, source, setting)
    return methods.first_state(key, problem, methods.mean_teacher(problem), rows)

  def update(state, source, key, inputs):
    problem = methods.Problem(config, source, setting)
    return methods.mean_teacher(problem).update(key, state, inputs)

  state = jax.eval_shape(init, key, source, rows)
  return update, state, source, key, dataset.batch(config.batch_size).inputs


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
