"""Alignment for the procedure that decodes: rewards are calibrated, then transformed.

A policy that will be decoded by best-of-N needs one good response among N; one that is attacked by
worst-of-N must have no bad one. Each is optimal for ordinary reinforcement learning with its own
transformation of the reward, once this is calibrated: replaced by the share of the reference's
responses to the same prompt that it beats. The reward that training sees is a monotone map of the
true one, and another map for another prompt; win rates are by the true reward.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.alignment.infalign.methods import (
  BEST,
  BEST_OF_4,
  BEST_OF_M,
  CALIBRATED,
  OPTIMUM,
  PLAIN,
  RAW,
  STANDARDIZED,
  TILTED,
  TRAINED,
  WIN_RATES,
  WORST,
  WORST_OF_4,
  solve_grid,
  tilt_pool,
  train_policy,
  train_reference,
)
from experiments.kit import dialogue, plots, sizes
from jaxlab import metrics
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "infalign"
SEEDS = {"laptop": 6}
TRAINING, POOL, GRID = "trained", "tilted pool", "grid"
LOW, HIGH = 0.5, 1.0  # Nats at which methods are compared.


@dataclasses.dataclass(frozen=True)
class Config(dialogue.DialogueSizes):
  """The dialogues, the reference, what is stored of it, and training."""

  scale_range: float = 30.0  # Ratio of the largest scale of the reward to the smallest.
  stored: tuple[int, ...] = (25, 100, 400)  # Stored rewards of a prompt; the second number trains.
  aims: tuple[float, ...] = (0.1, 0.2, 0.5, 0.9, 1.3)  # Nats to which the penalties would tilt.
  tilts: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # Nats of the tilted pools.
  cells: int = 1000  # Of the grid on which a perfectly calibrated reward is solved.
  best_of: tuple[int, ...] = (2, 3, 4, 6, 8)  # M of policies that give the best of M responses.


PRESETS = {
  "smoke": Config(
    num_prompts=4, response_length=3, response_tokens=4, decoder=(8, 1), num_heads=2,
    reference_updates=2, reference_rows=8, stored=(2, 4, 6), pool=8, judged=8, updates=2, samples=2,
    aims=(0.4, 1.3), tilts=(0.5, 1.0), cells=20, best_of=(2,),
  ),
  "laptop": Config(),
  "paper": Config(
    num_prompts=4096, response_length=128, response_tokens=8192, decoder=(768, 12), num_heads=12,
    reference_updates=20_000, reference_rate=3e-4, updates=2000, learning_rate=1e-5,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  dialogue.check_dialogues(config, aims=config.aims, tilts=config.tilts)
  if len(config.stored) != 3:
    raise ValueError(f"stored must hold three numbers, got {config.stored}.")
  for number in config.stored:
    sizes.check_at_most(config.pool, stored=number)
  if config.scale_range < 1:
    raise ValueError(f"scale_range must be at least 1, got {config.scale_range}.")
  if not {LOW, HIGH} <= set(config.tilts):
    raise ValueError(f"tilts must hold {LOW} and {HIGH}, got {config.tilts}.")


def run(config: Config, context: Context) -> Results:
  """Trains references, then every method at every penalty, and tilts the pools exactly."""
  results = Results()

  seeds = np.asarray(context.seed_numbers, np.int32)
  train = functools.partial(train_reference, config)
  references = context.over_seeds("references", train, arguments=seeds)
  results.add({"reference": {"valid": 100 * references["valid"].mean((1, 2))}}, policy=TRAINING)
  train = functools.partial(train_policy, config)
  scores = dialogue.train_methods(context, train, references, TRAINED)
  dialogue.add_trained(results, scores, policy=TRAINING, aims=config.aims, kls=(LOW, HIGH))
  tilt = functools.partial(tilt_pool, config)
  tilted = context.over_seeds("pools", tilt, arguments=references)
  exact = context.cached("grid", jax.jit(functools.partial(solve_grid, config)))
  pools = {m: {name: x[:, i] for name, x in tilted.items()} for i, m in enumerate(TILTED)}
  for policy, by_method in ((POOL, pools), (GRID, exact)):
    dialogue.add_tilted(results, by_method, policy=policy, kls=config.tilts)
  for m in config.best_of:
    # The best of M responses wins against M others in M of M + 1 cases, however it is decoded.
    values = {PLAIN: 100 * m / (m + 1), BEST_OF_4: 100 * m / (m + 1)}
    results.add({BEST_OF_M: values}, policy=GRID, kl=round(float(metrics.best_of_n_kl(m)), 3))
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, at equal measured divergences."""

  def rate(quantity, method, kl=HIGH, policy=TRAINING):
    return results.select(quantity, method=method, policy=policy, kl=kl)

  def reached(bound, aim):
    kls = [results.select("KL", method=m, policy=TRAINING, aim=aim) for m in TRAINED]
    return bound(kls)

  low, high = reached(np.max, min(config.aims)), reached(np.min, max(config.aims))
  brackets = (
    precondition("the smallest divergence is below 0.5 nats for all methods", low, at_most=LOW),
    precondition("the largest divergence is above 1 nat for all methods", high, at_least=HIGH),
    precondition(
      "98% of the reference's responses have the right length",
      results.select("valid", method="reference"), at_least=98,
    ),
  )  # fmt: skip
  identity = rate(BEST_OF_4, CALIBRATED)
  gap = rate(BEST_OF_4, BEST, policy=POOL) - rate(BEST_OF_4, CALIBRATED, policy=POOL)
  room = precondition(
    "the calibrated reward's best-of-4 win rate is 75 to 92%", identity, at_least=75, at_most=92
  )
  phenomenon = precondition("exact tilts differ by 4 points or more", gap, at_least=4)
  return [
    compare(
      "best-of-4 win rate at 1 nat: exp(10 u) of the calibrated reward is 2 points above the "
      "better one of the raw and the calibrated reward",
      rate(BEST_OF_4, BEST), np.maximum(identity, rate(BEST_OF_4, RAW)), margin=2.0, headline=True,
      requires=(*brackets, room, phenomenon),
      paper="3 to 8 points above the best other method, Anthropic dialogues and Reddit summaries",
    ),
    compare(
      "worst-of-4 win rate at 0.5 nats: -exp(-10 u) is 2 points above the calibrated reward",
      rate(WORST_OF_4, WORST, LOW), rate(WORST_OF_4, CALIBRATED, LOW), margin=2.0,
      requires=brackets,
    ),
    compare(
      "win rate of single responses at 1 nat: the calibrated reward is 5 points above the raw one",
      rate(PLAIN, CALIBRATED), rate(PLAIN, RAW), margin=5.0, requires=brackets,
    ),
    compare(
      "best-of-4 win rate at 1 nat: exp(10 u) is 2 points above the reward standardized by prompt, "
      "which the maps of the reward distort",
      rate(BEST_OF_4, BEST), rate(BEST_OF_4, STANDARDIZED), margin=2.0, requires=brackets,
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Win rates of the three procedures against the measured divergence."""
  figure, axes = plots.panels(3)
  colors = {method: f"C{i}" for i, method in enumerate(TRAINED)}
  for ax, quantity in zip(axes, WIN_RATES):
    dialogue.curves(ax, results, quantity, methods=colors, policy=TRAINING)
    options = {"policy": GRID, "color": "gray", "zorder": 0, "label": "best possible"}
    dialogue.tilted_curve(ax, results, quantity, method=OPTIMUM, **options)
    ax.set_xlim(0, 1.7)
  axes[0].legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """The step that trains the reference, for a dry run."""
  return dialogue.abstract_reference(config, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
