"""LOOK: pre-training by the votes of neighbors leaves what other tasks need.

Pre-training sees two coarse classes, each a random half of ten. Cross-entropy pulls a coarse class
into one point of narrow features, and a linear probe then hardly tells its five parts apart. The
leave-one-out loss of a vote of k neighbors asks only that near rows share a label. Baselines stop
cross-entropy early, train it on a projection, smooth its labels, or use no labels at all.
"""

import dataclasses
import functools
import sys

import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import by_seed, each_seed
from experiments.kit.train import adamw_cosine, first_reaching
from experiments.labels.look import pretraining, probes
from experiments.labels.look.data import draw_problem
from experiments.labels.look.pretraining import (
  BOTH,
  CE,
  LOOK,
  PROJECTED,
  SIMCLR,
  SMOOTHED,
  SUPCON,
  TEN,
  Row,
)
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "look"
SEEDS = {"laptop": 20}
RANDOM, EARLY = "random network", f"{CE}, stopped early"
BASELINES = PROJECTED, SMOOTHED, SIMCLR, BOTH
_POINTS = 6  # Of a curve.


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the network, and the losses; tuples of sizes are of the sets."""

  datasets: tuple[str, ...] = ("digits", "mnist1d")  # The first one has all rows.
  num_train: tuple[int, ...] = (1000, 4000)  # Rows for pre-training.
  num_validation: tuple[int, ...] = (200, 200)  # Others that choose the learning rate.
  num_probe: tuple[int, ...] = (200, 200)  # Rows of probes, equally many of each class.
  num_test: tuple[int, ...] = (397, 1500)  # And others to test on.
  num_steps: tuple[int, ...] = (500, 1000)  # Updates; half of them with two views.
  channels: tuple[int, ...] = (16, 32)  # Of the convolutions.
  width: int = 16  # Of the features.
  wide: int = 64  # Likewise, of the rows that show where the effect ends; 0 leaves them out.
  projection: int = 32  # Width of the projection.
  batch_size: int = 128  # Rows per update.
  max_shift: int = 1  # Places by which inputs are moved.
  learning_rates: tuple[float, ...] = (2e-3, 6e-3)  # AdamW with a cosine to 0, to choose from.
  weight_decay: float = 0.1  # Of AdamW.
  temperature: float = 0.1  # Of all similarities.
  label_smoothing: float = 0.1  # Of the row that smooths labels.
  num_neighbors: tuple[int, ...] = (5, 10, 20, 127)  # Votes of a row.
  headline_neighbors: int = 10  # One of these.
  baselines: tuple[str, ...] = BASELINES  # Further rows of the first set.
  num_evaluations: int = 25  # Along a training; divides its updates.
  penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)  # Of probes, by cross-validation.


PRESETS = {
  "smoke": Config(
    datasets=("digits",), num_train=(30,), num_validation=(10,), num_probe=(10,), num_test=(70,),
    num_steps=(4,), channels=(4,), width=4, wide=0, projection=4, batch_size=10,
    learning_rates=(2e-3,), num_neighbors=(2,), headline_neighbors=2, baselines=(),
    num_evaluations=2, penalties=(1.0,),
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("cifar10",), num_train=(44_000,), num_validation=(1000,), num_probe=(1000,),
    num_test=(10_000,), num_steps=(80_000,), channels=(64, 128, 256), width=64, wide=512,
    projection=128, batch_size=512, max_shift=4, num_neighbors=(20, 80, 255, 511),
    headline_neighbors=80,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, zero=("wide", "max_shift"), empty=("baselines",))
  names = "num_train", "num_validation", "num_probe", "num_test", "num_steps", "datasets"
  sizes.check_lengths(**{name: getattr(config, name) for name in names})
  sizes.check_known(BASELINES, baselines=config.baselines)
  known = [*map(str, config.num_neighbors)]
  sizes.check_known(known, headline_neighbors=[str(config.headline_neighbors)])
  sizes.check_at_most(min(config.num_train), batch_size=config.batch_size)
  for name, rows, num_steps in zip(config.datasets, rows_of(config), config.num_steps):
    sizes.check_divides(config.num_evaluations, num_steps=num_steps)
    dataset = datasets.describe(name)
    sizes.check_divides(dataset.num_classes, num_probe=rows[2])
    dataset.check_splits(*rows)


def rows_of(config: Config) -> list[tuple[int, ...]]:
  """Rows of pre-training, validation, probes and tests, of every set."""
  counts = config.num_train, config.num_validation, config.num_probe, config.num_test
  return list(zip(*counts))


def ours(config: Config, num_neighbors: int | None = None) -> str:
  """The name of LOOK's row."""
  return f"{LOOK}, k = {num_neighbors or config.headline_neighbors}"


def table(config: Config, name: str) -> dict[str, Row]:
  """The rows of a set that are trained."""
  k, width = config.headline_neighbors, config.width
  rows = {CE: Row(CE, k, width, followed=True)}
  if name != config.datasets[0]:
    return rows | {ours(config): Row(LOOK, k, width), TEN: Row(TEN, k, width)}
  rows |= {loss: Row(loss, k, width) for loss in (SUPCON, *config.baselines, TEN)}
  rows |= {ours(config, n): Row(LOOK, n, width, followed=n == k) for n in config.num_neighbors}
  if config.wide:
    wide = {CE: CE, ours(config): LOOK}
    rows |= {f"{m}, wide": Row(loss, k, config.wide, followed=True) for m, loss in wide.items()}
  return rows


def run(config: Config, context: Context) -> Results:
  """Pre-trains in all ways, and probes the features."""
  results = Results()
  for name, rows, num_steps in zip(config.datasets, rows_of(config), config.num_steps):
    dataset = datasets.describe(name)
    draw = functools.partial(draw_problem, dataset, *rows)
    problem = datasets.stack_seeds(lambda seed, draw=draw: draw(seed=seed), context.seed_numbers)
    labels, found = (problem.probe.labels, problem.test.labels), {}
    probe = functools.partial(probes.probe_accuracy, config.penalties)
    for method, row in table(config, name).items():
      program = functools.partial(pretraining.pretrain, config, dataset, row, num_steps)
      of = found[method] = each_seed(context, f"{name}/{method}", program, problem)
      scores = {quantity: of[quantity][:, -1] for quantity in _QUANTITIES}
      scores["probe"] = by_seed(probe, of["features"][:, -1], *labels)
      scores["chosen/learning rate"] = of["rate"]
      if row.followed:
        scores["spread at the start"] = of["spread"][:, 0]
      if row.followed and name == config.datasets[0]:
        places = np.linspace(0, config.num_evaluations, _POINTS).round().astype(int)
        for place in np.unique(places):
          where = {"dataset": name, "step": int(place) * num_steps // config.num_evaluations}
          along = by_seed(probe, of["features"][:, place], *labels)
          results.add({method: {"probe along the way": along}}, **where)
      results.add({method: scores}, dataset=name)
    if name == config.datasets[0]:
      of, enough = found[CE], found[ours(config)]["upstream validation"][:, -1]
      stops = by_seed(first_reaching, of["upstream validation"][:, 1:], enough) + 1
      for method, place in ((RANDOM, 0 * stops), (EARLY, stops)):
        at = {q: of[q][np.arange(len(place)), place] for q in (*_QUANTITIES, "features")}
        at["probe"] = by_seed(probe, at.pop("features"), *labels)
        results.add({method: at}, dataset=name)
  return results


_QUANTITIES = "upstream", "upstream validation", "spread", "without a positive"


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method: str, quantity: str = "probe", dataset: str = config.datasets[0]):
    return results.select(quantity, method=method, dataset=dataset)

  def able(dataset: str, compared, upstream: float, fine: float):
    about = functools.partial(of, dataset=dataset)
    shrinks = about(CE, "spread") / about(TEN, "spread")
    highest = np.max([about(method).mean() for method in compared])
    bounds = (
      ("cross-entropy's probe is 8 points below that of ten labels", about(TEN) - about(CE), 0.08,
       None),
      ("its features have half the spread of those with ten labels", shrinks, None, 0.5),
      (f"it is right on {100 * upstream:g}% upstream", about(CE, "upstream"), upstream, None),
      (f"the probe of ten labels is right on {100 * fine:g}%", about(TEN), fine, None),
      ("no compared probe is above 97%", highest, None, 0.97),
    )  # fmt: skip
    return [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]

  look, main = ours(config), of(ours(config))
  requires = able(config.datasets[0], (CE, look, RANDOM, EARLY, SUPCON), 0.95, 0.9)
  claim = functools.partial(compare, requires=requires)
  statements = [
    claim("a linear probe of ten classes is 2 points better after LOOK than after cross-entropy",
          main, of(CE), margin=0.02, headline=True,
          paper="best average transfer among supervised and self-supervised pre-training"),
    claim("and 2 points better than of a random network", main, of(RANDOM), margin=0.02),
    claim("and better than after cross-entropy that stops at LOOK's upstream accuracy", main,
          of(EARLY)),
    claim("and than after supervised contrastive learning", main, of(SUPCON)),
    claim("upstream LOOK is at most 3 points worse than cross-entropy", of(look, "upstream"),
          of(CE, "upstream"), margin=-0.03),
  ]  # fmt: skip
  for name in config.datasets[1:2]:
    sides = of(look, dataset=name), of(CE, dataset=name)
    text = f"the probe is better after LOOK than after cross-entropy on {name}"
    statements.append(compare(text, *sides, requires=able(name, (CE, look), 0.85, 0.65)))
  return statements


def figure(results: Results):
  """Probes against the spread, LOOK joined by k; and along the training, by width."""
  drawing, (left, right) = plots.panels(2, width=5.5, height=4.5)
  name = results.distinct("dataset")[0]
  joined = []
  for i, method in enumerate(results.distinct("method", dataset=name, quantity="probe")):
    x, y = (results.select(q, method=method, dataset=name) for q in ("spread", "probe"))
    left.scatter(x, y, s=8, color=f"C{i % 10}", marker="ox^"[i // 10], label=method)
    if method.startswith(LOOK) and not method.endswith("wide"):
      joined.append((x.mean(), y.mean()))
  left.plot(*np.transpose(joined), color="black", linewidth=1)
  left.set(title=name, xlabel="spread within a coarse class", ylabel="probe of ten classes")
  plots.legend_below(drawing, left, columns=6)
  plots.curves(right, results, "probe along the way", x="step", dataset=name)
  right.set(ylabel="probe of ten classes")
  right.legend(fontsize=7)
  return drawing


def abstract(config: Config, mesh):
  """An update of LOOK, for a dry run."""
  dataset = datasets.describe(config.datasets[0])
  row = table(config, config.datasets[0])[ours(config)]
  module = pretraining.network(config, dataset, row)
  loss = pretraining.row_loss(config, module, row)
  rate, decay = config.learning_rates[0], config.weight_decay
  optimizer = adamw_cosine(rate, config.num_steps[0], weight_decay=decay)
  return abstract_step(module, loss, optimizer, dataset.batch(config.batch_size), mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
