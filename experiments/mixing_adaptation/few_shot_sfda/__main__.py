"""Source-free adaptation: a few labeled target examples against methods without labels.

Signals under four shifts, with classes as in the source, with unknown classes among the target's,
and with class counts reversed.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import run_seeds
from experiments.mixing_adaptation.few_shot_sfda import domains
from experiments.mixing_adaptation.few_shot_sfda.domains import SCENARIOS
from experiments.mixing_adaptation.few_shot_sfda.methods import adapt, draw_shots, tune
from jaxlab import augment
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "few_shot_sfda"
ACCURACY, LAST = "mean class accuracy", "mean class accuracy at the last step"
TUNINGS = {"FT": 0.0, "LP-FT": 1.0}  # Learning rate of the linear probe over the configured one.
SPREAD = "deviation over draws"


@dataclasses.dataclass(frozen=True)
class Config:
  """The domains, the source model, and every method's schedule."""

  dataset: str = "mnist1d"  # mnist1d, or domainnet: its photographs are the source.
  # Target domains; of mnist1d, corruptions and their severities.
  targets: tuple[str, ...] = ("elastic 4", "blur 4", "contrast 4 + drift 3", "gaussian_noise 3")
  num_classes: int = 10  # Classes; an open set hides the last 30% of them from the source.
  pool_size: int = 9000  # Signals that source and target rows are drawn from, anew for every seed.
  num_source: int = 2000  # Source rows.
  num_target: int = 2000  # Target rows, unlabeled but for the shots.
  imbalance: float = 100.0  # Rows of the most over those of the least frequent class, if shifted.
  widths: tuple[int, ...] = (16, 32, 32)  # Channels of the convolutions on signals.
  source_steps: int = 2000  # Updates of the source model.
  source_batch_size: int = 100  # Rows of each.
  source_learning_rate: float = 5e-3  # AdamW with a cosine to 0.
  draws: int = 3  # Draws of the few examples.
  shots: tuple[int, ...] = (1, 3)  # Labeled target examples a class.
  learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)  # Of fine-tuning, chosen on one shot.
  head_learning_rate: float = 1e-3  # Of the linear probe.
  num_steps: int = 100  # Updates of fine-tuning.
  num_head_steps: int = 50  # Updates of the linear probe before it.
  batch_size: int = 32  # Rows of each, the few repeated.
  num_copies: int = 32  # Augmented copies of each of the few examples.
  shot_learning_rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)  # Of SHOT, chosen on one shot.
  shot_epochs: int = 15  # Passes over the target.
  stream_batch_size: int = 100  # Rows of the batches that Tent and batch statistics meet.


PRESETS = {
  "smoke": Config(
    targets=("gaussian_noise 3",),
    pool_size=800,
    num_source=120,
    num_target=200,
    imbalance=10.0,
    widths=(8,),
    source_steps=2,
    source_batch_size=20,
    draws=1,
    shots=(1,),
    learning_rates=(1e-3,),
    num_steps=10,
    num_head_steps=10,
    batch_size=10,
    num_copies=2,
    shot_learning_rates=(1e-2,),
    shot_epochs=1,
    stream_batch_size=50,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="domainnet",
    targets=("sketch", "clipart", "painting"),
    num_classes=345,
    num_source=100_000,
    num_target=40_000,
    source_steps=80_000,
    source_batch_size=64,
    source_learning_rate=1e-3,
    learning_rates=(1e-6, 1e-5, 1e-4),
    head_learning_rate=1e-4,
    num_steps=1000,
    num_head_steps=400,
    num_copies=4,
  ),
}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  sizes.check_known(("mnist1d", "domainnet"), dataset=[config.dataset])
  if config.dataset == "mnist1d":
    sizes.check_at_most(config.pool_size - config.num_source, num_target=config.num_target)
    sizes.check_at_most(10, num_classes=config.num_classes)
    parts = [part.split() for target in config.targets for part in target.split(" + ")]
    sizes.check_known(augment.SIGNAL_CORRUPTIONS, targets=[part[0] for part in parts])
  sizes.check_at_most(config.num_source, source_batch_size=config.source_batch_size)
  sizes.check_at_most(config.num_target, stream_batch_size=config.stream_batch_size)
  least = min(domains.num_known(config, scenario) for scenario in SCENARIOS)
  copies = least * max(config.shots) * config.num_copies
  sizes.check_at_most(copies, batch_size=config.batch_size)


def run(config: Config, context: Context) -> Results:
  """Trains the sources of each scenario and adapts them by every method."""
  results = Results()

  def add(method, values, scenario):
    """Records of every target and variant: quantity -> `[seeds * targets, variants]`."""
    pairs = list(itertools.product(config.targets, _variants(config, method)))
    for name, array in values.items():
      for (target, variant), column in zip(pairs, np.reshape(array, (-1, len(pairs))).T):
        results.add({method: {name: column}}, target=target, scenario=scenario, **variant)

  for i, scenario in enumerate(SCENARIOS):
    draw = functools.partial(domains.make_domains, config, scenario)
    source, targets = datasets.stack_seeds(draw, context.seed_numbers)
    module = domains.network(config, scenario)
    keys = (jax.random.fold_in(jax.random.fold_in(context.key, i), j) for j in range(3))
    source_key, adapt_key, tune_key = keys

    def over(stage, key, fn, arguments, scenario=scenario):
      """A stage: `over_seeds`, a run for every row of the arguments."""
      num = len(jax.tree.leaves(arguments)[0])
      options = {"key": key, "num_seeds": num, "arguments": arguments}
      return run_seeds(context, f"{scenario}/{stage}", fn, **options)

    variables = over("source", source_key, domains.train_source(config, module), source)
    # One problem per seed and target.
    variables = jax.tree.map(lambda x: np.repeat(x, len(config.targets), axis=0), variables)
    targets = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), targets)
    shots = draw_shots(tune_key, config, targets.labels, module.num_classes)
    scores = over("without labels", adapt_key, adapt(config, module), (variables, targets, shots))
    for method, values in scores.items():
      add(method, {ACCURACY: values.mean(1) if method == "SHOT" else values}, scenario)
    for tuning, probed in TUNINGS.items():
      rates = np.full(len(targets.labels), probed * config.head_learning_rate, np.float32)
      arguments = variables, targets, shots, rates
      scores = over(tuning, tune_key, tune(config, module), arguments)
      values = {ACCURACY: scores["best"].mean(1), LAST: scores["last"].mean(1)}
      if config.draws > 1:
        values[SPREAD] = scores["best"].std(1, ddof=1)
      add(tuning, values, scenario)
  return results


def _variants(config: Config, method: str) -> list[dict[str, float]]:
  """The settings that a method was run in, besides scenario and target."""
  return [{"shots": shots} for shots in config.shots] if method in TUNINGS else [{}]


def _by_scenario(results: Results, method: str, **where) -> np.ndarray:
  """Accuracies `[scenarios, seeds]`, means over targets."""
  where |= {"method": method, "average": ("target",)}
  return np.stack([results.select(ACCURACY, scenario=s, **where) for s in SCENARIOS])


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, of fine-tuning after a linear probe with the most shots."""
  most = {"method": "LP-FT", "shots": max(config.shots)}
  ours, source, norm, shot = (
    _by_scenario(results, **where)
    for where in (most, *({"method": name} for name in ("source", "batch statistics", "SHOT")))
  )
  gains = precondition(
    "closed set: SHOT gains 5 points or more over the source model",
    shot[0] - source[0],
    at_least=0.05,
  )
  room = precondition("closed set: SHOT is right on 95% or less", shot[0], at_most=0.95)
  breaks = precondition(
    "SHOT loses 5 points or more from the closed set to its worst scenario",
    shot[0] - shot.min(0),
    at_least=0.05,
  )
  hard, hard_shot, hard_norm = (x[1:].mean(0) for x in (ours, shot, norm))
  statements = [
    compare(
      "unknown classes and label shift (mean): few-shot LP-FT is above SHOT",
      *(hard, hard_shot),
      margin=0.03,
      headline=True,
      requires=(gains, room, breaks),
      paper="SHOT loses several points there, fine-tuning does not",
    ),
    compare(
      "unknown classes alone: few-shot LP-FT is above SHOT",
      *(ours[1], shot[1]),
      requires=(gains, room),
    ),
    compare(
      "closed set: few-shot LP-FT is within 3 points of SHOT",
      *(ours[0], shot[0]),
      margin=-0.03,
      requires=(gains, room),
      paper="about 72 against 71.8 on Office-Home",
    ),
    compare(
      "unknown classes and label shift (mean): few-shot LP-FT is above batch statistics",
      *(hard, hard_norm),
      margin=0.03,
      requires=(gains, room),
    ),
    compare(
      "few-shot LP-FT does not overfit: the last step is within 1 point of the chosen one",
      *(results.select(LAST, scenario=SCENARIOS[0], average=("target",), **most), ours[0]),
      margin=-0.01,
    ),
  ]
  if config.draws > 1:
    text = "few-shot LP-FT: the deviation over draws of the shots is below 3 points"
    spread = results.select(SPREAD, average=("scenario", "target"), **most)
    statements.append(compare(text, spread, 0.03, better="lower"))
  return statements


def figure(results: Results):
  """Mean class accuracy by scenario, means over targets."""
  shots = max(results.distinct("shots"))
  means = Results()
  for method in results.distinct("method"):
    where = {"shots": shots} if method in TUNINGS else {}
    for scenario, values in zip(SCENARIOS, _by_scenario(results, method, **where)):
      means.add({method: {ACCURACY: values}}, scenario=scenario)
  figure, (ax,) = plots.panels(1, width=6)
  plots.intervals(ax, means, ACCURACY, by="scenario")
  ax.set_title(f"means over targets; labeled rows per class: {shots}", fontsize=10)
  figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
  return figure


def abstract(config: Config, mesh):
  """One training step of the source model, for a dry run."""
  module = domains.network(config, SCENARIOS[0])
  shape = (40, 1) if config.dataset == "mnist1d" else domains.IMAGE_SHAPE
  dataset = datasets.Dataset(config.dataset, shape, config.num_classes)
  batch = dataset.batch(config.source_batch_size)
  return abstract_step(module, *domains.source_training(config, module), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
