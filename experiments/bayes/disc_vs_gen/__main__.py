"""Discriminative against generative fits of a linear classifier: who needs how many examples?

Naive Bayes and logistic regression give linear classifiers of the same kind. On Gaussian classes
the number of examples that brings each near the Bayes error is followed as the features grow in
number; on features of a network, errors from few examples to many. The theory speaks of logistic
regression without a penalty; what its default penalty does, and a tuned one, are rows of their own.
"""

import dataclasses
import functools
import math
import sys

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from experiments import catalogue
from experiments.bayes.disc_vs_gen import features, simulation
from experiments.bayes.disc_vs_gen import methods as by
from experiments.bayes.disc_vs_gen.features import FEATURES, PIXELS
from experiments.bayes.disc_vs_gen.simulation import MANY, TWO
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.prior_fitting import score_seeds
from experiments.kit.sweep import add_along, run_seeds
from experiments.kit.train import adamw_cosine, classification_loss
from jaxlab import metrics
from jaxlab._checks import check_at_least, check_increasing, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "disc_vs_gen"
SEEDS = {"laptop": 12}
NEEDED, LOG_NEEDED = "examples needed", "log of examples needed"
CENSORED, SLOPE, ERROR, UNFINISHED = "not reached", "slope", "error", "unfinished"


@dataclasses.dataclass(frozen=True)
class Config:
  """The Gaussian classes, the images, the network, and the classifiers."""

  dimensions: tuple[int, ...] = (50, 100, 200, 400)  # Features of two Gaussian classes.
  growth: float = 1.1  # From one training set size to the next.
  limit: tuple[int, int] = (6, 400)  # Sizes up to 6 n + 400 with n features.
  num_classes: int = 5  # Of the Gaussians with many classes.
  many_dimensions: tuple[int, ...] = (50, 100, 200)  # Their features.
  many_growth: float = 1.2  # From one training set size to the next.
  many_limit: tuple[int, int] = (60, 0)  # Sizes up to 60 n.
  sets: int = 5  # Fresh training sets of each size, whose errors are averaged.
  tolerance: float = 0.01  # Above the Bayes error, that counts as near.
  num_validation: int = 1000  # Rows that choose C on Gaussian classes.
  num_test: int = 4000  # Test rows of Gaussian classes.
  dataset: str = "digits"  # Of the images; or cifar10.
  num_pretraining: int = 500  # Images that the network learns from.
  num_pool: int = 700  # Others, that heads learn from.
  num_images: int = 597  # Others, that heads are tested on.
  widths: tuple[int, ...] = (64, 64)  # Of the network; the last layer are the features.
  num_steps: int = 500  # Updates of the network.
  batch_size: int = 64  # Images per update.
  learning_rate: float = 1e-3  # AdamW with a cosine to 0.
  num_examples: tuple[int, ...] = (20, 50, 100, 200, 400, 700)  # Of heads; the last is the pool.
  num_draws: int = 5  # Training sets of each size on features.
  pixel_draws: int = 1  # Training sets of each size on pixels.
  own_tolerance: float = 0.02  # Above a method's own last error, that counts as near.
  strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of tuned rows, increasing.
  var_epsilons: tuple[float, ...] = (1e-9, 0.01, 0.1)  # Added variances, increasing.
  num_folds: int = 5  # Of cross-validation; one row is left out where a class has fewer rows.
  gradient_tolerance: float = 1e-6  # At which the unpenalized fit ends.
  max_iterations: int = 2000  # Of the unpenalized fit.


PRESETS = {
  "smoke": Config(
    dimensions=(4, 8), limit=(1, 12), growth=1.5, num_classes=3, many_dimensions=(4, 6),
    many_growth=1.5, many_limit=(1, 16), sets=2, num_validation=40, num_test=60,
    num_pretraining=40, num_pool=60, num_images=40, widths=(8,), num_steps=4, batch_size=8,
    num_examples=(20, 60), num_draws=2, strengths=(0.1, 1.0), var_epsilons=(1e-9, 0.1),
    num_folds=3, max_iterations=50,
  ),
  "laptop": Config(),
  "paper": Config(
    dimensions=(100, 200, 400, 1000), growth=1.05, limit=(100, 0), num_classes=7,
    many_dimensions=(100, 200, 400, 1000), many_growth=1.05, many_limit=(100, 0), num_test=10_000,
    dataset="cifar10", num_pretraining=25_000, num_pool=24_000, num_images=10_000,
    widths=(2048, 2048), num_steps=50_000, batch_size=256,
    num_examples=(20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 24_000),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "tolerance", "own_tolerance"
  sizes.check_sizes(config, zero=("limit", "many_limit"), shares=shares)
  check_at_least(2, num_classes=config.num_classes, num_folds=config.num_folds)
  check_at_least(1.01, growth=config.growth, many_growth=config.many_growth)
  for name in ("dimensions", "many_dimensions", "strengths", "var_epsilons", "num_examples"):
    check_increasing(name, np.array(getattr(config, name)))
  for name in ("dimensions", "many_dimensions"):
    check_at_least(2, **{name: getattr(config, name)[0]})
    if len(getattr(config, name)) < 2:
      raise ValueError(f"{name} must have two entries, for a slope.")
  for name in ("strengths", "var_epsilons", "gradient_tolerance"):
    check_range(name, np.min(getattr(config, name)), "(0, inf)")
  sizes.check_known(("digits", "cifar10"), dataset=(config.dataset,))
  dataset = datasets.describe(config.dataset)
  dataset.check_splits(config.num_pretraining, config.num_pool, config.num_images)
  sizes.check_at_most(config.num_pretraining, batch_size=config.batch_size)
  check_at_least(2 * dataset.num_classes, num_examples=config.num_examples[0])
  if config.num_examples[-1] != config.num_pool:
    raise ValueError(f"num_examples must end with num_pool={config.num_pool}.")


def run(config: Config, context: Context) -> Results:
  """Seeks the number of examples on Gaussian classes, then compares heads on features."""
  results = Results()
  # Such small sums are slower with several threads.
  with threadpool_limits(1):
    simulate(config, context, results)
    compare_heads(config, context, results)
  return results


_first_near = jax.jit(metrics.samples_to_reach)


def simulate(config: Config, context: Context, results: Results) -> None:
  """Examples that each method needs, and the power of the dimension with which they grow."""
  slope = jax.jit(jax.vmap(lambda x, y: metrics.scaling_exponent(x, y).slope, in_axes=(None, 0)))
  for number, problem in enumerate(simulation.problems(config)):
    needed = {method: [] for method in problem.methods}
    for dimension in problem.dimensions:
      where = {"problem": problem.name, "dimension": dimension}

      def score(seed, problem=problem, number=number, dimension=dimension):
        key = jax.random.fold_in(jax.random.fold_in(context.seed_key(seed), number), dimension)
        return simulation.score(config, problem, dimension, key)

      found = score_seeds(context, f"{problem.name}/{dimension}", score)
      error = simulation.bayes_error(problem, dimension)
      results.add({by.KNOWN: {ERROR: error}}, **where)
      tried = simulation.sizes_to_try(problem, dimension)
      for method, row in found.items():
        first = np.asarray(_first_near(tried, row.pop("errors"), error, tolerance=config.tolerance))
        censored = first < 0
        first = np.where(censored, tried[-1], first)
        needed[method].append(first)
        row |= {NEEDED: first, LOG_NEEDED: np.log(first), CENSORED: censored}
        results.add({method: row}, **where)
    for method, samples in needed.items():
      slopes = slope(np.array(problem.dimensions), np.stack(samples, axis=1))
      results.add({method: {SLOPE: slopes}}, problem=problem.name)


def compare_heads(config: Config, context: Context, results: Results) -> None:
  """Errors of heads on features and on pixels, and when each is near its own last error."""
  parts = [features.draw(config, seed) for seed in context.seed_numbers]
  stacked = jax.tree.map(lambda *x: np.stack(x), *parts)
  network = functools.partial(features.pretrain, config)
  learned = run_seeds(context, "network", network, arguments=stacked)

  def score(seed, representation):
    _, pool, test = parts[seed]
    if representation == FEATURES:
      pool, test = (
        rows._replace(inputs=learned[name][seed]) for name, rows in (("pool", pool), ("test", test))
      )
    inputs = (x._replace(inputs=x.inputs.reshape(len(x.inputs), -1)) for x in (pool, test))
    draws = {FEATURES: config.num_draws, PIXELS: config.pixel_draws}[representation]
    return features.score(config, *inputs, context.seed_numbers[seed], num_draws=draws)

  for representation in (FEATURES, PIXELS):
    of_seed = functools.partial(score, representation=representation)
    found = score_seeds(context, representation, of_seed)
    where = {"representation": representation}
    add_along(results, found, {"examples": config.num_examples}, **where)
    for method, row in found.items():
      errors = np.asarray(row[ERROR], np.float32)
      tried, own = np.array(config.num_examples), errors[:, -1]
      first = _first_near(tried, errors, own, tolerance=config.own_tolerance)
      results.add({method: {"examples near own error": first}}, **where)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  few, pool = config.num_examples[0], config.num_examples[-1]

  def of(method, quantity, problem=TWO, **where):
    where |= {"method": method, "problem": problem}
    return results.select(quantity, average=("dimension",), **where)

  def head(method, examples):
    return results.select(ERROR, method=method, representation=FEATURES, examples=examples)

  def own(method):
    quantity = "examples near own error"
    return np.log(results.select(quantity, method=method, representation=FEATURES))

  def measurable(problem):
    for method in (by.NAIVE, by.UNPENALIZED):
      share = of(method, CENSORED, problem)
      yield precondition(f"{method} is near the Bayes error in every repeat", share, at_most=0)
    fits = of(by.UNPENALIZED, UNFINISHED, problem)
    yield precondition("every unpenalized fit converged or separates its rows", fits, at_most=0)

  best = of(by.KNOWN, ERROR, dimension=config.dimensions[0])
  separable = precondition("the Bayes error is below .001", best, at_most=0.001)
  probe, first = head(by.TUNED, pool), head(by.NAIVE, few)
  bounds = (
    (f"tuned logistic regression errs on .02 to .15 at m = {pool}", probe, 0.02, 0.15),
    (f"naive Bayes on .1 to .4 at m = {few}", first, 0.1, 0.4),
  )
  useful = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  return [
    compare("the examples that logistic regression without a penalty needs grow with a power of "
            "the dimension that is larger by .5 than that of naive Bayes",
            of(by.UNPENALIZED, SLOPE), of(by.NAIVE, SLOPE), margin=0.5, headline=True,
            requires=(separable, *measurable(TWO)), paper="O(n) against O(log n)"),
    compare(f"{config.num_classes} classes: naive Bayes needs less than a fifth of the examples "
            "(logarithms)", of(by.NAIVE, LOG_NEEDED, MANY), of(by.UNPENALIZED, LOG_NEEDED, MANY),
            better="lower", margin=math.log(5), requires=[*measurable(MANY)],
            paper="the same rates"),
    compare(f"features, m = {pool}: tuned logistic regression errs less than tuned naive Bayes "
            "by .01", probe, head(by.NAIVE, pool), better="lower", margin=0.01, requires=useful,
            paper="it wins with many examples on supervised backbones"),
    compare(f"features, m = {few}: naive Bayes errs less than logistic regression with the default "
            "penalty by .05", head(by.RELEASED, few), head(by.DEFAULT, few), better="lower",
            margin=0.05, requires=useful, paper="it wins with few examples"),
    compare(f"features, m = {few}: tuned naive Bayes errs less than tuned logistic regression by "
            ".01", first, head(by.TUNED, few), better="lower", margin=0.01, requires=useful,
            paper="it wins with few examples"),
    compare("features: naive Bayes comes near its own last error with two thirds of the examples "
            "of tuned logistic regression (logarithms)", own(by.NAIVE), own(by.TUNED),
            better="lower", margin=math.log(1.5), requires=useful, paper="it flattens earlier"),
  ]  # fmt: skip


def figure(results: Results):
  """Examples needed against the dimension, and errors against examples, with crossings."""
  figure, (left, right) = plots.panels(2, width=5.5, height=4.2)
  for method in (by.NAIVE, by.UNPENALIZED, by.DEFAULT, by.STANDARDIZED):
    plots.curves(left, results, NEEDED, x="dimension", problem=TWO, method=method)
    slope = results.select(SLOPE, problem=TWO, method=method).mean()
    left.lines[-1].set_label(f"{method}: slope {slope:.2f}")
  left.set(title=TWO, ylabel="examples m near the Bayes error")
  for method in (by.NAIVE, by.UNPENALIZED, by.DEFAULT, by.TUNED):
    plots.curves(right, results, ERROR, x="examples", representation=FEATURES, method=method)
  naive, *others = (line.get_ydata() for line in right.lines)
  for errors in others:
    first = np.flatnonzero(np.less_equal(errors, naive))[:1]
    right.plot(np.array(right.lines[0].get_xdata())[first], naive[first], "ko")
  right.set_ylabel("test error")
  right.set_title(f"{FEATURES}; dots: first m where naive Bayes is not ahead", fontsize=9)
  for ax, label in ((left, "features n"), (right, "examples m")):
    plots.log_axis(ax, label)
    ax.set_yscale("log")
    ax.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the network, for a dry run."""
  module, optimizer = features.network(config), adamw_cosine(config.learning_rate, config.num_steps)
  batch = datasets.describe(config.dataset).batch(config.batch_size)
  return abstract_step(module, classification_loss(module), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
