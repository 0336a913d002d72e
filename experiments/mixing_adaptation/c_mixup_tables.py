"""C-Mixup on tables: their splits, the search of every method, and the training of one network."""

import itertools
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common
from experiments.classification import Split
from experiments.members import over_members, stack
from jaxlab import data, metrics, models, samplers

METHODS = ("no mixing", "mixup", "manifold mixup", "near inputs", "C-Mixup")
AT_INPUTS = ("mixup", "near inputs", "C-Mixup")  # They differ in whom they mix alone.


class Task(NamedTuple):
  """One split of a table, standardised by its training rows; `scale` undoes that of the target."""

  train: Split
  validation: Split
  test: Split
  mean: chex.Array
  scale: chex.Array


class Setting(NamedTuple):
  """What is searched over; a bandwidth of infinity ignores what it measures."""

  learning_rate: chex.Numeric = 1e-3
  weight_decay: chex.Numeric = 0.0
  dropout: chex.Numeric = 0.0
  alpha: chex.Numeric = 1.0
  bandwidth: chex.Numeric = np.inf  # Of targets.
  feature_bandwidth: chex.Numeric = np.inf  # Of inputs.


def table_settings(config) -> dict[str, list[Setting]]:
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


def search_on_table(config, context: common.Context, table: str) -> dict:
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


def load_tasks(name: str, seeds: range, *, max_rows: int) -> Task:
  """Splits of a table, 70/10/20, one a seed, stacked."""
  if name == "diabetes":
    rows = data.as_arrays(data.load_source("diabetes", split="all"))
    inputs, targets = rows["features"], rows["target"]
  else:
    inputs, targets, _ = data.load_regression_table(name)

  def task(seed):
    order = np.random.default_rng(seed).permutation(len(targets))[:max_rows]
    ends = [int(0.7 * len(order)), int(0.8 * len(order))]
    train, *_ = parts = np.split(order, ends)
    centre, spread = inputs[train].mean(0), inputs[train].std(0)
    mean, scale = targets[train].mean(), targets[train].std()
    spread = np.where(spread > 0, spread, 1.0)  # A level that training rows lack.
    splits = [
      Split((inputs[rows] - centre) / spread, (targets[rows, None] - mean) / scale)
      for rows in parts
    ]
    return Task(*splits, mean, scale)

  return stack([task(seed) for seed in seeds])


def similarity_features(inputs: chex.Array, targets: chex.Array, setting: Setting) -> jax.Array:
  """Coordinates in which a bandwidth of 1 is what the setting says.

  Distances of d standardised features grow as the root of d, and their bandwidth with them.
  """
  inputs = inputs.reshape(inputs.shape[0], -1)
  reach = setting.feature_bandwidth * np.sqrt(inputs.shape[1])
  return jnp.concatenate([targets / setting.bandwidth, inputs / reach], axis=1)


def dropped(noise: chex.Array, rate: chex.Numeric, hidden: chex.Array) -> jax.Array:
  """Dropout by bytes of noise, at a rate in steps of 1/256."""
  cut = jnp.round(256 * rate)
  return jnp.where(noise >= cut, hidden * 256 / (256 - cut), 0.0)


def train_mlp(
  key: chex.PRNGKey,
  task: Task,
  setting: Setting,
  *,
  widths: tuple[int, ...],
  batch_size: int,
  num_epochs: int,
  mix_layer: int | None,
  use_dropout: bool = False,
) -> dict[str, jax.Array]:
  """Trains one network and scores it at its best validation epoch.

  Args:
    key: of parameters, order, partners and ratios.
    task: the data.
    setting: the hyper-parameters, which may be traced.
    widths: hidden layers.
    batch_size: rows an update.
    num_epochs: shuffled passes, incomplete batches dropped.
    mix_layer: where pairs are mixed: 0 the inputs, 1 behind the first block; None: nowhere.
    use_dropout: whether blocks drop hidden units at all.

  Returns:
    `validation`: the best mean squared error, standardised; `rmse` (in the target's unit), `mape`
    and `r` on the test rows there.
  """
  module = models.MLP(1, widths, activation=partial(nn.leaky_relu, negative_slope=0.1))
  optimizer = optax.adamw(setting.learning_rate, weight_decay=setting.weight_decay)
  inputs, targets = task.train
  num_rows = inputs.shape[0]
  per_epoch = num_rows // batch_size
  init_key, partner_key, ratio_key, epoch_key = jax.random.split(key, 4)
  params = module.init(init_key, inputs[:1])["params"]
  # Partners of all epochs at once, by inversion.
  features = similarity_features(inputs, targets, setting)
  cumulative = jnp.cumsum(samplers.label_similarity_probabilities(features, bandwidth=1.0), axis=1)
  shares = jax.random.uniform(partner_key, (num_rows, num_epochs)) * cumulative[:, -1:]
  partners = jax.vmap(partial(jnp.searchsorted, side="right"))(cumulative, shares).T
  ratios = jax.random.beta(ratio_key, setting.alpha, setting.alpha, (num_epochs, per_epoch))

  def step(carry, batch):
    params, opt_state = carry
    rows, others, ratio, noise = batch

    def mixed(pairs):
      first, second = jnp.split(pairs, 2)
      return ratio * first + (1 - ratio) * second

    def at_layer(layer, hidden):
      if layer and layer == mix_layer:
        hidden = mixed(hidden)
      if layer and use_dropout:
        hidden = dropped(noise[layer - 1], setting.dropout, hidden)
      return hidden

    if mix_layer is None:
      x, y = inputs[rows], targets[rows]
    else:
      pairs = jnp.concatenate([rows, others])
      x, y = inputs[pairs], mixed(targets[pairs])
      x = mixed(x) if mix_layer == 0 else x

    def loss(params):
      return jnp.mean(jnp.square(module.apply({"params": params}, x, mix=at_layer).logits - y))

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  def epoch(carry, drawn):
    state, best = carry
    key, partners, ratios = drawn
    order_key, noise_key = jax.random.split(key)
    rows = jax.random.permutation(order_key, num_rows)[: per_epoch * batch_size]
    rows = rows.reshape(per_epoch, batch_size)
    noise = None
    if use_dropout:
      # For all steps at once: a draw a step would cost more than the step.
      noise = [
        jax.random.bits(key, (per_epoch, batch_size, width), jnp.uint8)
        for key, width in zip(jax.random.split(noise_key, len(widths)), widths)
      ]
    state, _ = jax.lax.scan(step, state, (rows, partners[rows], ratios, noise))
    found = [module.apply({"params": state[0]}, part.inputs).logits for part in task[1:3]]
    found = jnp.mean(jnp.square(found[0] - task.validation.labels)), found[1]
    best = jax.tree.map(lambda new, old: jnp.where(found[0] < best[0], new, old), found, best)
    return (state, best), None

  start = (params, optimizer.init(params)), (jnp.inf, jnp.zeros_like(task.test.labels))
  drawn = jax.random.split(epoch_key, num_epochs), partners, ratios
  (_, (validation, predictions)), _ = jax.lax.scan(epoch, start, drawn)
  pair = [task.mean + task.scale * array for array in (predictions, task.test.labels)]
  return {
    "validation": validation,
    "rmse": metrics.root_mean_squared_error(*pair),
    "mape": metrics.mean_absolute_percentage_error(*pair),
    "r": metrics.pearson_correlation(*pair),
  }
