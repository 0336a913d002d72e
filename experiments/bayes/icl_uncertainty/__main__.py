"""Is a network that predicts mean and variance in context a Bayesian, also off its training law?

Sequences of pairs come from a linear function and a noise level, both drawn from a conjugate prior
whose Bayes predictor is known. Networks of three laws are compared each with its own: `fresh`, of
the prior; `wide`, whose prior holds louder noise and wider inputs as well; `pool`, of two tasks.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.bayes.icl_uncertainty import prediction
from experiments.bayes.icl_uncertainty.laws import CONDITIONS, FRESH, LAWS, NOISE, POOL, SCALE, WIDE
from experiments.bayes.icl_uncertainty.prediction import HALF, LEAST_SQUARES, RIDGE
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import add_along, each_seed, run_seeds
from jaxlab import training
from jaxlab._checks import check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "icl_uncertainty"
SEEDS = {"laptop": 8}
VARIANCES = "variance", "Bayes variance"


@dataclasses.dataclass(frozen=True)
class Config:
  """The laws, the network and its training, and the evaluation."""

  num_features: int = 2  # Inputs of the functions.
  num_points: int = 10  # Pairs of a sequence.
  shape: float = 3.0  # Of the inverse-gamma prior of the noise variance.
  rate: float = 2.0  # Of that prior.
  weight_precision: float = 2.0  # Of the weights, in units of that of the noise.
  loudness: float = 4.0  # Factor of the noise levels in half of the wide law.
  input_scales: tuple[float, ...] = (1.0, 2.0)  # Of the wide law.
  shifted_noise: float = 4.0  # The noise level of the noise shift.
  shifted_scale: float = 2.0  # The scale of the input shift.
  pool_size: int = 2  # Tasks of the pool.
  embed_dim: int = 64  # Width of the network.
  num_layers: int = 3  # Its layers.
  num_heads: int = 4  # Its attention heads.
  num_steps: int = 10_000  # Updates.
  batch_size: int = 64  # Sequences per update.
  learning_rate: float = 1e-3  # Peak of the schedule.
  warmup_fraction: float = 0.05  # Share of the updates that the learning rate rises.
  num_test: int = 4000  # Test sequences of a condition.
  penalties: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # Of ridge regression, to choose from.
  num_validation: int = 2000  # Sequences that choose it, and its variances.
  from_prefix: int = 4  # Pairs seen at least where ridge regression is compared.
  num_shown: int = 200  # Sequences of the figure.


PRESETS = {
  "smoke": Config(
    num_points=6, embed_dim=8, num_layers=1, num_heads=2, num_steps=2, batch_size=4, num_test=20,
    penalties=(1.0, 2.0), num_validation=10, num_shown=5,
  ),
  "laptop": Config(),
  "paper": Config(
    num_features=20, num_points=100, pool_size=16, embed_dim=256, num_layers=12, num_heads=8,
    num_steps=500_000, learning_rate=1e-4, from_prefix=40,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("warmup_fraction",))
  for name in ("rate", "weight_precision", "shifted_noise", "penalties", "learning_rate"):
    check_range(name, np.array(getattr(config, name)), "(0, inf)")
  check_range("shape", config.shape, "(1, inf)")  # Or the noise would have no mean variance.
  sizes.check_divides(config.num_heads, embed_dim=config.embed_dim)
  sizes.check_divides(2, num_steps=config.num_steps)
  sizes.check_at_most(config.num_points - 1, from_prefix=config.from_prefix)
  sizes.check_at_most(config.num_points - 2, num_features=config.num_features)
  sizes.check_at_most(config.num_test, num_shown=config.num_shown)


def run(config: Config, context: Context) -> Results:
  """Trains a network of every law, and scores it, exact and simpler predictors."""
  results = Results()
  for law in LAWS:
    found = run_seeds(context, f"networks/{law}", functools.partial(prediction.train, config, law))
    shown = {name: found.pop(name) for name in VARIANCES}
    for condition in (law, NOISE) if law != POOL else ():
      place = CONDITIONS.index(condition)
      pair = shown["variance"][0, -1, place], shown["Bayes variance"][0, place]
      results.extras[f"{law}: {condition}"] = np.stack(pair)
    for name, half in ((law, 1), *([(HALF, 0)] if law == FRESH else [])):
      add(config, results, name, {key: x[:, half] for key, x in found.items()})
  found = each_seed(context, "exact", functools.partial(prediction.references, config))
  for name, scores in found.items():
    add(config, results, name, scores)
  found = each_seed(context, "baselines", functools.partial(prediction.baselines, config))
  for name, row in found.items():
    row, first = dict(row), config.num_features + 1 if name == LEAST_SQUARES else 0
    along = {"seen": range(first, config.num_points)}
    add_along(results, {name: {"NLL": row.pop("NLL")[:, first:]}}, along, condition=FRESH)
    results.add({name: row})
  return results


def add(config: Config, results: Results, name: str, found) -> None:
  """Adds the records of a row: of all conditions, and under the prior by the pairs seen."""
  found = dict(found)
  by_prefix = found.pop("NLL")
  along = {"seen": range(config.num_points)}
  own = by_prefix[:, CONDITIONS.index(FRESH)]
  add_along(results, {name: {"NLL": own}}, along, condition=FRESH)
  scores = found | {"mean NLL": by_prefix.mean(-1)}
  add_along(results, {name: scores}, {"condition": CONDITIONS})


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(quantity, law, condition):
    return results.select(quantity, method=law, condition=condition)

  def late(method):
    prefixes = range(config.from_prefix, config.num_points)
    rows = [results.select("NLL", method=method, condition=FRESH, seen=n) for n in prefixes]
    return np.mean(rows, axis=0)

  def trained(law, limit):
    text = f"{law}: NLL on its own law is within {limit:g} of the exact predictor"
    return precondition(text, of("excess", law, law), at_most=limit)

  fresh, wide, pool = trained(FRESH, 0.03), trained(WIDE, 0.03), trained(POOL, 0.05)
  divergence = of("KL", WIDE, NOISE)
  learnable = precondition("wide: KL of at most .1 at the same noise", divergence, at_most=0.1)
  own, prior = (of(f"distance to {whose} Bayes", POOL, FRESH) for whose in ("own", "prior's"))
  seen = config.num_points - 1
  return [
    compare(f"noise {config.shifted_noise:g}, {seen} pairs seen: the KL of fresh from its Bayes "
            "predictor is three times that of wide from its own (logarithms)",
            np.log(of("KL", FRESH, NOISE)), np.log(divergence), margin=np.log(3), headline=True,
            requires=(fresh, wide, learnable), paper="not Bayesian off the training law"),
    compare("fresh: NLL on its own law is within .03 of the Bayes predictor",
            of("excess", FRESH, FRESH), 0.03, better="lower",
            paper="optimal in distribution"),
    compare(f"{config.from_prefix} pairs or more seen: NLL of fresh is .03 below that of ridge "
            "regression with a variance that does not depend on the context", late(FRESH),
            late(RIDGE), better="lower", margin=0.03, requires=(fresh,)),
    compare("new tasks: the 90% intervals of fresh cover .05 more than those of pool",
            of("90% coverage", FRESH, FRESH), of("90% coverage", POOL, FRESH), margin=0.05,
            requires=(fresh, pool)),
    compare("new tasks: means of pool are nearer to those of the exact pool predictor than to "
            "those of the prior's, by a factor of 1.5 (logarithms)", np.log(own), np.log(prior),
            better="lower", margin=np.log(1.5), requires=(pool,)),
    compare(f"inputs scaled by {config.shifted_scale:g}: fresh exceeds its Bayes predictor's NLL "
            "by .05 more than wide does", of("excess", FRESH, SCALE), of("excess", WIDE, SCALE),
            margin=0.05, requires=(fresh, wide), paper="a shift that training on several cures"),
  ]  # fmt: skip


def figure(results: Results):
  """NLL by the pairs seen; variances against those of the exact predictor, with the most seen."""
  figure, (left, right) = plots.panels(2, width=5.5, height=4.4)
  for method in (FRESH, f"exact, {FRESH}", RIDGE, LEAST_SQUARES):
    plots.curves(left, results, "NLL", x="seen", method=method, condition=FRESH)
  tops = [line.get_ydata() for line in left.lines[:3]]
  left.set(title="tasks of the prior", xlabel="pairs seen", ylabel="NLL (nats)")
  left.set_ylim(np.min(tops) - 0.1, np.max(tops) + 0.5)
  left.legend(fontsize=7)
  for name, (variances, exact) in results.extras.items():
    right.plot(exact, variances, ".", markersize=3, label=name)
  ends = [np.min(list(results.extras.values())), np.max(list(results.extras.values()))]
  right.plot(ends, ends, ":", color="black", label="equal")
  right.set(xscale="log", yscale="log", xlabel="variance of the exact predictor")
  right.set(ylabel="variance of the network", title="last point")
  right.legend(fontsize=7, title="network: sequences", title_fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the network, for a dry run."""
  module, shape = prediction.network(config), (config.batch_size, config.num_points)
  tokens = config.batch_size, 2 * config.num_points, config.num_features + 1
  batch = tuple(jax.ShapeDtypeStruct(x, jnp.float32) for x in (tokens, shape))

  def loss(params, model_state, batch, key):
    del model_state, key
    outputs = module.apply({"params": params}, batch[0])[:, ::2]
    return training.LossOutput(jnp.mean(prediction.nll(outputs, batch[1]), axis=1))

  return abstract_step(module, loss, prediction.optimizer(config), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
