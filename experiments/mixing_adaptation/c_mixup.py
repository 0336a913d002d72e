"""C-Mixup: partners of a mix drawn by how near their regression targets are.

On real tables, against training without mixing, mixup, manifold mixup and partners by near inputs;
on rotated digits whose colour misleads; and on a known function, the label error that mixing makes.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments import common
from experiments.mixing_adaptation.c_mixup_digits import image_loss, network, search_on_digits
from experiments.mixing_adaptation.c_mixup_tables import METHODS, Setting, search_on_table
from jaxlab import augment, samplers, training

PAPER = "c_mixup"


@dataclasses.dataclass(frozen=True)
class Config:
  """The tables, the digits, and what is searched over."""

  tables: tuple[str, ...] = (  # Regression sets.
    *("diabetes", "boston", "auto", "hitters", "diamonds"),
  )
  max_rows: int = 1000  # Rows of a table, drawn by the seed.
  splits: int = 2  # Splits of a table a seed.
  widths: tuple[int, ...] = (128, 128)  # Hidden layers on tables.
  batch_size: int = 16  # Rows an update on tables.
  num_epochs: int = 100  # Passes over a table.
  learning_rates: tuple[float, ...] = (1e-2, 1e-3)  # Adam on tables; no mixing chooses for all.
  bandwidths: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0)  # In deviations of the target.
  alphas: tuple[float, ...] = (0.5, 2.0)  # Of C-Mixup's ratios.
  rival_alphas: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0)  # Of the ratios of mixup.
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
    rival_alphas=(2.0,),
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


def run(config: Config, context: common.Context) -> common.Results:
  """Searches every method's settings on validation, and judges the best on test rows."""
  rows = {method: {} for method in METHODS}
  relative = {method: [] for method in METHODS}
  curves = []
  for table in config.tables:
    found = context.cached(f"tables/{table}", search_on_table, config, context, table)
    chosen = _chosen(found, context.seeds)
    for method, scores in chosen.items():
      rows[method][f"RMSE/{table}"] = scores["rmse"]
      relative[method].append(scores["rmse"] / chosen["no mixing"]["rmse"])
      for name in ("mape", "r"):
        label = f"tables/{'MAPE (%)' if name == 'mape' else 'correlation'}"
        rows[method][label] = rows[method].get(label, 0.0) + scores[name] / len(config.tables)
    curves.append(_by_bandwidth(config, found["C-Mixup"]) / chosen["no mixing"]["rmse"].mean())
  for method, ratios in relative.items():
    rows[method]["tables/relative RMSE"] = np.mean(ratios, axis=0)
  found = context.cached("digits", search_on_digits, config, context)
  for method, scores in _chosen(found, context.seeds).items():
    rows[method]["rotated digits/RMSE (degrees)"] = scores["rmse"]
    rows[method]["rotated digits/worst colour"] = scores["worst"]
    rows[method]["rotated digits/correlation"] = scores["r"]
  errors = context.cached("label error", _label_errors, config, context)
  for bandwidth, values in zip((*config.bandwidths, np.inf), errors.T):
    rows[f"bandwidth {bandwidth:g}"] = {"mixing a known function/label error": values}
  return common.Results(rows, {"bandwidths": config.bandwidths, "curves": np.stack(curves)})


def _by_bandwidth(config: Config, scores) -> np.ndarray:
  """Mean test RMSE of each bandwidth, at its alpha of the least mean validation error."""
  shape = len(config.bandwidths), len(config.alphas)
  validation, rmse = (scores[name].mean(0).reshape(shape) for name in ("validation", "rmse"))
  return rmse[np.arange(shape[0]), validation.argmin(1)]


def _chosen(found, seeds: int) -> dict:
  """Test scores `[seeds]` of the setting with the least mean validation error of a seed's splits.

  Args:
    found: method -> name -> `[seeds * splits, settings]`.
    seeds: number of seeds.
  """
  chosen = {}
  for method, scores in found.items():
    validation = np.stack(np.split(scores["validation"], seeds)).mean(1)
    best = validation.argmin(1)
    chosen[method] = {
      name: np.stack(np.split(values, seeds)).mean(1)[np.arange(seeds), best]
      for name, values in scores.items()
    }
  return chosen


# -------------------------------------------------------------------------------------- label error


def _label_errors(config: Config, context: common.Context) -> np.ndarray:
  """Expected |mixed target - f(mixed input)|, `[seeds, bandwidths + 1]`, the last one for anyone.

  Over all pairs, weighted by the probability of the partner: only the ratio is drawn.
  """
  bandwidths = jnp.array([*config.bandwidths, np.inf])

  def error(key):
    input_key, ratio_key = jax.random.split(key)
    inputs = jax.random.uniform(input_key, (300, 5))
    values = _friedman(inputs)
    targets = ((values - values.mean()) / values.std())[:, None]

    def of_pairs(ratio):
      mixed = augment.all_pairs_mix(targets, ratio=ratio)[..., 0]
      truth = _friedman(augment.all_pairs_mix(inputs, ratio=ratio))
      return jnp.abs(mixed - (truth - values.mean()) / values.std())

    errors = jax.lax.map(of_pairs, jax.random.beta(ratio_key, 2.0, 2.0, (32,))).mean(0)
    near = jax.vmap(lambda b: samplers.label_similarity_probabilities(targets, bandwidth=b))
    return jnp.mean(jnp.sum(near(bandwidths) * errors, axis=-1), axis=-1)

  keys = jax.random.split(jax.random.fold_in(context.key, 100), context.seeds)
  return np.asarray(jax.jit(lambda keys: jax.lax.map(error, keys))(keys))


def _friedman(x: jax.Array) -> jax.Array:
  """Friedman's first test function: five inputs, two of them in a product."""
  wave = 10 * jnp.sin(jnp.pi * x[..., 0] * x[..., 1])
  return wave + 20 * jnp.square(x[..., 2] - 0.5) + 10 * x[..., 3] + 5 * x[..., 4]


# ------------------------------------------------------------------------------- claims and figure


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements."""
  quantities = results.quantities
  ours, relative = quantities["C-Mixup"], "tables/relative RMSE"
  digits = "rotated digits/RMSE (degrees)"
  rivals = {method: np.mean(quantities[method][digits]) for method in METHODS[:-1]}
  best = min(rivals, key=rivals.get)
  errors = [
    row["mixing a known function/label error"]
    for name, row in quantities.items()
    if name.startswith("bandwidth")
  ]
  steps = np.max([near - far for near, far in zip(errors, errors[1:])], axis=0)
  return [
    common.compare(
      "tables: RMSE below mixup's, relative to no mixing, on average",
      ours[relative],
      quantities["mixup"][relative],
      better="lower",
      paper="2.717 against 3.730 on Airfoil, 0.0203 against 0.0239 on Exchange-Rate",
    ),
    common.compare(
      "tables: RMSE not above that of training without mixing (by 1% at most)",
      ours[relative],
      quantities["no mixing"][relative],
      better="lower",
      margin=-0.01,
      paper="2.717 against 2.901 on Airfoil",
    ),
    common.compare(
      "tables: near targets are better partners than near inputs",
      ours[relative],
      quantities["near inputs"][relative],
      better="lower",
    ),
    common.compare(
      f"rotated digits: RMSE below that of the best rival ({best})",
      ours[digits],
      quantities[best][digits],
      better="lower",
      paper="0.146 against 0.162 without mixing",
    ),
    common.compare(
      "a known function: the label error falls with every step of the bandwidth",
      steps,
      0.0,
      better="lower",
    ),
  ]


def figure(results: common.Results):
  """RMSE by table and method, and how the bandwidth moves it and the label error."""
  import matplotlib.pyplot as plt

  quantities, extras = results.quantities, results.extras
  names = [name for name in quantities["C-Mixup"] if name.startswith("RMSE/")]
  digits = "rotated digits/RMSE (degrees)"
  fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", width_ratios=(2.2, 1, 1))
  ticks = np.arange(len(names) + 1)
  for i, method in enumerate(METHODS):
    ratios = [
      common.quantity(quantities[method][name] / quantities["no mixing"][name])
      for name in (*names, digits)
    ]
    axes[0].bar(
      ticks + (i - 2) * 0.16,
      [ratio.mean for ratio in ratios],
      0.16,
      yerr=[np.nan_to_num(ratio.standard_error) for ratio in ratios],
      label=method,
    )
  axes[0].set(ylabel="RMSE relative to no mixing")
  axes[0].set_xticks(ticks, [*(name.partition("/")[2] for name in names), "rotated digits"])
  axes[0].axhline(1.0, color="black", linewidth=0.5)
  low = min(min(bar.get_height() for bar in bars) for bars in axes[0].containers[1::2])
  axes[0].set_ylim(bottom=max(0.0, low - 0.15))
  axes[0].legend(fontsize=7, ncols=3)
  bandwidths = np.asarray(extras["bandwidths"])
  for name, curve in zip(names, extras["curves"]):
    axes[1].plot(bandwidths, curve, "o-", label=name.partition("/")[2])
  axes[1].axhline(1.0, color="black", linewidth=0.5)
  axes[1].set(ylabel="RMSE relative to no mixing", xlabel="bandwidth (deviations of the target)")
  axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
  errors = [
    common.quantity(row["mixing a known function/label error"])
    for name, row in quantities.items()
    if name.startswith("bandwidth")
  ]
  axes[2].errorbar(
    bandwidths,
    [error.mean for error in errors[:-1]],
    yerr=[np.nan_to_num(error.standard_error) for error in errors[:-1]],
    fmt="o-",
    label="C-Mixup",
  )
  axes[2].axhline(errors[-1].mean, color="gray", linestyle="--", label="any partner")
  axes[2].set(ylabel="error of the mixed label", xlabel="bandwidth (deviations of the target)")
  axes[2].set_title("Friedman's function", fontsize=10)
  axes[2].legend(fontsize=7)
  for ax in axes[1:]:
    ax.set_xscale("log")
  return fig


def abstract(config: Config, mesh):
  """One training step of C-Mixup on images, with partners from the batch, for a dry run."""
  module, optimizer = network(config), optax.adamw(config.image_learning_rate)

  def init(key):
    variables = dict(module.init(key, jnp.zeros((1, 16, 16, 3))))
    params = variables.pop("params")
    return training.init_state(key, params, optimizer, model_state=variables)

  loss = image_loss(config, "C-Mixup", Setting(alpha=2.0, bandwidth=0.2))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  size = config.image_batch_size
  shapes = ((size, 16, 16, 3), jnp.float32), ((size, 1), jnp.float32), ((size,), jnp.int32)
  batch = tuple(jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes)
  state = jax.eval_shape(init, jax.random.key(0))
  return training.build_update(loss, optimizer, mesh=mesh), state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
