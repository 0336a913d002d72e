"""ShrinkMatch: classes that compete with the top one are removed until it is certain.

Signals of digits carry a mark that half of the rows hide, so that the two classes of a digit stay
at a half each and no usual threshold lets these rows teach anything. Whether shrinking uses them is
seen against lower thresholds, against no threshold, against the same second head without shrinking,
and against the removal of random classes.
"""

import dataclasses
import functools
import sys
from typing import Literal

import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit import semi_supervised as kit
from experiments.kit.sweep import best_of
from experiments.labels.shrinkmatch import methods, pairs
from experiments.labels.shrinkmatch.methods import NOTHING, SHARE, SHRUNK, STRONG, UNIT
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "shrinkmatch"
SEEDS = {"laptop": 10}
LABELS, VIEWS = "labels only", "labels only, strong views"
FIXMATCH, TUNED, EVERY = "FixMatch", "FixMatch, threshold chosen", "all rows, no threshold"
CHEAPEST = "threshold or none, chosen"
FULL, RANDOM = "second head, all classes", "second head, random classes removed"
SHRINK, UNWEIGHTED, ORACLE = "ShrinkMatch", "ShrinkMatch, weights 1", "second head, true labels"


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the network and the training; tuples are of the sets unless said otherwise."""

  datasets: tuple[str, ...] = ("mnist1d", "digits")  # All rows are trained on the first.
  num_marks: tuple[int, ...] = (2, 1)  # Classes of a digit, told apart by a mark; 1 for none.
  hidden_share: float = 0.5  # Share of the rows that hide their mark.
  mark_noise: float = 0.3  # Deviation of the noise of a mark's steps.
  num_shots: tuple[int, ...] = (30, 2)  # Labeled rows of a digit.
  num_unlabeled: tuple[int, ...] = (3000, 1000)  # Unlabeled rows.
  num_validation: int = 200  # Labeled rows that choose settings.
  num_test: tuple[int, ...] = (1500, 577)  # Test rows.
  network: Literal["small", "wide"] = "small"  # Two blocks of convolution, or three wide ones.
  num_steps: int = 1000  # Updates.
  labeled_batch: int = 16  # Labeled rows per update.
  unlabeled_batch: int = 64  # Unlabeled rows per update.
  learning_rates: tuple[float, ...] = (0.03, 0.09)  # To choose from; SGD, falling to a fifth.
  thresholds: tuple[float, ...] = (0.95, 0.8, 0.6)  # Of certainty; the first is the usual one.
  history: int = 32  # Batches whose mean prediction is aligned with the uniform one.
  share_decay: float = 0.99  # Of the running share of certain rows.
  decay: float = 0.99  # Of the average of the parameters.
  num_parts: int = 10  # Parts of the training, in which the use of rows is averaged; even.


PRESETS = {
  "smoke": Config(
    datasets=("mnist1d",), num_marks=(2,), num_shots=(2,), num_unlabeled=(20,), num_validation=10,
    num_test=(20,), num_steps=4, labeled_batch=4, unlabeled_batch=8, learning_rates=(0.03,),
    thresholds=(0.95, 0.6), num_parts=2,
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("cifar100",), num_marks=(1,), num_shots=(4,), num_unlabeled=(44_600,),
    num_validation=5000, num_test=(10_000,), network="wide", num_steps=2**20,
    labeled_batch=64, unlabeled_batch=448, share_decay=0.999, decay=0.999, num_parts=1024,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "hidden_share", "thresholds", "share_decay", "decay"
  sizes.check_sizes(config, shares=shares)
  fields = "datasets", "num_marks", "num_shots", "num_unlabeled", "num_test"
  sizes.check_lengths(**{name: getattr(config, name) for name in fields})
  sizes.check_at_most(len(pairs.MARKS), num_marks=max(config.num_marks))
  for i, name in enumerate(config.datasets):
    dataset = datasets.describe(name)
    if dataset.is_image and config.num_marks[i] > 1:
      raise ValueError(f"num_marks must be 1 for images, got {config.num_marks[i]} for {name}.")
    num_labeled = config.num_shots[i] * dataset.num_classes
    rows = num_labeled + config.num_unlabeled[i] + config.num_validation
    dataset.check_splits(rows, config.num_test[i])
    sizes.check_at_most(num_labeled, labeled_batch=config.labeled_batch)
    sizes.check_at_most(config.num_unlabeled[i], unlabeled_batch=config.unlabeled_batch)
  sizes.check_divides(2, num_parts=config.num_parts)
  sizes.check_divides(config.num_parts, num_steps=config.num_steps)


def rows_of(config: Config, index: int) -> dict[str, tuple[str, dict[str, float]]]:
  """The rows trained on a set: the kind of their program, and its numbers."""

  def row(kind, loss, threshold=config.thresholds[0], certain=1.0):
    return kind, {"loss": loss, "threshold": threshold, "certain": certain}

  rows = {
    LABELS: row(SHARE, NOTHING, certain=0.0),
    FIXMATCH: row(SHARE, NOTHING),
    SHRINK: row(SHARE, SHRUNK),
  }
  if index == 0:
    rows |= {VIEWS: row(STRONG, NOTHING)}
    rows |= {fixmatch_at(config, t): row(SHARE, NOTHING, t) for t in config.thresholds}
    rows |= {
      EVERY: row(SHARE, NOTHING, 0.0),
      FULL: row(SHARE, methods.FULL),
      RANDOM: row(SHARE, methods.RANDOM),
      UNWEIGHTED: row(UNIT, SHRUNK),
      ORACLE: row(UNIT, methods.TRUTH),
    }
  return rows


def fixmatch_at(config: Config, threshold: float) -> str:
  """The name of FixMatch with a threshold."""
  return FIXMATCH if threshold == config.thresholds[0] else f"{FIXMATCH}, threshold {threshold:g}"


def name_of(config: Config, index: int) -> str:
  """What a set is called."""
  return config.datasets[index] + (" in pairs" if config.num_marks[index] > 1 else "")


def run(config: Config, context: Context) -> Results:
  """Trains all rows on the first set, and those of the last claim on the others."""
  results = Results()
  for i, dataset in enumerate(map(datasets.describe, config.datasets)):
    name, rows = name_of(config, i), rows_of(config, i)
    splits = datasets.stack_seeds(functools.partial(pairs.draw, config, i), context.seed_numbers)
    programs = {
      kind: functools.partial(methods.evaluate, config, dataset, config.num_marks[i], kind)
      for kind, _ in rows.values()
    }
    searched = {
      method: (programs[kind], [{"learning_rate": r, **numbers} for r in config.learning_rates])
      for method, (kind, numbers) in rows.items()
    }
    measured = kit.search(context, name, splits, searched)
    if i == 0:
      thresholds = [fixmatch_at(config, threshold) for threshold in config.thresholds]
      measured[TUNED] = best_of(measured, thresholds)
      measured[CHEAPEST] = best_of(measured, (*thresholds, EVERY))
    for method, scores in measured.items():
      used = scores.pop("utilization")
      if method in (LABELS, VIEWS):
        results.add({method: scores}, dataset=name)
        continue
      half = used[:, used.shape[1] // 2 :].mean(axis=1)
      results.add({method: {**scores, "used in the second half": half}}, dataset=name)
      for part in range(config.num_parts):
        step = (part + 1) * config.num_steps // config.num_parts
        results.add({method: {"used rows": used[:, part]}}, dataset=name, step=step)
  return results


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  names = [name_of(config, i) for i in range(len(config.datasets))]

  def of(method, quantity="accuracy", dataset=names[0]):
    return results.select(quantity, method=method, dataset=dataset)

  ours, base, used = of(SHRINK), of(FIXMATCH), "used in the second half"
  requires = (
    *kit.fixmatch_learns(base, of(LABELS), on="the digits", low=0.5, high=0.9, gain=0.02),
    precondition("FixMatch learns from .60 of the rows or less in the second half",
                 of(FIXMATCH, used), at_most=0.6),
    precondition("ShrinkMatch from .85 or more", of(SHRINK, used), at_least=0.85),
    precondition("true labels of uncertain rows add .03", of(ORACLE) - base, at_least=0.03),
    precondition("where FixMatch is uncertain, its top class is the right digit in .60",
                 of(FIXMATCH, "right digit where uncertain"), at_least=0.6),
  )  # fmt: skip

  def above(text, baseline, **options):
    return compare(text, ours, baseline, requires=requires, **options)

  removed = [of(SHRINK, q) for q in ("true class removed", "removed by chance")]
  statements = [
    above("ShrinkMatch recognizes more digits than FixMatch", base, headline=True,
          paper="CIFAR-100, 400 labels: 64.64 against 62.46; STL-10, 40: 85.98 against 70.85"),
    above("than the better of FixMatch with a chosen threshold and consistency on all rows",
          of(CHEAPEST)),
    above("than a second head that learns the top class among all", of(FULL),
          paper="shrinking, not the second head"),
    above("than a second head with as many random classes removed", of(RANDOM)),
    compare("where the top class is wrong, the true one is removed .2 more often than by chance",
            *removed, margin=0.2, requires=requires),
  ]  # fmt: skip
  for name in names[1:]:
    plain = of(FIXMATCH, dataset=name)
    alone, bounds = of(LABELS, dataset=name), {"low": 0.6, "high": 0.95, "gain": 0.02}
    learns = kit.fixmatch_learns(plain, alone, on=name, **bounds)
    text = f"ShrinkMatch is right on more {name} than FixMatch"
    statements.append(compare(text, of(SHRINK, dataset=name), plain, requires=learns))
  return statements


def figure(results: Results):
  """The share of rows that carry a loss, by row of the table; differences to FixMatch."""
  drawing, (left, right) = plots.panels(2, width=5.4, height=5.6)
  first = results.distinct("dataset")[0]
  shown = Results(r for r in results if r.method not in (TUNED, CHEAPEST))
  plots.curves(left, shown, "used rows", x="step", dataset=first)
  plots.legend_below(drawing, left, columns=3)
  plots.above_baseline(right, results, "accuracy", baseline=FIXMATCH)
  return drawing


def abstract(config: Config, mesh):
  """An update of ShrinkMatch with its views on the first set, for a dry run."""
  del mesh
  dataset, num_marks = datasets.describe(config.datasets[0]), config.num_marks[0]
  num_classes = dataset.num_classes * num_marks
  module = methods.network(config, num_classes)
  _, numbers = rows_of(config, 0)[SHRINK]
  setting = {"learning_rate": config.learning_rates[0], **numbers}
  trainer = methods.training(config, module, SHARE, setting)
  batch = functools.partial(pairs.batch, config, 0)
  shared = methods.protocol(config, dataset, num_classes)

  def init(key):
    return module.init(key, np.zeros(batch(1).inputs.shape, np.float32))["params"]

  return kit.abstract_update(trainer, init, batch, shared)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
