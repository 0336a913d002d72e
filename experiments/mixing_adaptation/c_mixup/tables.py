"""C-Mixup on tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.kit.datasets import Split, stack_seeds
from experiments.mixing_adaptation.c_mixup import mixing
from experiments.mixing_adaptation.c_mixup.mixing import Setting, Task
from jaxlab import data, metrics, models, samplers
from jaxlab.experiment import Context

BATCH_SIZE = 32  # Rows per update.
_MANY = 10**6
FRIEDMAN = "friedman"  # A known function of ten inputs, of which five matter.


def num_rows(name: str) -> int:
  """The rows that a run may use: half of a table's, as many as are asked for of a function's."""
  return _MANY if name == FRIEDMAN else len(data.load_regression_table(name).targets) // 2


def load_task(name: str, seed: int, *, sizes: tuple[int, ...], half: int) -> Task:
  """Training, validation and test rows of a table, as a seed draws them.

  A table's rows are cut in two halves: no row that a pilot sees is seen by a measured run.
  """
  rng = np.random.default_rng(seed)
  if name == FRIEDMAN:
    inputs = rng.uniform(size=(sum(sizes), 10))
    targets = 10 * np.sin(np.pi * inputs[:, 0] * inputs[:, 1]) + 20 * (inputs[:, 2] - 0.5) ** 2
    targets += 10 * inputs[:, 3] + 5 * inputs[:, 4] + rng.normal(size=len(inputs))
  else:
    inputs, targets, _ = data.load_regression_table(name)
    rows = np.random.default_rng(0).permutation(len(targets))[half::2]
    rows = rng.permutation(rows)[: sum(sizes)]
    inputs, targets = inputs[rows], targets[rows]
  train = slice(sizes[0])
  center, spread = inputs[train].mean(0), inputs[train].std(0)
  spread = np.where(spread > 0, spread, 1.0)  # A level that training rows lack.
  mean, scale = targets[train].mean(), targets[train].std()
  # A few stones of the diamonds have sides of 0 or of several centimeters.
  inputs = np.clip((inputs - center) / spread, -5.0, 5.0)
  rows = Split(inputs, (targets[:, None] - mean) / scale)
  parts = zip(*(np.split(array, np.cumsum(sizes)[:-1]) for array in rows))
  return jax.tree.map(np.float32, Task(*(Split(*part) for part in parts), mean, scale))


def network(config) -> models.MLP:
  """The network on tables: one real output."""
  return models.MLP(
    1, config.widths, activation=functools.partial(nn.leaky_relu, negative_slope=0.1)
  )


def score(predictions, targets) -> dict[str, jax.Array]:
  """The errors on test rows."""
  return {
    "RMSE": metrics.root_mean_squared_error(predictions, targets),
    "correlation": metrics.pearson_correlation(predictions, targets),
  }


def train_mlp(config, key, task: Task, setting) -> dict:
  """Trains one network and scores it at its best validation epoch."""
  setting = Setting(**setting)
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

  sizes = {"num_steps": num_steps, "batch_size": BATCH_SIZE}
  sizes["eval_every"] = config.epochs_per_evaluation * per_epoch
  sizes["schedule"] = jnp.arange(num_steps) // per_epoch, ratios
  return mixing.fit(key, network(config), setting, task, draw, score, partners, **sizes)


def draw_tasks(config, context: Context, table: str) -> Task:
  """The splits of all seeds."""
  half = int(context.first_seed > 0)
  load = functools.partial(load_task, table, sizes=config.table_sizes, half=half)
  return stack_seeds(load, context.seed_numbers)
