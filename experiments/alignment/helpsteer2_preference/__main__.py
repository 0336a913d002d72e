"""Reward models from ratings and preferences of the same responses.

Bradley-Terry's loss, times the strength of each preference, continues a regression of ratings, and
is then extrapolated beyond where it ends. Against each alone, and against other ways to use both.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.alignment.helpsteer2_preference import arms
from experiments.alignment.helpsteer2_preference.arms import (
  ATTRIBUTES,
  DIFFERENCES,
  JOINT,
  MARGIN,
  RATINGS,
  REGULAR,
  SCALED,
  STRENGTHS,
  Pairs,
)
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import choose, grid
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "helpsteer2_preference"
SEEDS = {"laptop": 60}
COMBINED, EXTRAPOLATED = "regression, then scaled Bradley-Terry", "the same, extrapolated"
MEAN, BEST, UTILITY = "mean of two rewards", "best single arm", "true utility"
SINGLE = RATINGS, ATTRIBUTES, REGULAR, MARGIN, SCALED  # The arms of the paper.
TEST, SHIFTED, VALIDATION = "accuracy (%)", "accuracy, shifted (%)", "validation accuracy (%)"
TWICE = "twice the updates, "
_NAMES = {"test": TEST, "shifted": SHIFTED, "validation": VALIDATION}


@dataclasses.dataclass(frozen=True)
class Config:
  """The pairs, the reward models, and what is searched over."""

  num_pairs: int = 400  # To train on, all of them compared.
  num_rated: int = 320  # Those of them with ratings, by which both kinds of labels are as good.
  num_validation: int = 500  # With noisy labels too.
  num_test: int = 4000  # Judged by the true utility; and as many of shifted domains.
  num_features: int = 32  # Features of a response.
  num_domains: int = 4  # Domains of pairs.
  rating_noise: float = 1.4  # Deviation of the noise of raters and annotators.
  widths: tuple[int, ...] = (64, 64)  # Hidden layers of a reward model.
  num_steps: int = 300  # Updates of an arm; of a stage of the combined model.
  batch_size: int = 50  # Pairs per update.
  eval_every: int = 50  # Updates between evaluations; divides num_steps.
  learning_rates: tuple[float, ...] = (2e-3, 6e-3)  # Every arm's search: AdamW, cosine to 0.
  further_rates: tuple[float, ...] = (1e-4, 3e-4)  # Of the second stage of the combined model.
  weight_decays: tuple[float, ...] = (3.0, 7.0, 12.0)  # Every arm's search.


PRESETS = {
  "smoke": Config(
    num_pairs=40, num_rated=30, num_validation=20, num_test=30, num_features=4, widths=(8,),
    num_steps=2, batch_size=10, eval_every=1, learning_rates=(1e-2,), further_rates=(1e-3,),
    weight_decays=(0.1,),
  ),
  "laptop": Config(),
  # As many pairs as HelpSteer2 has.
  "paper": Config(
    num_pairs=10_000, num_rated=10_000, num_validation=1000, num_test=10_000, num_features=4096,
    widths=(4096, 4096), num_steps=3000, batch_size=64, eval_every=300,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  sizes.check_divides(config.eval_every, num_steps=config.num_steps)
  sizes.check_at_most(config.num_pairs, num_rated=config.num_rated)
  sizes.check_lengths(learning_rates=config.learning_rates, further_rates=config.further_rates)
  sizes.check_at_most(config.num_rated, batch_size=config.batch_size)


def run(config: Config, context: Context) -> Results:
  """Searches for every arm's settings, then combines them."""
  results = Results()
  task = datasets.stack_seeds(
    lambda seed: arms.draw(config, jax.random.key(seed)), context.seed_numbers
  )
  settings, twice, further = (
    [
      {"learning_rate": rate, "weight_decay": decay, "num_steps": num_steps}
      for rate, decay in itertools.product(rates, config.weight_decays)
    ]
    for rates, num_steps in (
      (config.learning_rates, config.num_steps),
      (config.learning_rates, 2 * config.num_steps),
      (config.further_rates, config.num_steps),
    )
  )
  own = {}
  for arm in (*SINGLE, STRENGTHS, DIFFERENCES, JOINT):
    evaluate = functools.partial(arms.evaluate_arm, config, arm=arm)
    scores = grid(context, f"arms/{arm}", evaluate, task, settings + twice)
    halves = zip(*(np.split(values, 2, axis=1) for values in scores.values()))
    for prefix, searched, half in zip(("", TWICE), (settings, twice), halves):
      own[prefix + arm] = choose(dict(zip(scores, half)), searched, select="validation")
  chosen = {
    arm: {name: own[arm].get(f"chosen/{name}", np.full(context.seeds, value))
          for name, value in settings[0].items()}
    for arm in (RATINGS, SCALED)
  }  # fmt: skip
  inputs = task, chosen
  for name, evaluate, searched in (
    (COMBINED, arms.evaluate_combined, further),
    (MEAN, arms.evaluate_mean, settings[:1]),
  ):
    evaluate = functools.partial(evaluate, config)
    scores = grid(context, f"both/{name}", evaluate, inputs, searched)
    own[name] = choose(scores, searched, select="validation")
  combined = own[COMBINED]
  own[EXTRAPOLATED] = {name: combined.pop(f"{arms.FURTHER}{name}") for name in _NAMES}
  own[EXTRAPOLATED]["chosen factor"] = combined.pop("chosen factor")
  for prefix in ("", TWICE):
    singles = [own[prefix + arm] for arm in SINGLE]
    best = np.argmax([single["validation"] for single in singles], axis=0)
    own[prefix + BEST] = {
      name: np.choose(best, [single[name] for single in singles]) for name in _NAMES
    }
  for method, quantities in own.items():
    results.add({method: {_NAMES.get(n, n): values for n, values in quantities.items()}})
  strengths = np.abs(task.train.strengths)
  kept = np.sum(strengths > 0, axis=1)
  shares = {f"share of strength {m}": np.sum(strengths == m, axis=1) / kept for m in (1, 2, 3)}
  results.add({UTILITY: shares | {TEST: 100 * np.mean(task.test.strengths != 0, axis=1)}})
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def accuracy(method: str) -> np.ndarray:
    return results.select(TEST, method=method)

  # Whichever of the two is better.
  single = max(accuracy(BEST), accuracy(TWICE + BEST), key=np.mean)
  gap = accuracy(RATINGS) - accuracy(REGULAR)
  shares = [results.select(f"share of strength {m}", method=UTILITY) for m in (1, 2, 3)]
  requires = (
    precondition("regression is at most 1.5 points better than regular", gap, at_most=1.5),
    precondition("and at most 1.5 worse", gap, at_least=-1.5),
    precondition("the best single arm is right on 80% or more", single, at_least=80),
    precondition("and on 93% or less", single, at_most=93),
    precondition("each strength has a share of .2", np.min(shares, axis=0), at_least=0.2),
    precondition("true utilities are right on 99%", accuracy(UTILITY), at_least=99),
  )
  return [
    compare(
      "Bradley-Terry started from the regression and extrapolated is .3 points above the best "
      "single arm, which has half as many updates or as many",
      accuracy(EXTRAPOLATED),
      single,
      margin=0.3,
      headline=True,
      requires=requires,
      paper="94.1 on RewardBench, where the arms are below",
    ),
    compare(
      "scaled Bradley-Terry is .3 points above regular",
      accuracy(SCALED),
      accuracy(REGULAR),
      margin=0.3,
      requires=requires[2:],
    ),
    compare(
      "and above Bradley-Terry with a margin",
      accuracy(SCALED),
      accuracy(MARGIN),
      requires=requires[2:],
    ),
    compare(
      "the combined model is above the mean of the rewards of the two arms that it combines",
      accuracy(EXTRAPOLATED),
      accuracy(MEAN),
      requires=requires,
    ),
    compare(
      "extrapolated it is above where its training ended",
      accuracy(EXTRAPOLATED),
      accuracy(COMBINED),
      requires=requires,
    ),
  ]


def figure(results: Results):
  """Accuracies less that of regular Bradley-Terry, on test pairs and on shifted ones."""
  figure, (ax,) = plots.panels(1, width=9.0, height=4.5)
  gains, gain = Results(), "points above regular Bradley-Terry"
  for quantity in (TEST, SHIFTED):
    regular = results.select(quantity, method=REGULAR)
    for method in results.distinct("method", quantity=quantity):
      if method not in (REGULAR, UTILITY):
        own = results.select(quantity, method=method)
        gains.add({method: {gain: own - regular}}, pairs=quantity)
  plots.intervals(ax, gains, gain, by="method", color="pairs")
  ax.axhline(0.0, color="gray", linewidth=0.8)
  ax.tick_params(axis="x", labelsize=7)
  ax.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """One update of scaled Bradley-Terry, for a dry run."""
  size = config.batch_size
  sides = [jax.ShapeDtypeStruct((size, config.num_features), jnp.float32)] * 2
  ratings = [jax.ShapeDtypeStruct((size, 5), jnp.float32)] * 2
  labels = (jax.ShapeDtypeStruct((size,), dtype) for dtype in (jnp.bool_, jnp.int32))
  batch = Pairs(*sides, *ratings, *labels)
  loss = arms.pair_loss(config, SCALED)
  return abstract_step(arms.network(config, SCALED), loss, optax.adamw(1e-3), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
