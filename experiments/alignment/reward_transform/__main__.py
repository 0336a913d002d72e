"""Rewards transformed and combined: good in every property, and no further than good.

A Bradley-Terry reward is a log-odds. The log-sigmoid of a reward less the one of a good reference
response is the log-probability to beat that response: it saturates where a response is good
already, and its sum over properties is the log-probability to be good in all of them. Dialogues
have two true rewards, which conflict in half of the prompts. Policies are trained on rewards that
were learned from comparisons, and judged by the true ones at equal divergence from the reference.
"""

import dataclasses
import functools
import sys

import numpy as np

from experiments import catalogue
from experiments.alignment.reward_transform import methods
from experiments.alignment.reward_transform.methods import (
  ABOVE,
  IMPROVED,
  JOINT,
  LEARNED,
  LOG_SIGMOID,
  METHODS,
  ONE_GAP,
  RAW,
  SATURATED,
  STANDARDIZED,
  SUMS,
  TILTED,
  TRAINED,
  TRUE,
)
from experiments.alignment.reward_transform.reference import PROPERTIES, train_reference
from experiments.kit import dialogue, plots, sizes
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "reward_transform"
SEEDS = {"laptop": 6}
TRAINED_ON = {TRUE: "true rewards, trained", LEARNED: "learned rewards, trained"}
TILTED_BY = {TRUE: "true rewards, tilted", LEARNED: "learned rewards, tilted"}
REFERENCE = "reference"
LOW, HIGH = 1.0, 2.0  # Nats at which methods are compared.


@dataclasses.dataclass(frozen=True)
class Config(dialogue.DialogueSizes):
  """The dialogues, the reference, its reward models, and training."""

  scale_ranges: tuple[float, ...] = (3.0, 10.0)  # Of two properties together, and of one alone.
  stored: int = 100  # Those of them whose rewards transformations know.
  judged: int = 128  # Fresh responses of a policy to a prompt that are judged.
  pairs: int = 16_000  # Comparisons that a reward model learns from.
  validation_pairs: int = 500  # Others to choose its update on.
  reward_updates: int = 3000  # Updates of a reward model.
  reward_eval: int = 150  # Updates between its evaluations; divides reward_updates.
  reward_batch: int = 128  # Comparisons per update.
  reward_rate: float = 3e-3  # AdamW with a cosine to 0.
  reward_decay: float = 0.1  # Its weight decay.
  aims: tuple[float, ...] = (0.4, 1.0, 2.0, 3.0)  # Nats to which the penalties would tilt.
  tilts: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)  # Nats of the tilted pools.
  best_of: int = 64  # Responses of which the best one is taken.


PRESETS = {
  "smoke": Config(
    num_prompts=4, response_length=3, response_tokens=4, decoder=(8, 1), num_heads=2,
    reference_updates=2, reference_rows=8, pool=8, stored=4, judged=4,
    pairs=8, validation_pairs=4, reward_updates=2, reward_eval=1, reward_batch=4, updates=2,
    samples=2, aims=(1.0, 2.0), tilts=(1.0, 2.0), best_of=4,
  ),
  "laptop": Config(),
  "paper": Config(
    num_prompts=4096, response_length=128, response_tokens=8192, decoder=(768, 12), num_heads=12,
    reference_updates=20_000, reference_rate=3e-4, pairs=1_000_000,
    updates=2000, learning_rate=1e-5,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  dialogue.check_dialogues(config, aims=config.aims, tilts=config.tilts)
  if len(config.scale_ranges) != 2 or min(config.scale_ranges) < 1:
    raise ValueError(f"scale_ranges must hold two numbers from 1, got {config.scale_ranges}.")
  sizes.check_at_most(config.pool, stored=config.stored)
  sizes.check_at_most(config.pairs, reward_batch=config.reward_batch)
  sizes.check_divides(config.reward_eval, reward_updates=config.reward_updates)
  if not {LOW, HIGH} <= set(config.tilts):
    raise ValueError(f"tilts must hold {LOW} and {HIGH}, got {config.tilts}.")


def run(config: Config, context: Context) -> Results:
  """Trains references and reward models, then every method, and tilts the pools exactly."""
  results = Results()

  seeds = np.asarray(context.seed_numbers, np.int32)
  train = functools.partial(train_reference, config)
  references = context.over_seeds("references", train, arguments=seeds)
  measured = {"valid": 100 * references["valid"].mean((1, 2))}
  names = (f"pair accuracy, {name}" for name in PROPERTIES)
  accuracies = dict(zip(names, references["accuracy"].T, strict=True))
  results.add({REFERENCE: measured | accuracies})
  train = functools.partial(methods.train_policy, config)
  names = [f"{source}, {method}" for source, method in TRAINED]
  trained = dialogue.train_methods(context, train, references, names)
  for (source, method), scores in zip(TRAINED, trained.values(), strict=True):
    above = scores.pop(ABOVE)
    where = {"policy": TRAINED_ON[source], "aims": config.aims, "kls": (LOW, HIGH)}
    dialogue.add_trained(results, {method: scores}, **where)
    if source == TRUE:
      results.extras[method] = np.sort(above[:, 0], axis=1).mean(0)
  tilt = functools.partial(methods.tilt_pool, config)
  scores = context.over_seeds("pools", tilt, arguments=references)
  results.add({REFERENCE: scores["reference"]}, policy=REFERENCE)
  for i, (source, method) in enumerate(TILTED):
    tilted = {name: values[:, i] for name, values in scores["tilted"].items()}
    where = {"policy": TILTED_BY[source], "kls": config.tilts}
    dialogue.add_tilted(results, {method: tilted}, **where)
    if source == TRUE:
      best = {name: values[:, i] for name, values in scores["best"].items()}
      results.add({method: best}, policy=f"best of {config.best_of} by true rewards")
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, at equal measured divergences."""

  def at(quantity, method, kl=HIGH, source=LEARNED):
    return results.select(quantity, method=method, policy=TRAINED_ON[source], kl=kl)

  def reached(aim):
    return [
      results.select("KL", method=method, policy=TRAINED_ON[source], aim=aim)
      for source, method in TRAINED
    ]

  accuracies = [results.select(f"pair accuracy, {x}", method=REFERENCE) for x in PROPERTIES]
  able = (
    precondition("reward models order 75% of pairs", np.min(accuracies, axis=0), at_least=75),
    precondition("and no more than 95%", np.max(accuracies, axis=0), at_most=95),
    precondition(
      "the smallest divergence is below 1 nat for all methods",
      np.max(reached(min(config.aims))), at_most=LOW,
    ),
    precondition(
      "the largest divergence is above 2 nats for all methods",
      np.min(reached(max(config.aims))), at_least=HIGH,
    ),
  )  # fmt: skip
  sums = np.max([at(JOINT, name) for name in SUMS], axis=0)
  start = results.select(JOINT, method=REFERENCE, policy=REFERENCE)
  room = (
    precondition("the reference is above both medians in 35% at most", start, at_most=35),
    precondition("and the best weighted sum in 75% at most", sums, at_most=75),
  )
  hacking = precondition(
    "the raw reward's learned less true reward is 0.3 standard deviations or more",
    at(ONE_GAP, RAW), at_least=0.3,
  )  # fmt: skip
  return [
    compare(
      "two properties, share of responses above the reference's median in both at 2 nats: the sum "
      "of log-sigmoids is 5 points above the best of three weighted sums",
      at(JOINT, LOG_SIGMOID), sums, margin=5.0, headline=True, requires=(*able, *room),
      paper="win rates in both properties well above a weighted sum's at every divergence",
    ),
    compare(
      "likewise 3 points above the sum of rewards standardized by prompt",
      at(JOINT, LOG_SIGMOID), at(JOINT, STANDARDIZED), margin=3.0, requires=(*able, *room),
    ),
    compare(
      "one property, true reward, prompts of which 75% of the responses are above the reference's "
      "median at 1 nat: the log-sigmoid has 10 points more than the raw reward",
      at(IMPROVED, SATURATED, LOW, TRUE), at(IMPROVED, RAW, LOW, TRUE), margin=10.0,
      requires=able[2:],
    ),
    compare(
      "one property, learned less true reward at 2 nats: the log-sigmoid's is 0.1 standard "
      "deviations below the raw reward's",
      at(ONE_GAP, SATURATED), at(ONE_GAP, RAW), better="lower", margin=0.1,
      requires=(*able, hacking),
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Joint success against the measured divergence, and how far single prompts are improved."""
  figure, axes = plots.panels(2)
  colors = {method: f"C{i}" for i, method in enumerate(METHODS)}
  both = {method: colors[method] for method in METHODS[:6]}
  dialogue.curves(axes[0], results, JOINT, methods=both, policy=TRAINED_ON[LEARNED])
  for method, color in both.items():
    options = {"policy": TILTED_BY[LEARNED], "color": color, "linestyle": ":"}
    dialogue.tilted_curve(axes[0], results, JOINT, method=method, **options)
  axes[0].set_title("learned rewards: trained, and tilted exactly (dotted)", fontsize=9)
  axes[0].legend(fontsize=7)
  for method in (RAW, SATURATED):
    if method in results.extras:
      axes[1].plot(results.extras[method], color=colors[method], label=method)
  axes[1].set(xlabel="prompts, sorted", ylabel=f"{ABOVE} (%)", ylim=(0, 100))
  axes[1].set_title("true reward, smallest divergence", fontsize=9)
  axes[1].legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """The step that trains the reference, for a dry run."""
  return dialogue.abstract_reference(config, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
