"""C-Mixup: partners of a mix drawn by how near their regression targets are.

On real tables, against training without mixing, mixup, manifold mixup and partners by near inputs;
on rotated digits whose color misleads; and on a known function, the label error that mixing makes.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.kit import plots
from experiments.kit.abstract import abstract_step
from experiments.mixing_adaptation.c_mixup import mixing
from experiments.mixing_adaptation.c_mixup.digits import measure_digits, network
from experiments.mixing_adaptation.c_mixup.mixing import INPUTS, MAIN, MIXUP, PLAIN, Setting
from experiments.mixing_adaptation.c_mixup.tables import measure_table
from jaxlab import augment, samplers
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "c_mixup"


@dataclasses.dataclass(frozen=True)
class Config:
  """The tables, the digits, and what is searched over."""

  tables: tuple[str, ...] = ("diabetes", "boston", "auto", "hitters", "diamonds")  # To regress.
  max_rows: int = 1000  # Rows of a table, drawn by the seed.
  splits: int = 2  # Splits of a table per seed.
  widths: tuple[int, ...] = (128, 128)  # Hidden layers on tables.
  batch_size: int = 16  # Rows an update on tables.
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
  image_batch_size: int = 32  # Images an update.
  image_learning_rate: float = 2e-3  # Adam on images.
  image_bandwidths: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)  # Searched on images, alpha 2.
  eval_every: int = 60  # Updates between evaluations on images.


PRESETS = {
  "smoke": Config(
    tables=("diabetes",),
    max_rows=100,
    splits=1,
    widths=(8,),
    num_epochs=2,
    learning_rates=(1e-2,),
    bandwidths=(0.1,),
    alphas=(2.0,),
    mixup_alphas=(2.0,),
    weight_decays=(0.0,),
    dropouts=(0.1,),
    image_sizes=(64, 32, 32),
    image_widths=(4,),
    image_steps=4,
    image_batch_size=16,
    image_bandwidths=(0.5,),
    eval_every=2,
  ),
  "laptop": Config(),
  # The images of RCF-MNIST, reduced to 8 x 8 before they are turned; all rows of the tables.
  "paper": Config(
    max_rows=20_000,
    splits=10,
    images="fashion_mnist",
    image_sizes=(20_000, 10_000, 10_000),
    image_widths=(64, 128, 256),
    image_steps=60_000,
    image_batch_size=64,
    image_learning_rate=7e-5,
    eval_every=600,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Searches every method's settings on validation, and evaluates the best on test rows."""
  results = Results()
  for table in config.tables:
    measure_table(config, context, table, results)
  measure_digits(config, context, results)
  errors = context.cached("label error", label_errors, config, context)
  for bandwidth, values in zip(config.bandwidths, errors.T):
    results.add({MAIN: {"label error": values}}, dataset="known function", bandwidth=bandwidth)
  results.add({MIXUP: {"label error": errors[:, -1]}}, dataset="known function")
  return results


# -------------------------------------------------------------------------------------- label error


def label_errors(config: Config, context: Context) -> np.ndarray:
  """Expected |mixed target - f(mixed input)|, `[seeds, bandwidths + 1]`, the last one for anyone.

  Over all pairs, weighted by the probability of the partner: only the ratio is drawn.
  """

  def error(key):
    input_key, ratio_key = jax.random.split(key)
    inputs = jax.random.uniform(input_key, (300, 5))
    values = friedman(inputs)
    targets = ((values - values.mean()) / values.std())[:, None]

    def of_pairs(ratio):
      mixed = augment.all_pairs_mix(targets, ratio=ratio)[..., 0]
      truth = friedman(augment.all_pairs_mix(inputs, ratio=ratio))
      return jnp.abs(mixed - (truth - values.mean()) / values.std())

    # The median of three uniform numbers is Beta(2, 2).
    ratios = jnp.median(jax.random.uniform(ratio_key, (32, 3)), axis=1)
    errors = jax.lax.map(of_pairs, ratios).mean(0)
    near = jax.vmap(lambda b: samplers.label_similarity_probabilities(targets, bandwidth=b))
    return jnp.mean(jnp.sum(near(jnp.array([*config.bandwidths, np.inf])) * errors, -1), -1)

  keys = jax.random.split(jax.random.fold_in(context.key, 100), context.seeds)
  return np.asarray(jax.jit(lambda keys: jax.lax.map(error, keys))(keys))


def friedman(x: jax.Array) -> jax.Array:
  """Friedman's first test function: five inputs, two of them in a product."""
  wave = 10 * jnp.sin(jnp.pi * x[..., 0] * x[..., 1])
  return wave + 20 * jnp.square(x[..., 2] - 0.5) + 10 * x[..., 3] + 5 * x[..., 4]


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def relative(method: str):
    return results.select("relative RMSE", method=method, average=("dataset",))

  def degrees(method: str, quantity: str = "RMSE (degrees)"):
    return results.select(quantity, method=method, dataset="rotated digits")

  correlation = results.select("correlation", method=PLAIN, average=("dataset",))
  worst = degrees(PLAIN, "RMSE of the worst color (degrees)") / degrees(PLAIN)
  able = precondition("without mixing, the correlation is at least .6", correlation, at_least=0.6)
  room = precondition("without mixing, the correlation is at most .99", correlation, at_most=0.99)
  misled = precondition("without mixing, the worst color doubles the RMSE", worst, at_least=2.0)

  def lower(text, baseline, margin, **more):
    sides = relative(MAIN), relative(baseline)
    return compare(text, *sides, better="lower", margin=margin, requires=(able, room), **more)

  return [
    lower(
      "tables: C-Mixup's RMSE is 1% below mixup's, relative to no mixing, a mean over tables",
      MIXUP,
      0.01,
      headline=True,
      paper="2.717 against 3.730 on Airfoil, 0.0203 against 0.0239 on Exchange-Rate",
    ),
    lower(
      "tables: C-Mixup's RMSE is at most 1% above that of training without mixing",
      PLAIN,
      -0.01,
      paper="2.717 against 2.901 on Airfoil",
    ),
    lower("tables: partners of near targets give a lower RMSE than of near inputs", INPUTS, 0.005),
    compare(
      "rotated digits: C-Mixup's RMSE is 0.1 degrees below that of training without mixing",
      degrees(MAIN),
      degrees(PLAIN),
      better="lower",
      margin=0.1,
      requires=(misled,),
      paper="0.146 against 0.162 without mixing",
    ),
  ]


def figure(results: Results):
  """RMSE by data set and method, and how the bandwidth moves it and the label error."""
  figure, axes = plots.panels(4)
  plots.intervals(axes[0], results, "relative RMSE", by="dataset")
  plots.intervals(axes[1], results, "RMSE (degrees)", by="method", color="dataset")
  curve = "relative RMSE at a bandwidth"
  plots.curves(axes[2], results, curve, x="bandwidth", color="dataset", method=MAIN)
  plots.curves(axes[3], results, "label error", x="bandwidth", method=MAIN)
  anyone = results.select("label error", method=MIXUP).mean()
  axes[3].axhline(anyone, color="gray", linestyle="--", label=MIXUP)
  axes[1].set_title("rotated digits")
  axes[3].set_title("known function")
  for ax in (axes[0], *axes[2:]):
    ax.legend(fontsize=7)
  for ax in axes[2:]:
    ax.set(xscale="log", xlabel="bandwidth (deviations of the target)")
  return figure


def abstract(config: Config, mesh):
  """One training step of C-Mixup on images, with partners from the batch, for a dry run."""
  module, size = network(config), config.image_batch_size
  setting = Setting(alpha=2.0, bandwidth=0.2)

  def draw(key, batch):
    near, rows = mixing.similarity_features(*batch[:2], setting), jnp.arange(batch[0].shape[0])
    ratio = mixing.mixing_ratios(key, setting, 1)[0]
    return rows, samplers.sample_partners(key, near, rows, bandwidth=1.0), ratio

  return abstract_step(
    module,
    mixing.mixing_loss(module, mixing.LAYERS[MAIN], setting, draw),
    optax.adamw(config.image_learning_rate),
    tuple(jax.ShapeDtypeStruct((size, *s), jnp.float32) for s in ((16, 16, 3), (1,))),
    mesh,
  )


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
