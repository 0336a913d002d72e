"""LightWaveS: do a few hundred selected features of fixed kernels do what ROCKET's 20,000 do?

Where few of many channels are informative, random kernels spend themselves on the others, and
features that are scored by the labels do not. ROCKET with as few features, random features of the
same kernels, and ROCKET's own features selected in the same way tell selection from size; the
bundled sets of the archives tell how it is where few random kernels are enough.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from experiments import catalogue
from experiments.kit import plots, sizes
from experiments.kit.prior_fitting import score_seeds
from experiments.kit.sweep import add_along
from experiments.series.lightwaves import features as by
from experiments.series.lightwaves import problems
from experiments.series.lightwaves.features import ACCURACY, LIGHT, ROCKET, SHARE
from jaxlab import models
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "lightwaves"
SEEDS = {"laptop": 10}


@dataclasses.dataclass(frozen=True)
class Config:
  """The series, the features, and what the claims compare."""

  num_channels: int = 24  # Of the synthetic series.
  num_informative: tuple[int, ...] = (3, 8, 24)  # Of these; the claims are about the first.
  num_steps: int = 64  # Of a synthetic series.
  autocorrelation: float = 0.6  # Of neighboring steps.
  amplitude: float = 1.8  # Of the motifs, in deviations of the noise.
  num_train: int = 200  # Synthetic training series.
  num_test: int = 500  # Synthetic test series.
  short_set: str = "japanese_vowels"  # Of the archive, with a claim.
  long_sets: tuple[str, ...] = ("arrow_head", "osu_leaf")  # Those on which redundancy is compared.
  other_sets: tuple[str, ...] = ("italy_power_demand",)  # For the table and the figure.
  easy_sets: tuple[str, ...] = ("basic_motions", "gun_point")  # For the table alone.
  num_features: int = 500  # That are selected in the claims; even.
  other_sizes: tuple[int, ...] = (100, 1500)  # Further numbers of features; even.
  num_kernels: int = 10_000  # Random ones of ROCKET, two features each.
  max_dilation_log2: int = 5  # Fixed kernels are dilated by 1, 2, ... up to 2 to this power.


PRESETS = {
  "smoke": Config(
    num_channels=3, num_informative=(1, 3), num_steps=24, num_train=24, num_test=30,
    short_set="italy_power_demand", long_sets=("italy_power_demand",), other_sets=(),
    easy_sets=(), num_features=20, other_sizes=(10,), num_kernels=84, max_dilation_log2=1,
  ),
  "laptop": Config(),
  "paper": Config(
    num_channels=200, num_informative=(5, 20, 200), num_steps=500, num_train=1000, num_test=1000,
  ),
}  # fmt: skip


def archive(config: Config) -> list[str]:
  """The archive's sets that claims read, in the order of the table; easy ones come after them."""
  return [*dict.fromkeys((config.short_set, *config.other_sets, *config.long_sets))]


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(
    config, zero=("max_dilation_log2",), empty=("other_sizes", "other_sets", "easy_sets")
  )
  check_range("autocorrelation", config.autocorrelation, "[0, 1)")
  check_at_least(problems.MOTIF_STEPS, num_steps=config.num_steps)
  check_at_least(2 * problems.NUM_CLASSES, num_train=config.num_train)
  for count in config.num_informative:
    sizes.check_at_most(config.num_channels, num_informative=count)
  for name in ("num_features", "other_sizes"):
    for size in np.ravel(getattr(config, name)).tolist():
      sizes.check_divides(2, **{name: size})
      sizes.check_at_most(2 * config.num_kernels, **{name: size})
  names = {"short_set": (config.short_set,), "long_sets": config.long_sets}
  names |= {"other_sets": config.other_sets, "easy_sets": config.easy_sets}
  sizes.check_known(problems.ARCHIVE, **names)


def run(config: Config, context: Context) -> Results:
  """Evaluates all methods on all problems."""
  results = Results()
  easy = [name for name in config.easy_sets if name not in archive(config)]
  # Sums depend on the number of threads.
  with threadpool_limits(1):
    for name in (*problems.synthetic(config), *archive(config), *easy):
      scores = score_seeds(context, name, functools.partial(score, config, context, name))
      num_channels, _ = problems.sizes(config, name)
      for method, quantities in scores.items():
        axes = {"features": by.sizes_of(config, method, num_channels)}
        add_along(results, {method: quantities}, axes, problem=name)
  return results


def score(config: Config, context: Context, name: str, seed: int):
  """All methods on the draw of a seed."""
  number = context.seed_numbers[seed]
  return by.score(config, problems.draw(config, name, number), number)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  few, whole = config.num_features, 2 * config.num_kernels
  first, short = next(iter(problems.synthetic(config))), config.short_set

  def of(method, features=few, quantity=ACCURACY, name=first):
    return results.select(quantity, method=method, features=features, problem=name)

  def chance(name):
    return 1 / problems.sizes(config, name)[1]

  def has_room(name):
    text = f"{name}: ROCKET is .15 better than chance and errs on .5% or more"
    bounds = {"at_least": chance(name) + 0.15, "at_most": 0.995}
    return precondition(text, of(ROCKET, whole, name=name), **bounds)

  oracle, rocket = of(by.ORACLE), of(ROCKET, whole)
  moments = of(by.MOMENTS, 2 * config.num_channels)
  able = (
    has_room(first),
    precondition("ROCKET of as few features is right on 70% if it reads the informative channels "
                 "alone", oracle, at_least=0.7),
    precondition("which is .05 above ROCKET of all features on all channels", oracle - rocket,
                 at_least=0.05),
    precondition("means and variances of channels are within .10 of chance",
                 moments - chance(first), at_most=0.1),
  )  # fmt: skip
  pair = (
    np.mean([of(method, name=name) for name in config.long_sets], axis=0)
    for method in (LIGHT, by.ANOVA)
  )
  informative, share = config.num_informative[0] / config.num_channels, of(LIGHT, quantity=SHARE)
  return [
    compare(f"{first} informative: {few} selected features are at most 3 points below ROCKET's "
            f"{whole:,}", of(LIGHT), rocket, margin=-0.03, headline=True, requires=able,
            paper="29 UEA sets: about as accurate, with 2.5% of the features"),
    compare(f"{few} selected features are 10 points above ROCKET of {few} features", of(LIGHT),
            of(ROCKET), margin=0.1, requires=able),
    compare(f"and 10 points above {few} random features of the same kernels", of(LIGHT),
            of(by.RANDOM), margin=0.1, requires=able),
    compare(f"{short}: {few} selected features are at most 3 points below ROCKET's {whole:,}",
            of(LIGHT, name=short), of(ROCKET, whole, name=short), margin=-0.03,
            requires=(has_room(short),),
            paper="JapaneseVowels: 92.2% against 96.6%"),
    compare(f"{', '.join(config.long_sets)}: less redundancy gains 1 point over the largest F",
            *pair, margin=0.01, requires=[has_room(x) for x in config.long_sets]),
    compare("the share of selected features that lie in informative channels is .3 above these "
            "channels' share", share, informative, margin=0.3, requires=able),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy by number of features: synthetic problems, and a mean over sets that claims read."""
  shown = (ROCKET, LIGHT, by.RANDOM, by.ORACLE)
  drawn = Results(r for r in results if r.method in shown and r.quantity == ACCURACY)
  names = results.distinct("problem", quantity=SHARE)
  others = [name for name in results.distinct("problem") if name not in names]
  most = max(results.distinct("features", method=ROCKET))
  ends = {
    name: results.select(ACCURACY, method=ROCKET, problem=name, features=most) for name in others
  }
  sets = [name for name, values in ends.items() if values.mean() < 0.995]
  mean = f"mean of {len(sets)} sets of the archive"
  for method in shown[:3] if sets else ():
    for size in drawn.distinct("features", method=method):
      values = [drawn.select(ACCURACY, method=method, problem=x, features=size) for x in sets]
      drawn.add({method: {ACCURACY: np.mean(values, axis=0)}}, problem=mean, features=size)
  figure, axes = plots.panels(len(names) + bool(sets), width=3.6)
  for ax, name in zip(axes, [*names, mean]):
    plots.curves(ax, drawn, ACCURACY, x="features", problem=name)
    ax.set_title(f"{name} informative" if name in names else name, fontsize=9)
  for ax in axes:
    plots.log_axis(ax, "features")
    ax.tick_params("x", labelsize=7)
  plots.legend_below(figure, axes[0], columns=4)
  return figure


def abstract(config: Config, mesh):
  """Scores of a batch of series, for a dry run: nothing is trained by updates."""
  del mesh

  def classify(state, series):
    options = {"max_dilation_log2": config.max_dilation_log2}
    features = models.scatter_features(series, state["kernels"], **options)
    return features.reshape(len(series), -1) @ state["weights"]

  num_kernels = config.num_features
  state = {
    "kernels": jax.ShapeDtypeStruct((num_kernels, 3), jnp.int32),
    "weights": jax.ShapeDtypeStruct((8 * num_kernels, problems.NUM_CLASSES), jnp.float32),
  }
  shape = config.num_test, config.num_channels, config.num_steps
  return jax.jit(classify), state, jax.ShapeDtypeStruct(shape, jnp.float32)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
