"""Weight-aware distillation: unknown classes among the unlabeled rows, and who labels them.

Most unlabeled rows are of no target class: overlaid digits, each between two targets, or digits of
other classes. All students start from the same contrastive encoder, so that a gain is none of its
features; whether student, rounds and margin add anything is seen against the nearest labeled row in
its space, and against other weights.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit import semi_supervised as kit
from experiments.kit.sweep import by_seed, run_seeds
from experiments.labels.wad import problems, students
from experiments.labels.wad.problems import BRIDGES, NATURAL, UNKNOWN
from experiments.labels.wad.students import DISTILLED, FIX
from jaxlab import algorithms
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "wad"
SEEDS = {"laptop": 20}
ONLY, CONFIDENT, FIXMATCH, ORACLE = "labels only", "pseudo labels", "FixMatch", "FixMatch, targets"
WAD, EQUAL, TOP = "WAD", "WAD, equal weights", "WAD, top similarity as weight"
NEAREST, PROBE = "nearest labeled row", "logistic regression on features"
FIXMATCH_ROW = FIX, {"weight": 1.0, "strong": 1}


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the teacher and the students."""

  dataset: str = "digits"  # digits, or an image set of tfds.
  num_pool: int = 1797  # Rows that all parts are drawn from.
  num_targets: int = 5  # Target classes, drawn anew by every seed.
  num_shots: int = 2  # Labeled rows of each.
  num_unlabeled: int = 200  # Unlabeled rows of target classes.
  mismatches: tuple[float, ...] = (0.0, 0.4, 0.8)  # Shares of unknown rows; increasing from 0.
  bridge_classes: int = 5  # Targets that are overlaid; 2 gives bridges of one pair alone.
  num_validation: int = 200  # Labeled rows of target classes that choose settings.
  num_test: int = 460  # Test rows of target classes.
  features: tuple[int, ...] = (16, 32)  # Channels of the blocks of all networks.
  dense: int = 64  # Features of all networks.
  projection: int = 64  # Of the teacher.
  temperature: float = 0.5  # Of its loss.
  teacher_steps: int = 400  # Updates of the teacher.
  teacher_batch: int = 128  # Rows of each, in two views.
  teacher_rate: float = 1e-3  # Adam.
  num_rounds: int = 5  # Rounds of distillation.
  round_steps: int = 120  # Updates of each; the other students do all at once.
  first_fraction: float = 0.1  # Before the first round, of the rows that are given their label.
  labeled_batch: int = 10  # Labeled rows per update.
  unlabeled_batch: int = 64  # Unlabeled rows per update.
  learning_rates: tuple[float, ...] = (5e-4, 1.5e-3)  # To choose from; Adam.
  threshold: float = 0.95  # Of confidence.
  decay: float = 0.99  # Of the average of the parameters.
  probe_strengths: tuple[float, ...] = (0.1, 1.0)  # Of logistic regression, to choose from.


PRESETS = {
  "smoke": Config(
    num_shots=1, num_unlabeled=20, mismatches=(0.0, 0.5), num_validation=10, num_test=20,
    features=(4, 4), dense=8, projection=4, teacher_steps=2, teacher_batch=8, num_rounds=2,
    round_steps=2, labeled_batch=4, unlabeled_batch=8, learning_rates=(5e-4,),
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10", num_pool=50_000, num_targets=2, num_shots=400, num_unlabeled=7000,
    mismatches=(0.0, 0.2, 0.4, 0.6, 0.8), bridge_classes=2, num_validation=1000, num_test=1000,
    features=(64, 128, 256), dense=256, projection=128, teacher_steps=700_000, teacher_batch=256,
    round_steps=1500, labeled_batch=32, unlabeled_batch=32,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "mismatches", "first_fraction", "threshold", "decay"
  sizes.check_sizes(config, shares=shares)
  dataset, levels = datasets.describe(config.dataset), config.mismatches
  if not dataset.is_image:
    raise ValueError(f"dataset must be a set of images, got {config.dataset!r}.")
  if levels[0] != 0 or list(levels) != sorted(set(levels)) or len(levels) < 2 or levels[-1] >= 1:
    raise ValueError(f"mismatches must increase from 0 to below 1, got {levels}.")
  if not 2 <= config.num_targets < dataset.num_classes:
    limits = f"2 and {dataset.num_classes - 1}"
    raise ValueError(f"num_targets must lie between {limits}, got {config.num_targets}.")
  if not 2 <= config.bridge_classes <= config.num_targets:
    limits = f"2 and num_targets={config.num_targets}"
    raise ValueError(f"bridge_classes must lie between {limits}, got {config.bridge_classes}.")
  sizes.check_at_most(dataset.num_rows[0], num_pool=config.num_pool)
  # Classes differ a little in size.
  a_class = 0.98 * config.num_pool / dataset.num_classes
  room = int(a_class * config.num_targets)
  labeled = config.num_shots * config.num_targets
  sizes.check_at_most(room, num_shots=labeled)
  left = room - labeled - config.num_validation - config.num_test
  sizes.check_at_most(left, num_unlabeled=config.num_unlabeled)
  others = int(a_class * (dataset.num_classes - config.num_targets))
  if problems.num_unknown(config, levels[-1]) > others:
    raise ValueError(f"mismatches must leave {others} unknown rows or fewer, got {levels[-1]}.")
  sizes.check_at_most(labeled, labeled_batch=config.labeled_batch)
  sizes.check_at_most(config.num_unlabeled, unlabeled_batch=config.unlabeled_batch)
  sizes.check_at_most(labeled + config.num_unlabeled, teacher_batch=config.teacher_batch)


def rows_of(config: Config, mismatch: float) -> dict[str, tuple[str, dict[str, float]]]:
  """The students of a share of unknown rows: kind of the program, and its numbers."""

  def distilled(weighting):
    return DISTILLED, {"weighting": weighting}

  rows = {FIXMATCH: FIXMATCH_ROW, WAD: distilled(students.MARGIN)}
  if mismatch in (0, config.mismatches[-1]):
    rows[ONLY] = FIX, {"weight": 0.0, "strong": 0}
  if mismatch == config.mismatches[-1]:
    rows |= {
      CONFIDENT: (FIX, {"weight": 1.0, "strong": 0}),
      EQUAL: distilled(students.EQUAL),
      TOP: distilled(students.TOP),
    }
  return rows


def run(config: Config, context: Context) -> Results:
  """Teaches and distills with every share of unknown rows of either kind."""
  results = Results()
  rounds = np.arange(1, config.num_rounds + 1)
  fractions = jax.device_get(
    algorithms.selection_fraction(
      rounds, initial=config.first_fraction, num_rounds=config.num_rounds
    )
  )
  teach, probe = (functools.partial(f, config) for f in (students.teach, students.probe))
  transfer = jax.jit(functools.partial(students.transfer, config))
  programs = {
    kind: functools.partial(students.evaluate, config, tuple(map(float, fractions)), kind)
    for kind in (FIX, DISTILLED)
  }
  last = config.mismatches[-1]
  for problem, level in [*((BRIDGES, m) for m in config.mismatches), (NATURAL, last)]:
    stage, where = f"{problem} {level:g}", {"problem": problem, "mismatch": level}
    draw = functools.partial(problems.draw, config, problem, level)
    splits = datasets.stack_seeds(draw, context.seed_numbers)
    taught = run_seeds(context, f"{stage}/teacher", teach, arguments=splits)
    seen, params = taught["seen"], taught["params"]
    nearest, weights = by_seed(transfer, splits, seen)
    measured = {NEAREST: nearest}

    def search(splits, rows, stage=stage, params=params, seen=seen):
      projections = {name: seen[name]["projections"] for name in ("labeled", "unlabeled")}
      methods = {
        method: (programs[kind], [{"learning_rate": r, **numbers} for r in config.learning_rates])
        for method, (kind, numbers) in rows.items()
      }
      return kit.search(context, stage, (splits, params, projections), methods)

    measured |= search(splits, rows_of(config, level))
    if level == last:
      measured[PROBE] = by_seed(probe, splits, seen)
      measured |= search(_targets_only(splits), {ORACLE: FIXMATCH_ROW})
    results.add(measured, **where)
    if level == 0:  # Without unknown rows both problems are one.
      results.add(measured, problem=NATURAL, mismatch=level)
    if (problem, level) == (BRIDGES, last):
      unknown = splits.unlabeled.labels == UNKNOWN
      results.extras |= {"weights": weights[0], "unknown": unknown[0]}
  return results


def _targets_only(splits):
  """All seeds' splits without the unknown rows."""
  target = splits.unlabeled.labels != UNKNOWN
  parts = (x[target].reshape(len(x), -1, *x.shape[2:]) for x in splits.unlabeled)
  return splits._replace(unlabeled=type(splits.unlabeled)(*parts))


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  last = config.mismatches[-1]

  def of(method, quantity="accuracy", *, level=last, problem=BRIDGES):
    return results.select(quantity, method=method, problem=problem, mismatch=level)

  def drop(method, problem=BRIDGES):
    return of(method, level=0, problem=problem) - of(method, problem=problem)

  def requires(problem):
    clean = of(FIXMATCH, level=0, problem=problem)
    gain = clean - of(ONLY, level=0, problem=problem)
    return (
      precondition("without unknown rows FixMatch is .02 above labels only", gain, at_least=0.02),
      precondition("it is right on .70 or more there", clean, at_least=0.7),
      precondition("and on .97 or less", clean, at_most=0.97),
      precondition(f"it loses .02 with {last:g} of unknown rows", drop(FIXMATCH, problem),
                   at_least=0.02),
      precondition(".3 of the unknown rows pass its threshold",
                   of(FIXMATCH, "unknown rows that pass", problem=problem), at_least=0.3),
      precondition(".8 of the target rows get the right pseudo label",
                   of(NEAREST, "right pseudo labels", problem=problem), at_least=0.8),
    )  # fmt: skip

  able = requires(BRIDGES)
  text = "weight-aware distillation is right more often than FixMatch with the same start"
  return [
    compare(f"{text}, with {last:g} of unknown rows", of(WAD), of(FIXMATCH), headline=True,
            requires=able, paper="ahead of five methods at every share of unknown rows"),
    compare("it loses less from no unknown rows to the most", drop(WAD), drop(FIXMATCH),
            better="lower", requires=able),
    compare("it is right more often than with equal weights", of(WAD), of(EQUAL), requires=able),
    compare("unknown rows have .15 less of the weight than of the rows", of(NEAREST, "invasion"),
            of(NEAREST, "share of unknown rows"), better="lower", margin=0.15, requires=able),
    compare("the weight finds targets better than the confidence of a student of labels only",
            of(NEAREST, "AUROC of the weight"), of(ONLY, "AUROC of the confidence"), margin=0.05,
            requires=able),
    compare(f"{text}, with other digits as unknown rows", of(WAD, problem=NATURAL),
            of(FIXMATCH, problem=NATURAL), requires=requires(NATURAL)),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy by share of unknown rows, for either kind of them, and the weights."""
  drawing, axes = plots.panels(3)
  for ax, problem in zip(axes, (BRIDGES, NATURAL)):
    plots.curves(ax, results, "accuracy", x="mismatch", problem=problem)
    ax.set_title(problem)
  axes[1].legend(fontsize=6)
  if "weights" in results.extras:
    weights, unknown = (np.asarray(results.extras[name]) for name in ("weights", "unknown"))
    plots.histograms(axes[2], {"target": weights[~unknown], "unknown": weights[unknown]})
    axes[2].set(xlabel="weight", title=f"weights, {BRIDGES}")
    axes[2].legend(fontsize=6)
  return drawing


def abstract(config: Config, mesh):
  """An update of a distilled student with its views, for a dry run."""
  del mesh
  dataset = datasets.describe(config.dataset)
  num_rows = config.num_unlabeled + problems.num_unknown(config, config.mismatches[-1])
  setting = {"learning_rate": config.learning_rates[0]}
  trainer = students.student(config, DISTILLED, num_rows, setting)

  def init(key):
    return students.first_params(config, key, {}, np.zeros((1, *dataset.shape), np.float32))

  shared = students.protocol(config, DISTILLED, config.round_steps, setting)
  return kit.abstract_update(trainer, init, dataset.batch, shared)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
