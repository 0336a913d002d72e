"""Real curves, the two priors over curves, and the networks that are fitted to them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.prior_fitting import Fitted, PriorTrainer
from jaxlab import data, losses, models, samplers, uncertainty
from jaxlab.experiment import Context

# LCDB trains on 16 * 2^(k/2) rows, k = 0, 1, ...: the anchors. Only the last one of a curve, all
# the rows there are, may lie between two of them.
_SEEN_ANCHORS, _LAST_ANCHOR = 12, 31
_OBSERVED_SHARE = 0.4  # Share of the anchors that is seen.
_ANCHORS = np.arange(_LAST_ANCHOR + 1.0)
_SIZES = tuple(16 * 2 ** (_ANCHORS / 2))
_QUERIES = 8  # Values that a network is asked for beside the first twelve anchors.
# Of `draw_by_size`: the paper's noise, and drifts among which other data sets choose.
SETTINGS = (0.0, 0.0), (1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.0, 0.75)


class Curves(NamedTuple):
  """Curves whose last value is to be predicted."""

  positions: np.ndarray  # The epoch, or the anchor k as a share of 31, `[n, T]`.
  log_steps: np.ndarray  # Log of the epoch, or of the training size over 16, `[n, T]`.
  values: np.ndarray  # Accuracies `[n, T]`; those between the seen ones and the last may be NaN.
  observed: np.ndarray  # Number of values that are seen, `[n]`.
  groups: np.ndarray  # Data sets, `[n]`.

  def rows(self, rows) -> "Curves":
    """Some of the curves."""
    return Curves(*(field[rows] for field in self))

  def seen(self, number: int) -> "Curves":
    """The curves with another number of seen values."""
    return self._replace(observed=np.full(len(self.values), number))


def real_by_epoch(config, seed: int) -> Curves:
  """The accuracies of real networks after every epoch, drawn by a seed number."""
  numbers = dict(num_networks=config.num_networks, num_rows=config.num_rows, seed=seed)
  curves = data.load_epoch_curves(datasets=config.tables, num_epochs=config.length, **numbers)
  return curves_by_epoch(curves.values, curves.dataset_ids)


def curves_by_epoch(values: np.ndarray, groups: np.ndarray) -> Curves:
  """Curves `[n, T]` of which every epoch is known; all are seen."""
  epochs = np.broadcast_to(np.arange(1.0, values.shape[1] + 1), values.shape)
  return Curves(epochs, np.log(epochs), values, np.full(len(values), values.shape[1]), groups)


def curves_by_size() -> Curves:
  """LCDB's curves with 10 to 32 anchors: the first twelve and the last."""
  curves = data.load_lcdb(metric="accuracy")
  kept = curves.lengths <= _LAST_ANCHOR + 1
  lengths = curves.lengths[kept, None]
  columns = np.concatenate([np.tile(np.arange(_SEEN_ANCHORS), (len(lengths), 1)), lengths - 1], 1)
  values, sizes = (
    np.take_along_axis(field[kept], columns, 1) for field in (curves.values, curves.anchors)
  )
  log_steps = np.log(np.maximum(sizes, 16) / 16)
  observed = np.maximum(2, np.floor(_OBSERVED_SHARE * lengths[:, 0])).astype(int)
  positions = 2 * log_steps / np.log(2) / _LAST_ANCHOR
  return Curves(positions, log_steps, values, observed, curves.dataset_ids[kept])


def draw_by_size(key, *, batch_size: int) -> samplers.PriorBatch:
  """Curves over training size, with the paper's noise or with a discrepancy that drifts.

  The inputs are the position and the two settings of a curve, all in [0, 1]: whether the
  discrepancy is a random walk with Student-t steps, and how many times larger its steps are than
  those twelve anchors later, as a logarithm to base 4.
  """
  curve_key, setting_key, walk_key, column_key = jax.random.split(key, 4)
  drawn = data.sample_learning_curves(
    curve_key, batch_size=batch_size, length=len(_SIZES), steps=_SIZES
  )
  coin, log_ratio = jax.random.uniform(setting_key, (2, batch_size, 1))
  decay = 4.0 ** (-log_ratio * _ANCHORS / _SEEN_ANCHORS)
  steps = jax.random.t(walk_key, 4.0, drawn.clean.shape) * drawn.noise_std[:, None] * decay
  drifts = coin < 0.5
  y = jnp.where(drifts, drawn.clean + jnp.cumsum(steps, axis=1), drawn.y)
  asked = jax.random.choice(column_key, len(_SIZES), (_QUERIES,), replace=False)
  columns = jnp.concatenate([jnp.arange(_SEEN_ANCHORS), asked])
  x = jnp.stack(jnp.broadcast_arrays(_ANCHORS / _LAST_ANCHOR, drifts, log_ratio), axis=-1)
  x, y = x[:, columns].astype(jnp.float32), y[:, columns]
  return samplers.PriorBatch(x, y, y)


def prior(config, name: str) -> tuple[Callable[..., Any], dict, dict]:
  """How curves are drawn, how steps are standardized, and how a network is fitted."""
  if name == "sizes":
    contexts = dict(min_context=2, max_context=_SEEN_ANCHORS + 1)
    return draw_by_size, {}, dict(num_steps=config.size_steps, **contexts)
  draw = functools.partial(data.sample_learning_curves, length=config.length)
  middle = 0.5 * (config.length + 1)
  scales = dict(input_shift=middle, input_scale=2 * middle / np.sqrt(12.0))
  return draw, scales, dict(num_steps=config.num_steps, min_context=1)


def trainer(config, name: str, borders, mesh) -> PriorTrainer:
  """The network of a prior, "epochs" or "sizes", and its training."""
  draw, scales, arguments = prior(config, name)
  module = models.PFN(
    config.num_bars,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    dropout_rate=config.dropout,
    target_shift=0.5,
    target_scale=1 / np.sqrt(12.0),
    **scales,
  )
  return PriorTrainer(
    module,
    functools.partial(draw, batch_size=config.batch_size // 4),
    functools.partial(losses.bar_nll, borders=borders),
    batch_size=config.batch_size,
    learning_rate=config.learning_rate,
    steps_per_call=min(100, arguments["num_steps"]),
    mesh=mesh,
    **arguments,
  )


def fit(config, context: Context, name: str) -> Fitted:
  """Trains a network on every seed, with bars that hold equal shares of the prior's values."""
  draw = functools.partial(prior(config, name)[0], batch_size=10_000)
  borders = jax.jit(lambda key: uncertainty.bar_borders(draw(key).y, config.num_bars))(context.key)
  fitting = trainer(config, name, borders, context.mesh)
  return Fitted(fitting.module, fitting.train(context, name), borders)


@functools.partial(jax.jit, static_argnums=0)
def _logits(module, params, x, values, observed) -> jax.Array:
  one = jax.vmap(lambda x, y, c: module.apply({"params": params}, x[None], y[None], c)[0])
  return one(x, jnp.nan_to_num(values), observed)


def logits_of(network: Fitted, seed: int, curves: Curves, setting=()) -> np.ndarray:
  """Bar logits `[n, T, K]` by the network of a seed, under a setting of its prior."""
  settings = np.broadcast_to(np.float32(setting), (*curves.values.shape, len(setting)))
  x = np.concatenate([curves.positions[..., None], settings], axis=-1, dtype=np.float32)
  arrays = x, curves.values, curves.observed
  return np.asarray(_logits(network.module, network.params[seed], *arrays))
