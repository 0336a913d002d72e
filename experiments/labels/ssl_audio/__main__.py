"""Semi-supervised learning of sounds: methods that mix or augment strongly against two networks.

All methods see the same rows and initial parameters, and their unlabeled losses are weighted by one
grid. Methods that also learn from strong views may win by these alone: the labels are learned from
strong views too, and a mean teacher's student sees them.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import plots, sizes
from experiments.kit import semi_supervised as kit
from experiments.kit.datasets import Split, stack_seeds
from experiments.kit.sweep import choose, each_seed, grid
from experiments.labels.ssl_audio import methods, problems
from experiments.labels.ssl_audio.methods import (
  ALL,
  ERROR,
  FIX,
  NEW,
  OLD,
  PAIRS,
  ROWS,
  STRONG,
  WEAK,
)
from experiments.labels.ssl_audio.problems import EVENTS, FOLDERS, VOWELS
from jaxlab._checks import check_pair, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "ssl_audio"
BLANK = "blank strong views"


@dataclasses.dataclass(frozen=True)
class Config:
  """The sets, the spectrograms, and the training; tuples of rows are of the sets."""

  datasets: tuple[str, ...] = (EVENTS, VOWELS)  # Weights are chosen on the first, for all.
  num_labeled: tuple[int, ...] = (30, 27)  # Labeled rows, of all classes equally many.
  num_unlabeled: tuple[int, ...] = (900, 243)  # Unlabeled rows.
  num_validation: tuple[int, ...] = (200, 0)  # Labeled rows that choose weights.
  num_test: tuple[int, ...] = (1500, 370)  # Test rows.
  sample_rate: int = 4000  # Of sounds, in hertz.
  seconds: float = 1.0  # Of a sound.
  noise: tuple[float, float] = (0.18, 1.0)  # Least and most deviation of noise, of sounds of 1.
  fft_size: int = 256  # Samples of a frame.
  hop: int = 250  # Samples from one frame to the next.
  num_mels: int = 16  # Bands.
  views: Literal["mild", "paper"] = "mild"  # How strongly views of sounds change them.
  num_views: int = 16  # Weak and strong views of a row, drawn beforehand; 0 for fresh ones.
  features: tuple[int, ...] = (8, 16)  # Channels of the network's blocks.
  dense: int = 64  # Its features.
  num_steps: int = 1800  # Updates.
  labeled_batch: int = 30  # Labeled rows per update.
  unlabeled_batch: int = 30  # Unlabeled rows per update.
  learning_rate: float = 5e-3  # Adam, with a cosine to 0.
  pair_rate: float = 2.5e-3  # Of co-training.
  weights: tuple[float, ...] = (0.1, 0.3, 1.0)  # Factors of unlabeled losses, to choose from.
  threshold: float = 0.95  # Of FixMatch.
  mixup_alpha: float = 0.75  # Of mixup where a method has none of its own.
  teacher_ramp: int = 480  # Updates in which the mean teacher's weight rises.
  linear_ramp: int = 600  # Updates in which the weights of MixMatch and ReMixMatch rise.
  decay: float = 0.99  # Of the average of the parameters, which is evaluated and teaches.


PRESETS = {
  "smoke": Config(
    datasets=(EVENTS,), num_labeled=(10,), num_unlabeled=(12,), num_validation=(8,), num_test=(8,),
    features=(2,), dense=4, num_steps=3, labeled_batch=4, unlabeled_batch=4, weights=(1.0,),
    teacher_ramp=2, linear_ramp=2, num_views=2,
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("esc10", "urbansound8k"), num_labeled=(30, 750), num_unlabeled=(240, 6400),
    num_validation=(40, 200), num_test=(80, 800), sample_rate=22_050, seconds=4.0, fft_size=2048,
    hop=512, num_mels=64, features=(64, 128, 256), dense=256, num_steps=30_000, labeled_batch=30,
    unlabeled_batch=30, teacher_ramp=5000, linear_ramp=16_000, decay=0.999, views="paper",
    num_views=0,
  ),
}  # fmt: skip
SEEDS = {"laptop": 8}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, zero=("num_validation", "num_views"), shares=("threshold", "decay"))
  check_pair("noise", config.noise, "(0, inf)")
  check_range("decay", config.decay, "[0, 1)")
  sizes.check_known((EVENTS, VOWELS, *FOLDERS), datasets=config.datasets)
  sizes.check_known(tuple(problems.VIEWS), views=(config.views,))
  fields = "num_labeled", "num_unlabeled", "num_validation", "num_test"
  sizes.check_lengths(datasets=config.datasets, **{name: getattr(config, name) for name in fields})
  # Of fewer rows, some come twice in a batch.
  sizes.check_at_most(config.num_labeled[0], labeled_batch=config.labeled_batch)
  for place, name in enumerate(config.datasets):
    num, others = config.num_labeled[place], config.num_unlabeled[place]
    sizes.check_at_most(others, unlabeled_batch=config.unlabeled_batch)
    if name == VOWELS:
      sizes.check_at_most(270, num_unlabeled=num + others + config.num_validation[place])
      sizes.check_at_most(370, num_test=config.num_test[place])
  if not config.num_validation[0] and len(config.weights) > 1:
    raise ValueError("num_validation of the first set must be at least 1: it chooses weights.")
  if config.labeled_batch != config.unlabeled_batch:
    raise ValueError(
      f"labeled_batch must equal unlabeled_batch, which are mixed, got {config.labeled_batch}."
    )


def run(config: Config, context: Context) -> Results:
  """Trains all rows on the first set, and with the weights that it chose on the second."""
  results, chosen = Results(), {}
  for name in config.datasets:
    splits = stack_seeds(functools.partial(problems.draw, config, name), context.seed_numbers)
    # Rows of a kind share the function, and so the program.
    kinds = {row.kind for row in ROWS.values()}
    programs = {k: functools.partial(methods.evaluate, config, name, k) for k in kinds}
    for method, row in ROWS.items():
      weights = config.weights if row.searched else config.weights[-1:]
      numbers = {"strong": row.strong, "mixes": row.mixes}
      settings = [numbers | {"weight": x} for x in chosen.get(method, weights)]
      scores = grid(context, f"{name}/{method}", programs[row.kind], splits, settings)
      if len(settings) > 1:
        measured = choose(scores, settings, select="validation")
      else:
        measured = {quantity: values[:, 0] for quantity, values in scores.items()}
      chosen.setdefault(method, [measured.get("chosen/weight", weights[0])])
      results.add({method: measured | {"passes per update": row.passes}}, dataset=name)
    blank = functools.partial(share_blank, problems.views_of(config, name).strong)
    found = each_seed(context, f"{name}/{BLANK}", blank, splits.unlabeled.inputs)
    results.add({BLANK: {"share": found}}, dataset=name)
  return results


def share_blank(view, key, inputs):
  """Share of views that are the same everywhere."""
  views = view(key, inputs).reshape(len(inputs), -1)
  return jnp.mean(jnp.max(views, axis=1) == jnp.min(views, axis=1))


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  first, *others = config.datasets

  def of(*names, datasets=(first,)):
    errors = [results.select(ERROR, method=m, dataset=d) for m in names for d in datasets]
    return np.mean(errors, axis=0)

  def requires(*names, datasets=(first,)):
    return [x for dataset in datasets for x in _preconditions(results, dataset, names)]

  claim, old = functools.partial(compare, better="lower"), "mean teacher and co-training"
  statements = [
    claim(f"{first}: MixMatch, ReMixMatch and FixMatch err less than {old}", of(*NEW), of(*OLD),
          headline=True, requires=requires(*NEW, *OLD),
          paper="UrbanSound8K: MixMatch 18.0%; all labels, supervised, 23.3%"),
    claim(f"{first}: they err less than labels alone with strong views", of(*NEW), of(STRONG),
          requires=requires(*NEW, STRONG)),
    claim(f"{first}: FixMatch errs less than a mean teacher with strong views", of(FIX),
          of(methods.TEACHER_STRONG), requires=requires(FIX, methods.TEACHER_STRONG)),
    claim(f"all sets: mixup lowers the error of {old}, and FixMatch",
          of(*PAIRS.values(), datasets=config.datasets), of(*PAIRS, datasets=config.datasets),
          requires=requires(*PAIRS, *PAIRS.values(), datasets=config.datasets),
          paper="Speech Commands: FixMatch 4.44 to 3.31%"),
  ]  # fmt: skip
  for name in others:
    sides = (of(*names, datasets=(name,)) for names in (NEW, OLD))
    text = f"{name}: MixMatch, ReMixMatch and FixMatch err less than {old}"
    statements.append(claim(text, *sides, requires=requires(*NEW, *OLD, datasets=(name,))))
  return statements


def _preconditions(results: Results, dataset: str, names):
  """What must hold on a set for a comparison of methods."""

  def of(name, quantity=ERROR):
    return results.select(quantity, method=name, dataset=dataset)

  plain, errors = of(WEAK), [of(name).mean() for name in names]
  bounds = (
    ("supervised training errs on 15 to 50%", plain, 15, 50),
    ("with all labels it errs half as often at most", of(ALL).mean() / plain.mean(), None, 0.5),
    ("the best method errs on 2% or more", min(errors), 2, None),
    ("no method is 3 points behind supervised training", max(errors) - plain.mean(), None, 3),
    ("10% of the strong views are blank at most", of(BLANK, "share"), None, 0.1),
  )
  return [
    precondition(f"{dataset}: {text}", x, at_least=low, at_most=high)
    for text, x, low, high in bounds
  ]


def figure(results: Results):
  """Errors of all rows on both sets; arrows lead from methods to themselves with mixup."""
  names = results.distinct("dataset", quantity=ERROR)
  figure, axes = plots.panels(len(names), width=5.6, height=4.4)
  for ax, name in zip(axes, names):
    plots.dots(ax, results, ERROR, dataset=name)
    places = {method: i for i, method in enumerate(results.distinct("method", quantity=ERROR))}
    mean = {m: results.select(ERROR, method=m, dataset=name).mean() for m in places}
    for method, style in ((WEAK, ":"), (ALL, "--")):
      ax.axvline(mean[method], color="gray", linestyle=style, linewidth=1)
    for plain, mixed in PAIRS.items():
      ends = {"xy": (mean[mixed], places[mixed]), "xytext": (mean[plain], places[plain])}
      ax.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": "tab:orange"})
    ax.set(title=name, xlabel="error (%)")
  return figure


def abstract(config: Config, mesh):
  """An update of FixMatch with its views on the first set, for a dry run."""
  del mesh
  name = config.datasets[0]
  trainer, init, protocol = methods.trainer_of(config, name, FIX, {"weight": 1.0})

  def batch(num):
    shape = num, *problems.shape_of(config, name)
    return Split(jax.ShapeDtypeStruct(shape, np.float32), jax.ShapeDtypeStruct((num,), np.int32))

  return kit.abstract_update(trainer, init, batch, protocol)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
