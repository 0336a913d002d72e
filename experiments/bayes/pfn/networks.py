"""The networks of the experiment, and how they are fitted to their priors."""

import functools
from collections.abc import Callable

import jax

from experiments.kit.prior_fitting import PriorTrainer
from jaxlab import algorithms, losses, models

PFN, SMALL = "PFN", "small PFN"
# Fields of the configuration that describe the training.
_FIELDS = ("num_steps", "batch_size", "accumulate", "learning_rate", "warmup_fraction")
_FIELDS += ("max_context", "scheme", "steps_per_call")


def network(config, num_outputs: int, *, small: bool = False, **options) -> models.PFN:
  """The network of the configuration, or the small one."""
  return models.PFN(
    num_outputs,
    embed_dim=config.small_embed_dim if small else config.embed_dim,
    num_layers=config.small_num_layers if small else config.num_layers,
    num_heads=config.num_heads,
    **options,
  )


def trainer(config, module, prior_fn, loss_fn, mesh, **changes) -> PriorTrainer:
  """The training that the configuration describes, apart from the changes."""
  options = {name: getattr(config, name) for name in _FIELDS} | changes
  return PriorTrainer(module, prior_fn, loss_fn, mesh=mesh, **options)


def bar_nll(borders) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """`(logits, targets) -> NLL` of a bar distribution."""
  return lambda logits, targets: losses.bar_nll(logits, targets, borders)


def prior_borders(config, key, prior_fn) -> jax.Array:
  """Borders of bars that hold equal shares of the prior."""
  borders = functools.partial(
    algorithms.prior_bar_borders, prior_fn=prior_fn, num_bars=config.num_bars
  )
  return jax.jit(borders)(key)
