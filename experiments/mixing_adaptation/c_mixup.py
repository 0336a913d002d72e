"""C-Mixup: partners of a mix drawn by how near their regression targets are.

On real tables, against training without mixing, mixup, manifold mixup and partners by near inputs;
on rotated digits whose colour misleads; and on a known function, the label error that mixing makes.
"""

import dataclasses
import itertools
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments import classification, common
from experiments.mixing_adaptation.c_mixup_tables import (
  Setting,
  dropped,
  load_tasks,
  similarity_features,
  train_mlp,
)
from experiments.mixing_adaptation.members import over_members, stack
from jaxlab import augment, data, metrics, models, samplers, training

PAPER = "c_mixup"
METHODS = ("no mixing", "mixup", "manifold mixup", "near inputs", "C-Mixup")
AT_INPUTS = ("mixup", "near inputs", "C-Mixup")  # They differ in whom they mix alone.


@dataclasses.dataclass(frozen=True)
class Config:
  """The tables, the digits, and what is searched over."""

  tables: tuple[str, ...] = (
    "diabetes",
    "boston",
    "auto",
    "hitters",
    "diamonds",
  )  # Regression sets.
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
    found = context.cached(f"tables/{table}", _search_on_table, config, context, table)
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
  found = context.cached("digits", _search_on_digits, config, context)
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


# ------------------------------------------------------------------------------------------ tables


def table_settings(config: Config) -> dict[str, list[Setting]]:
  """Equally many settings of each method."""
  near = list(itertools.product(config.bandwidths, config.alphas))
  far = list(itertools.product(config.rival_alphas, config.weight_decays))
  plain = list(itertools.product(config.dropouts, config.weight_decays))
  if not len(near) == len(far) == len(plain):
    raise ValueError(f"searches of {len(near)}, {len(far)} and {len(plain)} settings are unequal.")
  mixup = [Setting(alpha=alpha, weight_decay=decay) for alpha, decay in far]
  return {
    "no mixing": [Setting(dropout=dropout, weight_decay=decay) for dropout, decay in plain],
    "mixup": mixup,
    "manifold mixup": mixup,
    "near inputs": [Setting(feature_bandwidth=width, alpha=alpha) for width, alpha in near],
    "C-Mixup": [Setting(bandwidth=width, alpha=alpha) for width, alpha in near],
  }


def _search_on_table(config: Config, context: common.Context, table: str) -> dict:
  """Scores of every method, split and setting, `[seeds * splits, settings]` each."""
  num = context.seeds * config.splits
  tasks = load_tasks(table, range(num), max_rows=config.max_rows)
  keys = jax.random.split(jax.random.fold_in(context.key, config.tables.index(table)), num)

  settings = table_settings(config)

  def search(methods, rates):
    """Methods that differ in their numbers alone are one program."""
    grid = [
      setting._replace(learning_rate=rate)
      for rate in rates
      for method in methods
      for setting in settings[method]
    ]
    split, index = (axis.ravel() for axis in np.indices((num, len(grid))))
    members = keys[split], jax.tree.map(lambda x: x[index], stack(grid)), split

    def train(member):
      key, setting, split = member
      return train_mlp(
        key,
        jax.tree.map(lambda x: jnp.asarray(x)[split], tasks),
        setting,
        widths=config.widths,
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        mix_layer={"no mixing": None, "manifold mixup": 1}.get(methods[0], 0),
        use_dropout=methods[0] == "no mixing",
      )

    found = over_members(train, members, context.mesh)
    found = {
      name: values.reshape(num, len(rates), len(methods), -1) for name, values in found.items()
    }
    # The learning rate of the least validation error.
    best = int(found["validation"].mean(0).min((1, 2)).argmin())
    return rates[best : best + 1], {
      method: {name: values[:, best, i] for name, values in found.items()}
      for i, method in enumerate(methods)
    }

  rates, plain = search(METHODS[:1], config.learning_rates)
  return plain | search(AT_INPUTS, rates)[1] | search(("manifold mixup",), rates)[1]


# ---------------------------------------------------------------------------------- rotated digits


def image_settings(config: Config) -> dict[str, list[Setting]]:
  """Equally many settings of each method."""
  num = len(config.image_bandwidths)
  alphas = [Setting(alpha=alpha) for alpha in config.rival_alphas]
  decays = [
    Setting(weight_decay=decay, dropout=dropout)
    for dropout in config.dropouts[:2]
    for decay in config.weight_decays[-2:]
  ]
  return {
    "no mixing": decays[:num],
    "mixup": alphas[:num],
    "manifold mixup": alphas[:num],
    "near inputs": [Setting(alpha=2.0, feature_bandwidth=w) for w in config.image_bandwidths],
    "C-Mixup": [Setting(alpha=2.0, bandwidth=w) for w in config.image_bandwidths],
  }


def network(config: Config) -> models.ConvNet:
  """The network on images: one real output."""
  return models.ConvNet(
    1, config.image_widths, kernel_size=(3, 3), strides=(2,) * len(config.image_widths)
  )


def image_loss(config: Config, method: str, setting: Setting, pool=None):
  """The engine's loss on batches (images, targets, rows).

  Args:
    config: the networks.
    method: one of `METHODS`; what distinguishes those at inputs is in the setting.
    setting: its hyper-parameters.
    pool: images and targets of the whole set and, for each of its rows, log-weights of partners;
      None: partners come from the batch, which is what a set too large for that table needs.
  """

  def loss(apply, key, batch):
    images, targets, rows = batch
    partner_key, mix_key, drop_key = jax.random.split(key, 3)

    def thinned(layer, hidden):
      if layer == 0:
        return hidden
      noise = jax.random.bits(jax.random.fold_in(drop_key, layer), hidden.shape, jnp.uint8)
      return dropped(noise, setting.dropout, hidden)

    if method == "no mixing":
      return jnp.square(apply(images, mix=thinned).logits - targets)[:, 0]
    if pool is None:
      rows, candidates = jnp.arange(rows.shape[0]), (images, targets)
      near = similarity_features(images, targets, setting)
      partners = samplers.sample_partners(partner_key, near, rows, bandwidth=1.0)
    else:
      *candidates, log_weights = pool
      partners = jax.random.categorical(partner_key, log_weights[rows])
    mix = partial(augment.mix_regression_pairs, mix_key, alpha=setting.alpha)
    mixed = mix(*candidates, rows, partners)
    if method != "manifold mixup":
      return jnp.square(apply(mixed.inputs).logits - mixed.targets)[:, 0]
    first, second = jnp.arange(rows.shape[0]), rows.shape[0] + jnp.arange(rows.shape[0])
    pairs = jnp.concatenate([rows, partners])

    def behind_first(layer, hidden):
      if layer != 1:
        return hidden
      # The same key, and so the ratio of the targets.
      return mix(hidden, candidates[1][pairs], first, second).inputs

    outputs = apply(candidates[0][pairs], mix=behind_first)
    return jnp.square(outputs.logits - mixed.targets)[:, 0]

  return classification.classification_loss(network(config), loss)


def _search_on_digits(config: Config, context: common.Context) -> dict:
  """Scores of every method, seed and setting, `[seeds, settings]` each."""
  keys = jax.random.split(jax.random.fold_in(context.key, len(config.tables)), context.seeds)
  parts = _images(config)
  settings = image_settings(config)

  def search(methods):
    """Methods that differ in their numbers alone are one program."""
    grid = stack(setting for method in methods for setting in settings[method])
    seed, index = (axis.ravel() for axis in np.indices((context.seeds, len(grid.alpha))))
    members = keys[seed], jax.tree.map(lambda x: x[index], grid)
    train = partial(_train_on_images, config, methods[0], parts)
    found = over_members(train, members, context.mesh)
    found = {
      name: values.reshape(context.seeds, len(methods), -1) for name, values in found.items()
    }
    return {
      method: {name: values[:, i] for name, values in found.items()}
      for i, method in enumerate(methods)
    }

  return search(METHODS[:1]) | search(AT_INPUTS) | search(("manifold mixup",))


def _images(config: Config) -> list[np.ndarray]:
  """Grey images `[n, 8, 8]` in [0, 1] for training, validation and test."""
  if config.images == "digits":
    return [split.inputs[..., 0] for split in classification.digits_splits(*config.image_sizes)]
  source = data.load_source(config.images, split="train")
  images = data.as_arrays(source, limit=sum(config.image_sizes))["image"][..., 0] / 255.0
  small = np.asarray(jax.image.resize(images, (len(images), 8, 8), "bilinear"))
  return np.split(small, np.cumsum(config.image_sizes)[:-1])


def _train_on_images(config: Config, method: str, parts, member) -> dict:
  """One network on images whose colour is right in 80% of training rows, and in 20% of test rows.

  Settings are chosen on validation images coloured as the training ones: nobody knows the shift.
  """
  key, setting = member
  key, *set_keys = jax.random.split(key, 4)
  train, validation, test = (
    data.rotated_digits(set_key, images, spurious_prob=prob)
    for set_key, images, prob in zip(set_keys, parts, (0.8, 0.8, 0.2))
  )
  mean, scale = train.degrees.mean(), train.degrees.std()
  targets = ((train.degrees - mean) / scale)[:, None]
  pool = None
  if len(targets) <= 20_000:
    small = jax.image.resize(train.images, (len(targets), 8, 8, 3), "linear")
    near = similarity_features(small / small.std(), targets, setting)
    pool = train.images, targets, samplers.label_similarity_logits(near, near, bandwidth=1.0)
  module = network(config)

  def evaluate(trained):
    predictions = [
      mean + scale * classification.predict(module, trained.variables, part.images).logits[:, 0]
      for part in (validation, test)
    ]
    error = jnp.mean(jnp.square((predictions[0] - validation.degrees) / scale))
    return {"validation": error, "predictions": predictions[1]}

  scores = classification.train(
    key,
    module,
    image_loss(config, method, setting, pool),
    optax.adamw(config.image_learning_rate, weight_decay=setting.weight_decay),
    (train.images, targets, jnp.arange(len(targets))),
    num_steps=config.image_steps,
    batch_size=config.image_batch_size,
    evaluate=evaluate,
    eval_every=config.eval_every,
  ).scores
  best = jnp.argmin(scores["validation"])
  pair = scores["predictions"][best], test.degrees
  share = test.degrees / 60.0
  honest = jnp.abs(test.colors - share) <= jnp.abs(test.colors - (1 - share))
  return {
    "validation": scores["validation"][best],
    "rmse": metrics.root_mean_squared_error(*pair),
    "worst": metrics.worst_group_rmse(*pair, honest.astype(jnp.int32), num_groups=2),
    "r": metrics.pearson_correlation(*pair),
  }


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
  axes[1].legend(fontsize=7)
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
