"""Less or more from the teacher: where it is right, and where the label is.

Labels of the first half of the classes are wrong, and so is the teacher on the second half, always
in the same way: no share between the two is right for all rows, and no average cures either. A
ratio of each row is learned from the triangle of student, teacher and label by what a step does to
a few clean rows. Students of a fixed ratio learn from these rows as well, and so do rules that read
the ratio off the teacher; a plain table of ratios says whether the geometry is needed.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import numpy as np
import optax

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import by_seed, choose, each_seed
from experiments.labels.trilateral_kd import given, learned, problems
from experiments.labels.trilateral_kd.given import BEST, FIXED, LOOKUP, ORACLE
from experiments.labels.trilateral_kd.learned import FROZEN, TABLE, TGEO
from jaxlab.experiment import Claim, Context, Results, compare, precondition, t_interval

PAPER = "trilateral_kd"
SEEDS = {"laptop": 10}
TAUGHT = "the teacher"


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, teacher and student, and the settings; tuples of sizes are of the sets."""

  datasets: tuple[str, ...] = ("mnist1d", "digits")  # The first one carries the headline.
  num_train: tuple[int, ...] = (4000, 900)  # Rows on which the label or the teacher errs.
  num_clean: tuple[int, ...] = (200, 60)  # Rows with true labels to train the ratio on.
  num_validation: tuple[int, ...] = (200, 200)  # Others that choose settings.
  num_test: tuple[int, ...] = (2000, 637)  # And others to test on.
  error_rate: float = 0.9  # Of the labels of some classes, and of the teacher on the others.
  network: Literal["mlp", "conv"] = "mlp"  # conv: the last width is that of a dense layer.
  teacher: tuple[int, ...] = (256, 256)  # Its widths.
  teacher_steps: int = 3000  # Its updates.
  teacher_rate: float = 1e-3  # Of its AdamW, falling to 0 as a cosine.
  student: tuple[int, ...] = (32,)  # Its widths.
  num_steps: int = 1500  # Updates of a student.
  batch_size: int = 128  # Rows per update.
  learning_rates: tuple[float, ...] = (1e-3, 3e-3)  # Of the students' Adam, to choose from.
  temperatures: tuple[float, ...] = (1.5, 4.0)  # Of distillation, to choose from.
  virtual_rates: tuple[float, ...] = (0.1, 1.0)  # Of the virtual step, to choose from.
  clean_weights: tuple[float, ...] = (1.0, 4.0)  # Of a clean row, where students learn from them.
  ratio_rate: float = 1e-2  # Of the ratio's Adam.
  ratios: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # Fixed ones.
  num_evaluations: int = 15  # Of the learned ratios; divides num_steps.


PRESETS = {
  "smoke": Config(
    datasets=("digits",), num_train=(40,), num_clean=(10,), num_validation=(10,), num_test=(20,),
    teacher=(8,), teacher_steps=4, student=(8,), num_steps=4, batch_size=10, learning_rates=(1e-3,),
    temperatures=(1.5,), virtual_rates=(0.1,), clean_weights=(1.0,), ratios=(0.0, 1.0),
    num_evaluations=2,
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("cifar100",), num_train=(44_000,), num_clean=(1000,), num_validation=(5000,),
    num_test=(10_000,), network="conv", teacher=(64, 128, 256, 512), teacher_steps=80_000,
    student=(16, 32, 64, 128), num_steps=80_000, num_evaluations=20,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("error_rate", "ratios"))
  names = "datasets", "num_train", "num_clean", "num_validation", "num_test"
  sizes.check_lengths(**{name: getattr(config, name) for name in names})
  sizes.check_lengths(virtual_rates=config.virtual_rates, clean_weights=config.clean_weights)
  sizes.check_divides(config.num_evaluations, num_steps=config.num_steps)
  sizes.check_at_most(min(config.num_train), batch_size=config.batch_size)
  for name, rows in zip(config.datasets, rows_of(config)):
    datasets.describe(name).check_splits(*rows)


def rows_of(config: Config) -> list[tuple[int, ...]]:
  """Training, clean, validation and test rows of every set."""
  counts = config.num_train, config.num_clean, config.num_validation, config.num_test
  return list(zip(*counts))


def run(config: Config, context: Context) -> Results:
  """Makes the teacher, and trains students with given and with learned ratios, on every set."""
  results = Results()
  for name, rows in zip(config.datasets, rows_of(config)):
    dataset = datasets.describe(name)
    draw = functools.partial(problems.draw_problem, dataset, *rows, error_rate=config.error_rate)
    problem = datasets.stack_seeds(lambda seed, draw=draw: draw(seed=seed), context.seed_numbers)
    stage = functools.partial(each_seed, context)
    taught = stage(f"{name}/teacher", _program(problems.teach, config, dataset), problem)
    inputs = problem, taught.pop("logits")
    results.add({TAUGHT: taught}, dataset=name)

    arms = by_seed(functools.partial(given.draw_arms, config), *inputs)
    together = jax.tree.map(lambda *x: np.stack(x, axis=1), *arms.values())
    program = _program(given.learn_given, config, dataset)
    scores = stage(f"{name}/given ratios", program, *inputs, together)
    table, fixed = given.compare(config, scores, list(arms))
    results.add(table, dataset=name)
    for (ratio, rows), chosen in fixed.items():
      results.add({FIXED: chosen}, dataset=name, ratio=ratio, rows=rows)

    for method, seen in learned.INPUTS.items():
      grid = learned.grid(config, method)
      options = {q: np.array([s[q] for s in grid], np.float32) for q in grid[0]}
      options = {q: np.repeat(x[None], context.seeds, axis=0) for q, x in options.items()}
      program = _program(learned.learn_ratios, config, dataset, seen)
      scores = stage(f"{name}/{method}", program, *inputs, options)
      scores |= scores.pop("ratios")
      chosen = choose(scores, grid, select="validation")
      curves = {group: chosen.pop(group) for group in problems.GROUPS}
      results.add({method: chosen}, dataset=name)
      for i in range(config.num_evaluations):
        where = {"dataset": name, "step": (i + 1) * config.num_steps // config.num_evaluations}
        for group, curve in curves.items():
          results.add({method: {"ratio": curve[:, i]}}, rows=group, **where)
  return results


_program = functools.cache(functools.partial)  # One object, and so one compiled program.


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method: str, quantity: str = "accuracy", dataset: str = config.datasets[0]):
    return results.select(quantity, method=method, dataset=dataset)

  def able(dataset: str, gain: float):
    about = functools.partial(of, TAUGHT, dataset=dataset)
    room = of(ORACLE, dataset=dataset) - of(BEST, dataset=dataset)
    bounds = (
      (f"the oracle is {100 * gain:g} points above the best fixed ratio", room, gain, None),
      ("the teacher fits 95% of its targets", about("fits its targets"), 0.95, None),
      ("the teacher is right on 45 to 65% of the rows", about("right"), 0.45, 0.65),
      ("labels are right on 45 to 65% of them", about("labels right"), 0.45, 0.65),
      ("both are wrong on 5% at most", about("both wrong"), None, 0.05),
    )
    return [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]

  text = "a student of clean labels is right on 45 to 85%"
  clean = precondition(text, of(given.CLEAN_LABELS), at_least=0.45, at_most=0.85)
  ours = of(TGEO)
  claim = functools.partial(compare, requires=[*able(config.datasets[0], 0.08), clean])
  statements = [
    claim("learned ratios are 3 points above the best fixed one, whose student also learns from "
          "the clean rows", ours, of(BEST), margin=0.03, headline=True,
          paper="above all fixed and re-weighted ratios"),
    claim("and above the teacher's accuracy for the class it predicts, on the same clean rows",
          ours, of(LOOKUP)),
    claim("and 3 points above the same network without training", ours, of(FROZEN), margin=0.03),
    claim("ratios tell whether teacher or label is right .2 better than the teacher's doubt: AUROC",
          of(TGEO, "AUROC"), of(TAUGHT, "AUROC"), margin=0.2),
    claim("geometry is worth more than a learned table of prediction and label", ours, of(TABLE)),
  ]  # fmt: skip
  for name in config.datasets[1:2]:
    text = f"learned ratios are above the best fixed one on {name}"
    sides = of(TGEO, dataset=name), of(BEST, dataset=name)
    statements.append(compare(text, *sides, requires=able(name, 0.03)))
  return statements


def figure(results: Results):
  """Accuracy against the fixed ratio, beside other methods; learned ratios against the step."""
  drawing, (left, right) = plots.panels(2, width=5.5, height=4.0)
  name = results.distinct("dataset")[0]
  plots.curves(left, results, "accuracy", x="ratio", color="rows", method=FIXED, dataset=name)
  for i, method in enumerate((TGEO, LOOKUP, ORACLE)):
    values = results.select("accuracy", method=method, dataset=name)
    low, high = t_interval(values)
    left.axhline(values.mean(), color=f"C{i + 2}", label=method)
    if np.isfinite([low, high]).all():
      left.axhspan(low, high, color=f"C{i + 2}", alpha=0.15, linewidth=0)
  left.set(title=name, xlabel="fixed ratio (the teacher's share)")
  left.legend(fontsize=7)
  plots.curves(right, results, "ratio", x="step", color="rows", method=TGEO, dataset=name)
  right.set(title=f"{TGEO} on {name}", ylabel="learned ratio", ylim=(0, 1))
  right.legend(fontsize=7)
  return drawing


def abstract(config: Config, mesh):
  """An update of a student with given ratios, for a dry run."""
  dataset = datasets.describe(config.datasets[0])
  module, num = problems.network(config, dataset, config.student), config.batch_size
  floats = jax.ShapeDtypeStruct((num,), np.float32)
  inputs, labels = dataset.batch(num)
  logits = jax.ShapeDtypeStruct((num, dataset.num_classes), np.float32)
  batch = inputs, logits, given.Arm(labels, floats, floats)
  loss = given.ratio_loss(module, config.temperatures[0])
  return abstract_step(module, loss, optax.adam(config.learning_rates[0]), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
