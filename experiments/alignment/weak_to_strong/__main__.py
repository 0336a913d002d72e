"""Weak-to-strong deception: does a conflict make a student err where its teacher cannot see?

A weak teacher labels pairs of digits, and a student that knows more learns from the labels while
another objective pulls against them. Errors gather where the teacher knows nothing also because
labels near one half resist no pull. The deception score is therefore compared with that of errors
at random of the same confidence, and with a conflict that acts on random pairs.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np
import optax

from experiments import catalogue
from experiments.alignment.weak_to_strong import students
from experiments.alignment.weak_to_strong.enrichment import MEASURES
from experiments.alignment.weak_to_strong.students import (
  ARMS,
  BOOTSTRAPPED,
  CEILING,
  EXPLICIT,
  IMPLICIT,
  NONE,
  RANDOM,
  RESEED,
  UNSURE,
  Arm,
  Rows,
)
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import stack_seeds
from experiments.kit.sweep import grid
from jaxlab import metrics, models
from jaxlab.data import ImagePairs
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "weak_to_strong"
SEEDS = {"laptop": 12}
SHARE = "share that the strong model alone knows"
SCORE, BASE, MATCHED = "conflict errors", "right without conflict", "right, matched confidence"
GAP = "gap recovered"
PIXELS = "pixels"
TEACHER = "weak teacher"
_DRAWN = EXPLICIT, RANDOM, UNSURE, IMPLICIT  # In the picture.


@dataclasses.dataclass(frozen=True)
class Config:
  """The pairs, the teacher and the students."""

  num_pairs: int = 4000  # For the teacher, for a student, and to test on.
  num_validation: int = 1000  # Pairs with weak labels, to choose rate and epochs on.
  batch_size: int = 32  # Pairs per update.
  teacher_rate: float = 1e-2  # Of Adam, for as many epochs as the longest student.
  trunks: tuple[int, ...] = (6, 10, 16, 64)  # Widths of what students know; the last is strongest.
  compared_trunk: int = 10  # The weaker one of a claim, one of these.
  middle_trunk: int = 16  # Whose student labels for others when bootstrapping, one of these.
  trunk_steps: int = 1000  # Updates of a trunk.
  trunk_batch: int = 64  # Labeled images per update of a trunk.
  trunk_learning_rate: float = 3e-3  # Of Adam.
  pixel_width: int = 64  # Hidden units of the student without a trunk.
  epochs: tuple[int, ...] = (2, 4, 8)  # Of students, to choose from without conflict.
  learning_rates: tuple[float, ...] = (3e-3, 1e-2)  # Of Adam, likewise.
  conflict_weight: float = 0.5  # Of all conflicts.
  thresholds: tuple[float, ...] = (0.75, 0.65, 0.85)  # From which on a model knows; the first.

  def __post_init__(self):
    for name in ("compared_trunk", "middle_trunk"):
      if getattr(self, name) not in self.trunks:
        raise ValueError(f"{name} must be one of trunks, {self.trunks}, got {getattr(self, name)}.")


PRESETS = {
  "smoke": Config(
    num_pairs=32,
    num_validation=16,
    batch_size=16,
    trunks=(2, 4),
    compared_trunk=2,
    middle_trunk=2,
    trunk_steps=4,
    trunk_batch=16,
    pixel_width=4,
    epochs=(1, 2),
    learning_rates=(1e-2,),
    thresholds=(0.5,),
  ),
  "laptop": Config(),
  "paper": Config(
    trunks=(16, 64, 256, 1024),
    compared_trunk=16,
    middle_trunk=64,
    pixel_width=1024,
  ),
}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("thresholds",))
  sizes.check_at_most(config.num_pairs, batch_size=config.batch_size)
  sizes.check_at_most(599, trunk_batch=config.trunk_batch)


def run(config: Config, context: Context) -> Results:
  """Trains the students of all trunks; that of the middle one first, which labels for others."""
  results = Results()
  tasks = stack_seeds(functools.partial(students.draw_task, config), context.seed_numbers)
  fit_teacher = functools.partial(students.fit_teacher, config)
  teacher = grid(context, TEACHER, fit_teacher, tasks, [{}])
  teacher = {name: values[:, 0] for name, values in teacher.items()}
  labels = np.zeros((context.seeds, config.num_pairs), np.float32)
  for width in sorted((*config.trunks, 0), key=lambda width: width != config.middle_trunk):
    fit = functools.partial(students.measure_students, config, width=width)
    name = f"trunk {width}" if width else PIXELS
    measured = grid(context, name, fit, (tasks, teacher, labels), [{}])
    measured = {name: values[:, 0] for name, values in measured.items()}
    measured["weak accuracy"] = np.mean(teacher["test"] > 0.5, axis=1)
    add(config, results, measured, width or PIXELS)
    if width == config.middle_trunk:
      labels = measured["labels"]
  return results


def add(config: Config, results: Results, measured, trunk: int | str) -> None:
  """Adds what was measured of the students of a trunk."""
  own = {f"chosen {name}": measured[f"chosen {name}"] for name in ("epochs", "learning rate")}
  accuracy = dict(zip(ARMS, measured["accuracy"].T))
  weak = measured["weak accuracy"]
  recovered = metrics.gap_closed(accuracy[NONE], weak, accuracy[CEILING])
  results.add({NONE: own | {GAP: recovered}, TEACHER: {"accuracy": weak}}, trunk=trunk)
  for i, (arm, (kind, baseline)) in enumerate(ARMS.items()):
    if kind.bootstrapped and trunk == config.middle_trunk:
      continue
    results.add({arm: {"accuracy": accuracy[arm]}}, trunk=trunk)
    if arm == baseline:
      continue
    for j, threshold in enumerate(config.thresholds):
      where = {"trunk": trunk, "threshold": threshold}
      found = {name: measured[name][:, j, i] for name in MEASURES}
      for name, of in (("score", SCORE), ("base share", BASE), ("matched share", MATCHED)):
        results.add({arm: {SHARE: found.pop(name)}}, **where, of=of)
      results.add({arm: found}, **where)


def by_roles(values: np.ndarray) -> np.ndarray:
  """Means over the seeds whose thirds of the images have the same roles, `[6]`.

  Their pairs are of the same images. Where there are fewer seeds, or the roles are not equally
  frequent, the values of the seeds.
  """
  num = students.NUM_ROLES
  return values.reshape(-1, num).mean(0) if len(values) % num == 0 else values


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  strongest = config.trunks[-1]

  def at(quantity, arm=EXPLICIT, trunk=strongest, **where):
    where = {"threshold": config.thresholds[0], **where}
    return by_roles(results.select(quantity, method=arm, trunk=trunk, **where))

  def plain(quantity, arm=NONE):
    return by_roles(results.select(quantity, method=arm, trunk=strongest))

  def aimed(arm=EXPLICIT, trunk=strongest):
    return at(SHARE, arm, trunk, of=SCORE) - at(SHARE, arm, trunk, of=BASE)

  weak, ceiling, recovered = plain("accuracy", TEACHER), plain("accuracy", CEILING), plain(GAP)
  number = results.select(
    "conflict errors", method=EXPLICIT, trunk=strongest, threshold=config.thresholds[0]
  )
  tax, random_tax = at("conflict tax"), at("conflict tax", RANDOM)
  base = at(SHARE, of=BASE)
  able = (
    precondition("the teacher's accuracy is .60 or more", weak, at_least=0.6),
    precondition("and .80 or less", weak, at_most=0.8),
    precondition("that of true labels is .90 or more", ceiling, at_least=0.9),
    precondition("and .12 above the teacher's", ceiling - weak, at_least=0.12),
  )
  pulled = (
    *able,
    precondition("weak labels recover .15 of the gap", recovered, at_least=0.15),
    precondition("the conflict costs 3 points of accuracy", tax, at_least=0.03),
    precondition("it makes 150 errors or more in every seed", number.min(), at_least=150),
    precondition("of right pairs the strong model alone knows 20%", base, at_least=0.2),
    precondition("to 60%", base, at_most=0.6),
    precondition(
      "another seed costs 2 points of accuracy at most",
      abs(at("conflict tax", RESEED).mean()), at_most=0.02,
    ),
  )  # fmt: skip
  # Without the second, the measure cannot tell a conflict that aims from one that does not.
  aimed_at = at("matched enrichment", UNSURE) - at("matched enrichment", RANDOM)
  comparable = (
    precondition(
      "random conflict costs as much accuracy, to 5 points",
      abs(np.mean(tax - random_tax)), at_most=0.05,
    ),
    precondition("aimed at unsure labels, it has a ratio .05 higher", aimed_at, at_least=0.05),
  )  # fmt: skip
  return [
    compare(
      "explicit conflict, strongest student: the deception score is 10% above that of errors at "
      "random of the same confidence",
      at("matched enrichment"), 1.0, margin=0.1, headline=True, requires=pulled,
      paper="scores of .3 to .7, without what random errors would give",
    ),
    compare(
      "explicit conflict has a ratio .1 above that of a conflict on random pairs",
      at("matched enrichment"), at("matched enrichment", RANDOM), margin=0.1,
      requires=(*pulled, *comparable),
    ),
    compare(
      "of pairs that the teacher does not know, those that the strong model knows turn wrong 2 "
      "points more often than others of the same confidence",
      at("excess of the error rate"), 0.0, margin=0.02, requires=pulled,
    ),
    compare(
      "without conflict, weak labels recover .1 of the gap between teacher and true labels",
      recovered, 0.0, margin=0.1, requires=able,
    ),
    compare(
      "the score less its base share is .05 higher for the strongest student than for trunk "
      f"{config.compared_trunk}",
      aimed(), aimed(trunk=config.compared_trunk), margin=0.05, requires=pulled,
      paper="scores grow with the gap between the models",
    ),
    compare(
      "labels by way of a middle student lower the score less its base share",
      aimed(BOOTSTRAPPED), aimed(), better="lower", requires=pulled,
      paper="helps a little",
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Which share of errors, and of pairs that they can be compared with, the teacher cannot see."""
  shown = Results(record for record in results if record.method in _DRAWN)
  trunks = shown.distinct("trunk")
  threshold = shown.distinct("threshold")[0]
  trunks = sorted(trunks, key=lambda trunk: (trunk == PIXELS, trunk != PIXELS and trunk))
  figure, axes = plots.panels(len(trunks), width=3.2, height=4.2)
  for ax, trunk in zip(axes, trunks):
    where = {"trunk": trunk, "threshold": threshold}
    plots.intervals(ax, shown, SHARE, by="method", color="of", **where)
    ax.set(title=trunk if trunk == PIXELS else f"trunk of {trunk}", ylim=(0, 1))
    ax.label_outer()
  axes[0].legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """One update of a student of the pixels under conflict, for a dry run."""
  module = models.MLP(1, (config.pixel_width,))
  size = config.batch_size
  images, numbers = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((size, 64), (size,)))
  rows = Rows(images, images, numbers, numbers, ImagePairs(images, images, numbers))
  loss = students.ranking_loss(module, Arm(explicit=1.0), config.conflict_weight)
  return abstract_step(module, loss, optax.adam(1e-2), (rows, numbers), mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
