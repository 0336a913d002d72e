"""Can a second model predict the error of the first, and see what a variance does not?

A variance asks how far a model could still move, and not whether it can be right. A model of its
errors on points that it has not seen learns where it is wrong, whatever the reason. It is compared
with variances on a regression whose model cannot be right, on shifted digits, in a search for a
maximum, and on tables whose truth is known.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.bayes.deup import regression, search, shift
from experiments.bayes.deup.regression import INTERPOLATING, MISSPECIFIED
from experiments.kit import datasets, epistemic, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.epistemic import DEUP, ENSEMBLE, GP, SPEARMAN
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "deup"
SEEDS = {"laptop": 20}
REGRESSION, IMAGES, SEARCH = "regression", "images", "search"
ERROR, BEST = "RMSE to the excess", "best value"
PROBLEM = "the problem"


@dataclasses.dataclass(frozen=True)
class Config:
  """The regression, the images, the search, and the tables."""

  num_points: int = 120  # Of a regression.
  noise: float = 0.1  # Standard deviation of its targets.
  lengthscales: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)  # Of a GP of errors, to choose from.
  outputscales: tuple[float, ...] = (0.05, 0.2, 1.0)  # Its variances, to choose from.
  noises: tuple[float, ...] = (0.005, 0.02, 0.1, 0.5)  # Variances of its noise, to choose from.
  num_neighbors: int = 16  # Errors that the nearest-neighbor row averages.
  few_seeds: int = 8  # Seeds of images and tables.
  dataset: str = "digits"  # Of the images; or cifar10.
  num_train: int = 1000  # Training images.
  num_test: int = 797  # Test images.
  max_angle: float = 30.0  # By which these are turned, in degrees.
  pixel_noise: float = 0.2  # Standard deviation of their noise.
  widths: tuple[int, ...] = (64,)  # Of the classifier, and of the network of its errors.
  dropout: float = 0.1  # Share of the hidden units that is dropped.
  num_passes: int = 10  # With dropout.
  num_members: int = 5  # Of an ensemble.
  num_steps: int = 1500  # Updates of a classifier.
  error_steps: int = 3000  # Updates of the network of errors.
  batch_size: int = 64  # Images, errors or points of a table per update.
  learning_rate: float = 1e-3  # Of Adam.
  num_candidates: int = 300  # Points of the grid that is searched.
  num_init: int = 6  # First points of a search.
  num_rounds: int = 40  # Points after these.
  search_widths: tuple[int, ...] = (128, 128, 128, 128)  # Of a network.
  search_steps: int = 200  # Its updates in a round.
  search_batch: int = 16  # Points per update.
  tables: tuple[str, ...] = ("banana", "phoneme", "ring", "twonorm")  # KEEL's, of two classes.
  table_train: int = 300  # Training points of a table.
  table_test: int = 500  # Its other points.
  table_steps: int = 600  # Updates of each of its networks.
  prior_steps: int = 8000  # Updates of a network that is fitted to a prior over tables.


PRESETS = {
  "smoke": Config(
    num_points=16, lengthscales=(0.2,), noises=(0.1,), num_neighbors=2, num_train=40, num_test=30,
    widths=(8,), num_passes=2, num_members=2, num_steps=2, error_steps=2, batch_size=8,
    num_candidates=24, num_init=4, num_rounds=4, search_widths=(8,), search_steps=2,
    search_batch=4, tables=("banana",), table_train=20, table_test=20, table_steps=2,
    prior_steps=2,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10", num_train=10_000, num_test=10_000, max_angle=60.0, pixel_noise=1.0,
    num_steps=40_000, error_steps=40_000, batch_size=128, num_candidates=3000, num_rounds=100,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("dropout",))
  check_range("dropout", config.dropout, "[0, 1)")
  for name in ("noise", "lengthscales", "outputscales", "noises", "learning_rate"):
    check_range(name, np.min(getattr(config, name)), "(0, inf)")
  for name in ("num_members", "num_init", "num_passes", "num_points"):
    check_at_least(2, **{name: getattr(config, name)})
  sizes.check_at_most(config.num_points, num_neighbors=config.num_neighbors)
  sizes.check_known(("digits", "cifar10"), dataset=(config.dataset,))
  datasets.describe(config.dataset).check_splits(config.num_train, config.num_test)
  sizes.check_at_most(min(config.num_train, config.table_train), batch_size=config.batch_size)
  sizes.check_at_most(config.num_init + config.num_rounds, search_batch=config.search_batch)
  sizes.check_at_most(config.num_candidates, num_init=config.num_init + config.num_rounds)


def run(config: Config, context: Context) -> Results:
  """All rows on regressions, images, tables, and in a search."""
  results = Results()
  few = min(config.few_seeds, context.seeds)
  measure = functools.partial(regression.measure, config)
  for name, problem in regression.PROBLEMS.items():
    problem = regression.Problem(*(np.full(context.seeds, x, np.float32) for x in problem))
    found = context.over_seeds(f"{REGRESSION}/{name}", measure, arguments=problem)
    results.add({**found["rows"], PROBLEM: found["facts"]}, problem=name)
    results.extras |= {f"{name}: {x}": curve[0] for x, curve in found["curves"].items()}
  parts = datasets.stack_seeds(functools.partial(shift.draw, config), context.seed_numbers[:few])
  measure = functools.partial(shift.measure, config)
  found = context.over_seeds(IMAGES, measure, num_seeds=few, arguments=parts)
  results.add({**found["rows"], PROBLEM: found["facts"]}, problem=IMAGES)
  epistemic.run_tables(config, context, results, num_seeds=few)
  for row in search.ROWS:
    best = context.over_seeds(f"{SEARCH}/{row}", functools.partial(search.search, config, row))
    for place in range(config.num_init - 1, best.shape[1]):
      where = {"problem": SEARCH, "round": place + 1 - config.num_init}
      results.add({row: {BEST: best[:, place]}}, **where)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity=SPEARMAN, problem=MISSPECIFIED, **where):
    return results.select(quantity, method=method, problem=problem, **where)

  def largest(methods, problem):
    return np.max([of(method, problem=problem) for method in methods], axis=0)

  def found(row):
    return of(row, BEST, SEARCH, round=config.num_rounds)

  excess, error = (of(PROBLEM, fact) for fact in ("mean excess", "RMSE of a GP"))
  wrong = (
    precondition("the excess is 5 variances of the noise", excess / config.noise**2, at_least=5),
    precondition("but the data determine the truth: a GP errs by .1 at most", error, at_most=0.1),
  )
  ratio = of(PROBLEM, "in-sample error over others", INTERPOLATING)
  memorized = precondition("errors in the sample are a tenth of others", ratio, at_most=0.1)
  clean, shifted = (of(PROBLEM, f"accuracy, {x}", IMAGES) for x in ("clean", "shifted"))
  moved = (
    precondition("93% of the images are classified right", clean, at_least=0.93),
    precondition("of shifted ones 45% to 85%", shifted, at_least=0.45, at_most=0.85),
  )
  room = (
    precondition("random search finds .87 at most", found(search.RANDOM), at_most=0.87),
    precondition("and the ensemble .92 at most", found(ENSEMBLE), at_most=0.92),
  )
  gap = functools.partial(of, quantity=ERROR)
  variances = largest(regression.VARIANCES, MISSPECIFIED)
  return [
    compare("a model that cannot be right: DEUP's Spearman correlation with the true excess is .30 "
            "above the best variance's", of(DEUP), variances, margin=0.3, headline=True,
            requires=wrong, paper="variances miss what a model cannot represent"),
    compare("its error in the excess is two thirds of the bootstrap's at most, in logarithms",
            np.log(gap(DEUP)), np.log(gap(regression.BOOTSTRAP)), better="lower",
            margin=np.log(1.5), requires=wrong),
    compare("a model that interpolates: out-of-sample errors lower it by .2 in logarithms, "
            "compared with errors in the sample", np.log(gap(DEUP, problem=INTERPOLATING)),
            np.log(gap(regression.IN_SAMPLE, problem=INTERPOLATING)), better="lower", margin=0.2,
            requires=(memorized,)),
    compare(f"shifted {config.dataset}: DEUP's Spearman correlation with the loss is .03 above the "
            "best score's", of(DEUP, problem=IMAGES), largest(shift.BASELINES, IMAGES), margin=0.03,
            requires=moved, paper="SVHN: .465 against .381 of an ensemble"),
    compare(f"{config.num_rounds} rounds of search: DEUP's best value is .03 above the ensemble's",
            found(DEUP), found(ENSEMBLE), margin=0.03, requires=room,
            paper="the optimum, where baselines stay at local ones"),
  ]  # fmt: skip


def figure(results: Results):
  """The first seed's regression, what rows foresee of its error, and the search."""
  figure, (top, bottom, right) = plots.panels(3, width=4.8, height=4.2)
  curve = lambda what: results.extras[f"{MISSPECIFIED}: {what}"]  # noqa: E731
  grid = np.linspace(-1, 2, regression.NUM_GRID)
  top.plot(curve("x"), curve("y"), ".", color="tab:gray", markersize=3, label="data")
  for what in ("truth", "prediction"):
    top.plot(grid, curve(what), label=what)
  bottom.plot(grid, curve("error"), color="black", linestyle="--", label="true excess")
  for row in (DEUP, GP, regression.BOOTSTRAP):
    bottom.plot(grid, curve(row), label=row)
  top.set(title=MISSPECIFIED)
  bottom.set(ylabel="excess of the squared error")
  plots.curves(right, results, BEST, x="round", problem=SEARCH)
  for ax in (top, bottom, right):
    ax.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the classifier, for a dry run."""
  rows, num_pixels = config.batch_size, int(np.prod(datasets.describe(config.dataset).shape))
  shapes = jax.ShapeDtypeStruct((rows, num_pixels), jnp.float32), jax.ShapeDtypeStruct((rows,), int)
  batch = datasets.Split(*shapes)
  optimizer = optax.adam(config.learning_rate)
  return abstract_step(shift.network(config), shift.loss_of(config), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
