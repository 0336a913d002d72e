"""C-Mixup: partners of a mix drawn by how near their regression targets are.

On tables, and on rotated digits whose color misleads, against training without mixing, mixup and
partners by near inputs.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import Split
from experiments.mixing_adaptation.c_mixup import digits, mixing, tables
from experiments.mixing_adaptation.c_mixup.mixing import ANY, INPUTS, MAIN, MIXUP, PLAIN, Setting
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "c_mixup"
DIGITS = "rotated digits"
_COLORS = "true", "reversed"  # Of test images.


@dataclasses.dataclass(frozen=True)
class Config:
  """The tables, the digits, and what is searched over."""

  search: bool = False  # Whether to search the settings: on pilot seeds; else they are the chosen.
  tables: tuple[str, ...] = ("diamonds", "computers", "nox", "friedman")  # To regress.
  table_sizes: tuple[int, ...] = (800, 600, 1000)  # Training, validation, test rows.
  widths: tuple[int, ...] = (128, 128)  # Hidden layers on tables.
  num_epochs: int = 60  # Passes over a table.
  epochs_per_evaluation: int = 3  # Epochs between evaluations on tables.
  learning_rate: float = 1e-3  # Adam on tables.
  weight_decays: tuple[float, ...] = (0.5, 1.5)  # Every method's search.
  plain_weight_decays: tuple[float, ...] = (  # In as many settings as the others have.
    *(0.0, 0.01, 0.03, 0.1, 0.2, 0.3),
    *(0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
  )
  bandwidths: tuple[float, ...] = (0.05, 0.3)  # In deviations of targets, or of inputs.
  alphas: tuple[float, ...] = (0.1, 0.5, 2.0)  # Of the ratios of near pairs.
  mixup_alphas: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # Of the ratios of mixup.
  images: str = "digits"  # Source of the images that are rotated.
  image_sizes: tuple[int, ...] = (600, 200, 900)  # Training, validation, test images.
  spurious_share: float = 0.98  # Training and validation images whose color tells the angle.
  test_share: float = 0.8  # Test images whose color tells the opposite.
  image_widths: tuple[int, ...] = (16, 32, 32)  # Channels of the convolutions.
  image_steps: int = 500  # Updates on images.
  image_batch_size: int = 32  # Images per update.
  image_learning_rate: float = 2e-3  # Adam on images.
  eval_every: int = 50  # Updates between evaluations on images.


PRESETS = {
  "smoke": Config(
    search=True, tables=("friedman",), table_sizes=(64, 32, 32), widths=(8,), num_epochs=2,
    epochs_per_evaluation=1, weight_decays=(0.0,),
    plain_weight_decays=(0.0,), bandwidths=(0.1,), alphas=(2.0,), mixup_alphas=(2.0,),
    image_sizes=(64, 32, 32), image_widths=(4,), image_steps=4, image_batch_size=16, eval_every=2,
  ),
  "laptop": Config(),
  # The images of RCF-MNIST, reduced to 8 x 8 before they are turned.
  "paper": Config(
    search=True, table_sizes=(1000, 600, 1000), images="fashion_mnist",
    image_sizes=(20_000, 10_000, 10_000), spurious_share=0.8, image_widths=(64, 128, 256),
    image_steps=60_000, image_batch_size=64, image_learning_rate=7e-5, eval_every=600,
  ),
}  # fmt: skip
SEEDS = {"laptop": 60}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  for table in config.tables:
    sizes.check_at_most(tables.num_rows(table), table_sizes=sum(config.table_sizes))
  sizes.check_at_most(config.image_sizes[0], image_batch_size=config.image_batch_size)
  sizes.check_divides(config.eval_every, image_steps=config.image_steps)
  sizes.check_divides(config.epochs_per_evaluation, num_epochs=config.num_epochs)
  datasets.describe(config.images).check_splits(*config.image_sizes)
  for name in (*config.tables, DIGITS):
    _space(config, name, config.learning_rate)  # Raises where nothing was chosen.


def run(config: Config, context: Context) -> Results:
  """Trains every method at its best settings on all data sets."""
  results = Results()
  measure = functools.partial(mixing.measure, context, results)
  for table in config.tables:
    evaluate = functools.partial(tables.train_mlp, config)
    drawn = tables.draw_tasks(config, context, table)
    measure(table, evaluate, drawn, _space(config, table, config.learning_rate))
    plain = results.select("RMSE", method=PLAIN, dataset=table)
    for method in results.distinct("method", dataset=table):
      relative = results.select("RMSE", method=method, dataset=table) / plain
      results.add({method: {"relative RMSE": relative}}, dataset=table)
  evaluate = functools.partial(digits.train_on_images, config)
  drawn = digits.draw_images(config, context)
  measure(DIGITS, evaluate, drawn, _space(config, DIGITS, config.image_learning_rate))
  return results


def _space(config: Config, dataset: str, learning_rate: float):
  """What is searched over, or the settings that the search of the pilot chose."""
  if config.search:
    return mixing.search_space(config, learning_rate)
  pilot, space = catalogue.selection(PAPER), {}
  for method in (PLAIN, MIXUP, INPUTS, MAIN):
    own = pilot.matching(method=method, dataset=dataset)
    chosen = {
      name.removeprefix("chosen/"): float(value)
      for _, name, _, value in own
      if name.startswith("chosen/")
    }
    if not chosen:
      raise ValueError(f"no pilot chose settings for {dataset!r}: run with --search.")
    space[method] = [Setting(learning_rate=learning_rate, mixes=float(method != PLAIN), **chosen)]
  return space


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  real = [table for table in config.tables if table != tables.FRIEDMAN] or config.tables

  def mean(method: str, names=config.tables, quantity: str = "relative RMSE"):
    return np.mean([results.select(quantity, method=method, dataset=t) for t in names], axis=0)

  def degrees(method: str, quantity: str = "RMSE (degrees)"):
    return results.select(quantity, method=method, dataset=DIGITS)

  correlation = mean(PLAIN, quantity="correlation")
  fitted = (
    precondition("without mixing, the correlation is at least .6", correlation, at_least=0.6),
    precondition("without mixing, the correlation is at most .99", correlation, at_most=0.99),
    precondition("to mix any two at C-Mixup's settings costs 1% or more", mean(ANY), at_least=1.01),
  )
  true, flipped = (degrees(PLAIN, f"RMSE, {color} color (degrees)") for color in _COLORS)
  misled = (
    precondition("without mixing, a reversed color doubles the RMSE", flipped / true, at_least=2.0),
  )
  below = functools.partial(compare, better="lower")
  return [
    below(
      "tables: C-Mixup's RMSE is .5% below mixup's, relative to no mixing, a mean over tables",
      mean(MAIN),
      mean(MIXUP),
      margin=0.005,
      headline=True,
      requires=fitted,
      paper="2.717 against 3.730 on Airfoil, 0.0203 against 0.0239 on Exchange-Rate",
    ),
    below(
      "the tables of real data alone: C-Mixup's RMSE is .5% below mixup's",
      mean(MAIN, real),
      mean(MIXUP, real),
      margin=0.005,
      requires=fitted[:2],
      paper="0.509 against 0.528 on NO2",
    ),
    below(
      "tables: C-Mixup's RMSE is 1% below that of training without mixing",
      mean(MAIN),
      mean(PLAIN),
      margin=0.01,
      requires=fitted,
      paper="2.717 against 2.901 on Airfoil",
    ),
    below(
      "tables: partners of near targets give an RMSE 1% below that of partners of near inputs",
      mean(MAIN),
      mean(INPUTS),
      margin=0.01,
      requires=fitted,
    ),
    below(
      "rotated digits: C-Mixup's RMSE is below that of training without mixing",
      degrees(MAIN),
      degrees(PLAIN),
      requires=misled,
      paper="0.146 against 0.162",
    ),
    below(
      "rotated digits: C-Mixup's RMSE is below mixup's",
      degrees(MAIN),
      degrees(MIXUP),
      requires=misled,
      paper="0.146 against 0.176",
    ),
  ]


def figure(results: Results):
  """Errors by data set and method."""
  figure, (left, right) = plots.panels(2, width=5.5)
  plots.intervals(left, results, "relative RMSE", by="dataset")
  left.set(title="tables", xlabel="table", ylabel="RMSE, relative to no mixing")
  left.axhline(1.0, color="gray", linewidth=0.8)
  left.legend(fontsize=7)
  for color in _COLORS:
    plots.intervals(right, results, f"RMSE, {color} color (degrees)", by="method", color="dataset")
  right.set(title=DIGITS, xlabel="method", ylabel="RMSE (degrees)")
  right.legend([f"{color} color" for color in _COLORS], fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """One training step of C-Mixup on images, for a dry run."""
  size, setting = config.image_batch_size, Setting(alpha=2.0, bandwidth=0.2)
  shapes = ((16, 16, 3), jnp.float32), ((1,), jnp.float32), ((), jnp.int32)
  rows = tuple(jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in shapes)
  pool = Split(*(jnp.zeros(array.shape) for array in rows[:2]))
  draw = functools.partial(digits.draw_partners, mixing.similarity_features(*pool, setting))
  network = digits.network(config)
  batch = rows, jax.ShapeDtypeStruct((size,), jnp.float32)
  return abstract_step(
    network, mixing.mixing_loss(network, pool, draw), optax.adamw(1e-3), batch, mesh
  )


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
