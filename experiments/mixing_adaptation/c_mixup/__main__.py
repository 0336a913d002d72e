"""C-Mixup: partners of a mix drawn by how near their regression targets are.

On real tables, and on rotated digits whose color misleads, against training without mixing, mixup,
manifold mixup and partners by near inputs.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import optax

from experiments import catalogue
from experiments.kit import plots
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import Split
from experiments.mixing_adaptation.c_mixup import mixing
from experiments.mixing_adaptation.c_mixup.digits import draw_partners, measure_digits, network
from experiments.mixing_adaptation.c_mixup.mixing import INPUTS, MAIN, MIXUP, PLAIN, Setting
from experiments.mixing_adaptation.c_mixup.tables import measure_table
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "c_mixup"


@dataclasses.dataclass(frozen=True)
class Config:
  """The tables, the digits, and what is searched over."""

  tables: tuple[str, ...] = ("diabetes", "boston", "auto", "hitters", "diamonds")  # To regress.
  max_rows: int = 1000  # Rows of a table, drawn by the seed.
  splits: int = 2  # Splits of a table per seed.
  widths: tuple[int, ...] = (128, 128)  # Hidden layers on tables.
  num_epochs: int = 100  # Passes over a table.
  learning_rates: tuple[float, ...] = (1e-2, 1e-3)  # Adam on tables; no mixing chooses for all.
  bandwidths: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0)  # In deviations of the target.
  alphas: tuple[float, ...] = (0.5, 2.0)  # Of C-Mixup's ratios.
  mixup_alphas: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0)  # Of the ratios of mixup.
  weight_decays: tuple[float, ...] = (0.0, 0.01, 0.1)  # Of mixup and of no mixing.
  dropouts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)  # Of no mixing.
  images: str = "digits"  # Source of the images that are rotated.
  image_sizes: tuple[int, ...] = (300, 200, 1000)  # Training, validation, test images.
  image_widths: tuple[int, ...] = (16, 32, 32)  # Channels of the convolutions.
  image_steps: int = 600  # Updates on images.
  image_batch_size: int = 32  # Images per update.
  image_learning_rate: float = 2e-3  # Adam on images.
  image_bandwidths: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)  # Searched on images, alpha 2.
  eval_every: int = 60  # Updates between evaluations on images.


PRESETS = {
  "smoke": Config(
    tables=("diabetes",), max_rows=100, splits=1, widths=(8,), num_epochs=2, learning_rates=(1e-2,),
    bandwidths=(0.1,), alphas=(2.0,), mixup_alphas=(2.0,), weight_decays=(0.0,), dropouts=(0.1,),
    image_sizes=(64, 32, 32), image_widths=(4,), image_steps=4, image_batch_size=16,
    image_bandwidths=(0.5,), eval_every=2,
  ),
  "laptop": Config(),
  # The images of RCF-MNIST, reduced to 8 x 8 before they are turned; all rows of the tables.
  "paper": Config(
    max_rows=20_000, splits=10, images="fashion_mnist", image_sizes=(20_000, 10_000, 10_000),
    image_widths=(64, 128, 256), image_steps=60_000, image_batch_size=64,
    image_learning_rate=7e-5, eval_every=600,
  ),
}  # fmt: skip


def run(config: Config, context: Context) -> Results:
  """Searches every method's settings on validation, and evaluates the best on test rows."""
  results = Results()
  for table in config.tables:
    measure_table(config, context, table, results)
  measure_digits(config, context, results)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def over_tables(method: str, quantity: str = "relative RMSE"):
    return results.select(quantity, method=method, average=("dataset",))

  def degrees(method: str, quantity: str = "RMSE (degrees)"):
    return results.select(quantity, method=method, dataset="rotated digits")

  correlation = over_tables(PLAIN, "correlation")
  worst = degrees(PLAIN, "RMSE of the worst color (degrees)") / degrees(PLAIN)
  able = precondition("without mixing, the correlation is at least .6", correlation, at_least=0.6)
  room = precondition("without mixing, the correlation is at most .99", correlation, at_most=0.99)
  misled = precondition("without mixing, the worst color doubles the RMSE", worst, at_least=2.0)

  def lower(text, errors, baseline, margin, requires=(able, room), **more):
    more |= {"better": "lower", "margin": margin, "requires": requires}
    return compare(text, errors(MAIN), errors(baseline), **more)

  main = "tables: C-Mixup's RMSE is 1% below mixup's, relative to no mixing, a mean over tables"
  paper = "2.717 against 3.730 on Airfoil, 0.0203 against 0.0239 on Exchange-Rate"
  safe = "tables: C-Mixup's RMSE is at most 1% above that of training without mixing"
  near = "tables: partners of near targets give a lower RMSE than of near inputs"
  shift = "rotated digits: C-Mixup's RMSE is 0.1 degrees below that of training without mixing"
  return [
    lower(main, over_tables, MIXUP, 0.01, headline=True, paper=paper),
    lower(safe, over_tables, PLAIN, -0.01, paper="2.717 against 2.901 on Airfoil"),
    lower(near, over_tables, INPUTS, 0.005),
    lower(shift, degrees, PLAIN, 0.1, (misled,), paper="0.146 against 0.162 without mixing"),
  ]


def figure(results: Results):
  """RMSE by data set and method, and how the bandwidth moves it."""
  figure, axes = plots.panels(3)
  plots.intervals(axes[0], results, "relative RMSE", by="dataset")
  plots.intervals(axes[1], results, "RMSE (degrees)", by="method", color="dataset")
  curve = {"x": "bandwidth", "color": "dataset", "method": MAIN}
  plots.curves(axes[2], results, "relative RMSE at a bandwidth", **curve)
  axes[1].set_title("rotated digits")
  axes[2].set(xscale="log", xlabel="bandwidth (deviations of the target)")
  for ax in (axes[0], axes[2]):
    ax.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """One training step of C-Mixup on images, for a dry run."""
  size, setting = config.image_batch_size, Setting(alpha=2.0, bandwidth=0.2)
  shapes = ((16, 16, 3), jnp.float32), ((1,), jnp.float32), ((), jnp.int32)
  rows = tuple(jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in shapes)
  pool = Split(*(jnp.zeros(array.shape) for array in rows[:2]))
  draw = functools.partial(draw_partners, mixing.similarity_features(*pool, setting))
  loss = mixing.mixing_loss(network(config), mixing.LAYERS[MAIN], setting, pool, draw)
  batch = rows, jax.ShapeDtypeStruct((size,), jnp.float32)
  return abstract_step(network(config), loss, optax.adamw(1e-3), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
