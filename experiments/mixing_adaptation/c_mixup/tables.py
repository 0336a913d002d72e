"""C-Mixup on tables: their splits, the search of every method."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.kit.datasets import Split, stack_seeds
from experiments.mixing_adaptation.c_mixup import mixing
from experiments.mixing_adaptation.c_mixup.mixing import MAIN, PLAIN, Setting, Task, best, search
from jaxlab import data, metrics, models, samplers
from jaxlab.experiment import Context, Results

BATCH_SIZE = 16  # Rows per update.


def table_settings(config, learning_rate: float) -> dict[str, list[Setting]]:
  """Equally many settings of each method."""
  at = partial(Setting, learning_rate=learning_rate)
  near = list(itertools.product(config.bandwidths, config.alphas))
  far = list(itertools.product(config.mixup_alphas, config.weight_decays))
  plain = list(itertools.product(config.dropouts, config.weight_decays))
  if not len(near) == len(far) == len(plain):
    raise ValueError(f"searches of {len(near)}, {len(far)} and {len(plain)} settings are unequal.")
  mixup = [at(alpha=alpha, weight_decay=decay) for alpha, decay in far]
  return {
    PLAIN: [at(mixes=0.0, dropout=dropout, weight_decay=decay) for dropout, decay in plain],
    mixing.MIXUP: mixup,
    mixing.MANIFOLD: mixup,
    mixing.INPUTS: [at(feature_bandwidth=width, alpha=alpha) for width, alpha in near],
    MAIN: [at(bandwidth=width, alpha=alpha) for width, alpha in near],
  }


def load_tasks(name: str, seeds: range, *, max_rows: int) -> Task:
  """Splits of a table, 70/10/20, one per seed, stacked."""
  if name == "diabetes":
    rows = data.as_arrays(data.load_source("diabetes", split="all"))
    inputs, targets = rows["features"], rows["target"]
  else:
    inputs, targets, _ = data.load_regression_table(name)

  def task(seed):
    order = np.random.default_rng(seed).permutation(len(targets))[:max_rows]
    train_rows, *_ = parts = np.split(order, [int(0.7 * len(order)), int(0.8 * len(order))])
    center, spread = inputs[train_rows].mean(0), inputs[train_rows].std(0)
    mean, scale = targets[train_rows].mean(), targets[train_rows].std()
    spread = np.where(spread > 0, spread, 1.0)  # A level that training rows lack.
    parts = [Split((inputs[r] - center) / spread, (targets[r, None] - mean) / scale) for r in parts]
    return jax.tree.map(np.float32, Task(*parts, mean, scale))

  return stack_seeds(task, seeds)


def train_mlp(key, task: Task, setting: Setting, *, config, layer: int) -> dict:
  """Trains one network and scores it at its best validation epoch."""
  num_epochs, per_epoch = config.num_epochs, len(task.train.labels) // BATCH_SIZE
  num_steps = num_epochs * per_epoch
  key, partner_key, ratio_key = jax.random.split(key, 3)
  # For all epochs at once, as the ratios.
  near = mixing.similarity_features(*task.train, setting)
  partners = samplers.sample_partner_table(partner_key, near, num_draws=num_epochs, bandwidth=1.0)
  ratios = mixing.mixing_ratios(ratio_key, setting, num_steps)

  def draw(key, batch):
    del key
    (_, _, rows, partners), (epoch, ratio) = batch
    return rows, jnp.take_along_axis(partners, epoch[:, None], axis=1)[:, 0], ratio[0]

  module = models.MLP(1, config.widths, activation=partial(nn.leaky_relu, negative_slope=0.1))
  sizes = {"num_steps": num_steps, "batch_size": BATCH_SIZE, "eval_every": per_epoch}
  sizes["schedule"] = jnp.arange(num_steps) // per_epoch, ratios
  error, *pair = mixing.fit(key, module, layer, setting, task, draw, partners, **sizes)
  return {
    "validation error": error,
    "RMSE": metrics.root_mean_squared_error(*pair),
    "MAPE (%)": metrics.mean_absolute_percentage_error(*pair),
    "correlation": metrics.pearson_correlation(*pair),
  }


def measure_table(config, context: Context, table: str, results: Results) -> None:
  """Adds the errors of every method at its best setting, and C-Mixup's by bandwidth."""
  tasks = load_tasks(table, range(context.seeds * config.splits), max_rows=config.max_rows)
  tasks = jax.tree.map(lambda x: x.reshape(context.seeds, config.splits, *x.shape[1:]), tasks)

  def evaluate(layer, key, tasks, setting):
    def one(split):
      return train_mlp(*split, Setting(**setting), config=config, layer=layer)

    keys = jax.random.split(key, config.splits)
    return jax.tree.map(lambda values: values.mean(0), jax.lax.map(one, (keys, tasks)))

  evaluate = {layer: partial(evaluate, layer) for layer in (0, 1)}
  # The learning rate of the least validation error without mixing is that of all methods.
  settings = {rate: table_settings(config, rate) for rate in config.learning_rates}
  rated = {
    rate: search(context, f"{table}/{rate}", evaluate, tasks, {PLAIN: own[PLAIN]})
    for rate, own in settings.items()
  }
  rate = min(rated, key=lambda rate: rated[rate][PLAIN]["validation error"].mean(0).min())
  settings, scores = settings[rate], rated[rate]
  others = {method: own for method, own in settings.items() if method != PLAIN}
  scores |= search(context, table, evaluate, tasks, others)
  plain = best(scores[PLAIN], settings[PLAIN])["RMSE"]
  for method, own in scores.items():
    chosen = best(own, settings[method])
    results.add({method: chosen | {"relative RMSE": chosen["RMSE"] / plain}}, dataset=table)
  for bandwidth in config.bandwidths:
    own = [i for i, setting in enumerate(settings[MAIN]) if setting.bandwidth == bandwidth]
    of_bandwidth = {name: values[:, own] for name, values in scores[MAIN].items()}
    chosen = best(of_bandwidth, [settings[MAIN][i] for i in own])
    relative = {"relative RMSE at a bandwidth": chosen["RMSE"] / plain}
    results.add({MAIN: relative}, dataset=table, bandwidth=bandwidth)
