"""Calibrated language models state falsehoods as often as facts occurred but once in training.

A decoder memorizes statements of facts that have no pattern. What it states beyond them is read
from its probabilities of all statements. Training on makes falsehoods rare, and the model too sure;
mixed with the uniform distribution so that fresh statements are likeliest, it is calibrated, and
errs about as often as the share of training items whose fact occurred once.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.calibrated_hallucination import worlds
from experiments.inference.calibrated_hallucination.worlds import (
  MISCALIBRATION,
  MONOFACT,
  RATE,
  TEMPERATURE,
  TRAINING,
  VALIDATION,
  WEIGHT,
)
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import text_loss
from experiments.kit.sweep import run_seeds
from experiments.kit.train import adamw_cosine
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "calibrated_hallucination"
DATA = "training set"
LAST, CALIBRATED = "last checkpoint", "last checkpoint, mixed with uniform"
EARLY, TEMPERED = "checkpoint of lowest validation loss", "temperature of lowest validation loss"
FREQUENCIES, IDEAL = "training frequencies", "training frequencies, mixed with uniform"
METHODS = (CALIBRATED, LAST, EARLY, TEMPERED, IDEAL)
PATHS = TRAINED, HEATED, MIXED = "along training", "along temperatures", "along weights"


@dataclasses.dataclass(frozen=True)
class Config:
  """The worlds, the decoder, and what is evaluated."""

  num_slots: int = 3  # Values of a statement.
  slot_size: int = 100  # Different values of each slot.
  num_facts: int = 2000  # Of a world.
  exponents: tuple[float, ...] = (0.3, 0.7, 1.1)  # Of Zipf's law of their frequencies.
  items: tuple[int, ...] = (2000, 8000)  # Of training sets; claims are on the first.
  copies: int = 10  # Of every twentieth item, in a world of the first size and middle exponent.
  decoder: tuple[int, ...] = (48, 2)  # Width and blocks.
  num_heads: int = 4  # Attention heads.
  num_steps: int = 2400  # Updates.
  texts: int = 256  # Items per update.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  weight_decay: float = 0.01  # Of AdamW.
  checkpoints: int = 8  # That are evaluated; divides num_steps.
  num_validation: int = 4000  # Fresh statements, to choose weight and temperature on.
  num_weights: int = 401  # Weights to choose from, 0 to 1.
  weights: tuple[float, ...] = (0.1, 0.3, 0.6)  # Others that are evaluated.
  temperatures: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4)  # To choose from.
  num_bins: int = 20  # Of the miscalibration.


PRESETS = {
  "smoke": Config(
    slot_size=6, num_facts=20, exponents=(0.3, 1.1), items=(20, 40), copies=3, decoder=(8, 1),
    num_heads=2, num_steps=4, texts=8, checkpoints=2, num_validation=16, num_weights=11,
    weights=(0.5,), temperatures=(0.5, 1.0), num_bins=3,
  ),
  "laptop": Config(),
  "paper": Config(
    slot_size=256, num_facts=20_000, items=(20_000, 80_000), decoder=(768, 12), num_heads=12,
    num_steps=30_000, texts=1024, learning_rate=3e-4, num_validation=40_000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, empty=("weights",), shares=("weights",))
  sizes.check_divides(config.checkpoints, num_steps=config.num_steps)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  sizes.check_at_most(config.slot_size**config.num_slots // 2, num_facts=config.num_facts)
  if len(config.exponents) < 2 or config.num_slots < 2 or config.num_weights < 3:
    raise ValueError(
      "exponents must hold 2 numbers or more, num_slots be at least 2 and num_weights 3, got "
      f"{config.exponents}, {config.num_slots} and {config.num_weights}."
    )
  if not all(temperature > 0 for temperature in config.temperatures):
    raise ValueError(f"temperatures must be positive, got {config.temperatures}.")


def run(config: Config, context: Context) -> Results:
  """Trains a decoder in every world, and evaluates it."""
  results, measure = Results(), functools.partial(worlds.measure, config)
  middle = config.exponents[len(config.exponents) // 2]
  settings = [(x, items, 1) for items in config.items for x in config.exponents]
  settings.append((middle, config.items[0], config.copies))
  for i, (exponent, items, copies) in enumerate(settings):
    setting = {"exponent": exponent, "items": items, "copies": copies}
    argument = {name: np.full(context.seeds, value) for name, value in setting.items()}
    add(config, results, run_seeds(context, f"worlds/{i}", measure, arguments=argument), **setting)
  return results


def add(config: Config, results: Results, measured: dict, **where) -> None:
  """Adds what was measured in a world."""
  seeds = np.arange(len(measured["calibrated"][RATE]))
  along = {
    TRAINED: (measured["checkpoints"], "update", _updates(config)),
    HEATED: (measured["temperatures"], TEMPERATURE, config.temperatures),
    MIXED: (measured["weights"], WEIGHT, config.weights),
  }
  chosen = {}
  for name, method in ((TRAINED, EARLY), (HEATED, TEMPERED)):
    values, setting, places = along[name]
    best = np.argmin(values[VALIDATION], axis=1)
    chosen[method] = {quantity: x[seeds, best] for quantity, x in values.items()}
    chosen[method][f"chosen {setting}"] = np.array(places)[best]
  results.add(
    {
      DATA: measured["training set"],
      LAST: {name: x[:, -1] for name, x in measured["checkpoints"].items()},
      CALIBRATED: measured["calibrated"],
      FREQUENCIES: measured["frequencies"],
      IDEAL: measured["ideal"],
      **chosen,
    },
    **where,
  )
  for name, (values, setting, places) in along.items():
    for i, place in enumerate(places):
      point = {quantity: x[:, i] for quantity, x in values.items() if quantity != TRAINING}
      results.add({name: point}, **where, **{setting: place})


def _updates(config: Config) -> list[int]:
  every = config.num_steps // config.checkpoints
  return [every * (i + 1) for i in range(config.checkpoints)]


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, as means over the frequencies of facts."""

  def mean(quantity, method, **where):
    where = {"items": config.items[0], "copies": 1, "average": ("exponent",), **where}
    return results.select(quantity, method=method, **where)

  def by_world(quantity, method):
    pairs = [(x, items) for items in config.items for x in config.exponents]
    select = functools.partial(results.select, quantity, method=method, copies=1)
    return np.stack([np.atleast_1d(select(exponent=x, items=items)) for x, items in pairs])

  rate, once = mean(RATE, CALIBRATED), mean(MONOFACT, DATA)
  raw, weights = mean(RATE, LAST), by_world(WEIGHT, CALIBRATED)
  errors = mean(MISCALIBRATION, CALIBRATED)
  rates, shares = by_world(RATE, CALIBRATED), by_world(MONOFACT, DATA)
  centered = shares - shares.mean(0)
  slope = np.sum(centered * rates, axis=0) / np.sum(centered**2, axis=0)
  requires = (
    precondition("the last checkpoint states falsehoods in 5% at most", raw, at_most=0.05),
    precondition("mixed, it is miscalibrated by .18 at most", errors, at_most=0.18),
    precondition("monofact rates of the worlds span .15", np.ptp(shares, axis=0), at_least=0.15),
    precondition(
      "in every world a weight between 0 and 1 makes fresh statements likeliest",
      np.minimum(weights, 1 - weights).min(), at_least=0.5 / (config.num_weights - 1),
    ),
  )  # fmt: skip
  return [
    compare(
      "the calibrated model's hallucination rate is within .06 of the monofact rate",
      np.abs(rate - once), 0.06, better="lower", headline=True, requires=requires,
      paper="at least the monofact rate, less the miscalibration and terms that vanish",
    ),
    compare(
      "training on removes falsehoods: the last checkpoint's rate is .10 below the monofact rate",
      raw, once, better="lower", margin=0.1, requires=requires,
    ),
    compare(
      "at the price of calibration: its miscalibration is .10 above that of the calibrated model",
      mean(MISCALIBRATION, LAST), errors, margin=0.1, requires=requires,
    ),
    compare(
      "over the worlds, the slope of the calibrated rate on the monofact rate is within .2 of 1",
      np.abs(slope - 1), 0.2, better="lower", requires=requires,
      paper="falsehoods follow how many facts occur once, not the number of items",
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Falsehoods against facts that occur once; and against miscalibration, in one world."""
  figure, (left, right) = plots.panels(2, width=5.2, height=4.2)
  places = [
    {name: record.setting[name] for name in ("exponent", "items", "copies")}
    for record in results.matching(method=DATA, quantity=MONOFACT)
  ]
  for i, method in enumerate(METHODS):
    pairs = [
      (results.select(MONOFACT, method=DATA, **where), results.select(RATE, method=method, **where))
      for where in places
    ]
    marks = [np.mean(pair, axis=1) if np.ndim(pair[0]) else pair for pair in pairs]
    left.plot(*np.transpose(marks), "ox^sD"[i], mfc="none", label=method)
  left.plot([0, 0.5], [0, 0.5], color="gray", zorder=0)
  left.set(xlabel=MONOFACT, ylabel=RATE)
  left.legend(fontsize=7)
  where = places[len(results.distinct("exponent")) // 2]
  for path, along in zip(PATHS, ("update", TEMPERATURE, WEIGHT)):
    if results.matching(method=path):
      plots.paths(right, results, MISCALIBRATION, RATE, along=along, method=path, **where)
  once = results.select(MONOFACT, method=DATA, **where).mean()
  right.fill_between([0, once], [once, 0], color="gray", alpha=0.3, label="forbidden")
  right.set(xlim=(0, 1), ylim=(0, 1))
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the decoder, for a dry run."""
  model, shape = worlds.network(config), (config.texts, config.num_slots + 1)
  rows = worlds.Texts(*(jax.ShapeDtypeStruct(shape, kind) for kind in (np.int32, np.float32)))
  optimizer = adamw_cosine(config.learning_rate, config.num_steps)
  return abstract_step(model, text_loss(model), optimizer, rows, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
