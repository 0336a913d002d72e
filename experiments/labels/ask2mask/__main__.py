"""Ask2Mask: a recognizer of the target speech says which frames are worth predicting.

Most of the speech to pretrain on is foreign, the rest partly noise or foreign. An encoder predicts
codes of masked frames, as many in all rows, and is fine-tuned on few transcripts of the target.
Masks are put where a scorer is sure, and utterances weigh as much as it is sure of them. What the
scorer's own labels teach, and dropping the worse half, are baselines.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import by_seed, choose, grid, run_seeds
from experiments.kit.train import adamw_cosine
from experiments.labels.ask2mask import masks, networks, rows
from experiments.labels.ask2mask.rows import AUROC, BOTH, ERROR, FRAMES, NONE, RANDOM, SCORER
from experiments.labels.ask2mask.speech import MATCHED, MISMATCHED, SETS
from jaxlab import data
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "ask2mask"
SEEDS = {"laptop": 8}


@dataclasses.dataclass(frozen=True)
class Config:
  """The speech, the masks, the encoder, and its training."""

  num_labeled: int = 160  # Utterances of the target with labels of frames, for the scorer.
  num_tuned: int = 40  # Of these, with transcripts, to fine-tune on.
  num_validation: int = 200  # Others, to choose learning rates on.
  num_test: int = 1000  # And others to test on.
  num_pretraining: int = 2000  # Utterances to pretrain on.
  digits: tuple[int, int] = (2, 4)  # Fewest and most of an utterance.
  num_frames: int = 32  # Of the longest utterance.
  rate_spread: float = 0.25  # Of the logarithm of an utterance's rate.
  foreign_share: float = 0.7  # Of mismatched utterances.
  corrupted_share: float = 0.4  # Of the frames of the others.
  num_codes: int = 64  # To predict, k-means of labeled frames.
  span_length: int = 4  # Masked frames from each start.
  start_probability: float = 0.08  # Of a frame, with random masks.
  pool: int = 2  # Sure frames for each start that is drawn among them.
  sharpness: float = 10.0  # How much more often a surer one is drawn.
  encoder: tuple[int, ...] = (32, 2, 4, 9)  # Width, layers, heads, frames of a convolution.
  pretraining_rates: tuple[float, ...] = (1e-3, 3e-3)  # AdamW; chosen for random masks, for all.
  pretraining_steps: int = 600  # Updates.
  batch_size: int = 16  # Utterances per update.
  tuning_rates: tuple[float, ...] = (3e-3, 9e-3)  # AdamW; chosen for each row.
  tuning_steps: int = 250  # Updates on transcripts.
  scorer_steps: int = 600  # Updates on labels of frames.
  scorer_noise: float = 0.5  # Deviation of fresh noise on these, which are few.
  tuning_batch: int = 16  # Utterances per update of both.


PRESETS = {
  "smoke": Config(
    num_labeled=6, num_tuned=6, num_validation=4, num_test=4, num_pretraining=8, digits=(1, 2),
    num_frames=10, num_codes=12, encoder=(8, 1, 2, 3), pretraining_rates=(1e-3,), batch_size=4,
    pretraining_steps=2, tuning_rates=(1e-3,), tuning_steps=2, scorer_steps=2, tuning_batch=4,
  ),
  "laptop": Config(),
  "paper": Config(
    num_labeled=2000, num_tuned=2000, num_validation=1000, num_test=5000, num_pretraining=100_000,
    digits=(10, 40), num_frames=512, num_codes=1024, span_length=10, start_probability=0.065,
    encoder=(512, 12, 8, 31), pretraining_rates=(3e-4, 1e-3), pretraining_steps=100_000,
    batch_size=256, tuning_rates=(1e-4, 3e-4), tuning_steps=10_000, scorer_steps=10_000,
    tuning_batch=64,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("foreign_share",))
  check_range("corrupted_share", config.corrupted_share, "[0, 1)")
  check_range("start_probability", config.start_probability, "(0, 1]")
  check_at_least(config.digits[0], digits=config.digits[1])
  check_at_least(4 * config.digits[0], num_frames=config.num_frames)
  # Labels of a scorer are learned as codes are, and the codes are means of labeled frames.
  check_at_least(11, num_codes=config.num_codes)
  sizes.check_at_most(4 * config.digits[0] * config.num_labeled, num_codes=config.num_codes)
  sizes.check_divides(2 * config.encoder[2], encoder=config.encoder[0])
  sizes.check_at_most(config.num_labeled, num_tuned=config.num_tuned)
  sizes.check_at_most(config.num_tuned, tuning_batch=config.tuning_batch)
  sizes.check_at_most(config.num_pretraining, batch_size=config.batch_size)


def run(config: Config, context: Context) -> Results:
  """Trains the scorers, pretrains by every row of the table, and fine-tunes."""
  results = Results()
  found = run_seeds(context, SCORER, functools.partial(rows.prepare, config))
  fit_codes = functools.partial(rows.fit_codes, config)
  centers = context.cached("codes", by_seed, fit_codes, *found["labeled"])
  results.add({name: found[name] for name in (SCORER, NONE)})
  results.add(by_seed(rows.areas_under_curves, found["heard"]))
  first = jax.tree.map(lambda x: x[0, SETS.index(MISMATCHED)], found["heard"])
  for kind, there in (("clean", ~first["is_corrupted"]), ("corrupted", first["is_corrupted"])):
    results.extras[kind] = first["confidence"][there & first["inside"]]

  evaluate, inputs = functools.partial(rows.evaluate, config), (centers, found["heard"])
  rates = None  # Chosen for the first row, random masks on mismatched speech.
  for speech, name in rows.PLACES:
    setting = rows.TABLE[name] | {"speech": SETS.index(speech)}
    options = config.pretraining_rates if rates is None else [rates]
    settings = [setting | {"rate": rate} for rate in options]
    scores = grid(context, f"{speech}/{name}", evaluate, inputs, settings)
    if rates is None:
      measured = choose(scores, settings, select=rows.VALIDATION, better="lower")
      rates = measured.get("chosen/rate", np.full(context.seeds, options[0]))
    else:
      measured = {quantity: values[:, 0] for quantity, values in scores.items()}
    results.add({name: measured}, speech=speech)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method: str, quantity: str = ERROR, speech: str = MISMATCHED):
    return results.select(quantity, method=method, speech=speech)

  random, matched = of(RANDOM), of(RANDOM, speech=MATCHED)
  alone = results.select(ERROR, method=NONE)
  areas = [results.select(AUROC, method=name) for name in (SCORER, rows.ENERGY)]
  masks_of = ((name, speech) for speech, name in rows.PLACES if name != rows.LABELS)
  masked = [of(name, "masked", speech).mean() for name, speech in masks_of]
  accuracy = results.select("frame accuracy", method=SCORER)
  bounds = (
    ("the scorer is right on .80 of clean frames", accuracy, 0.8, None),
    ("random masks on matched speech save 5 points", alone - matched, 5, None),
    ("masked shares of no two rows differ by more than .01", max(masked) - min(masked), None, 0.01),
    ("mismatched speech costs 3 points", random - matched, 3, None),
    ("masks and weights by the truth save 2 points", random - of(rows.ORACLE), 2, None),
    ("confidence finds clean frames: AUROC .75", areas[0], 0.75, None),
    ("random masks err on 8 to 50%", random, 8, 50),
  )
  room = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  claim = functools.partial(compare, better="lower", requires=room)
  return [
    claim("mismatched: sure frames and utterances err less than random masks", of(BOTH), random,
          headline=True, paper="up to 4.5% fewer errors than the internal baseline"),
    claim("sure frames err less than unsure ones", of(FRAMES), of(rows.UNSURE)),
    claim("sure frames and utterances err less than sure utterances alone", of(BOTH),
          of(rows.WEIGHTS)),
    claim("sure frames err less than random masks", of(FRAMES), random),
    compare("confidence finds clean frames better than energy: AUROC .1 higher", *areas, margin=0.1,
            requires=room[:1]),
    compare("matched: they err at most 1.5 points more than random masks",
            of(BOTH, speech=MATCHED), matched, better="lower", margin=-1.5, requires=room[:3],
            paper="modest gains"),
  ]  # fmt: skip


def figure(results: Results):
  """Token error rates of all rows by speech; confidence in clean and in corrupted frames."""
  figure, axes = plots.panels(2, width=6.0, height=4.6)
  for ax, speech in zip(axes, (MISMATCHED, MATCHED)):
    plots.dots(ax, results, ERROR, speech=speech)
    alone = results.select(ERROR, method=NONE)
    ax.axvline(alone.mean(), color="gray", linestyle=":", label=NONE)
    ax.set(title=f"{speech} speech", xlabel="token error rate (%)")
    ax.legend(fontsize=7)
  if results.extras:
    inset = axes[1].inset_axes((0.3, 0.4, 0.35, 0.25))
    plots.histograms(inset, results.extras, np.linspace(0, 1, 21))
    inset.set(yticks=[], ylabel="", xlabel="confidence")
    inset.legend(fontsize=6)
  return figure


def abstract(config: Config, mesh):
  """An update of pretraining with sure frames, for a dry run."""
  module = networks.Encoder(config, config.num_codes)
  loss = networks.masked_loss(module, functools.partial(masks.draw_mask, config, guided=True))
  shape = config.batch_size, config.num_frames
  shapes = ((*shape, data.TONE_BANDS), "f4"), (shape[:1], "i4"), (shape, "i4"), (shape, "f4")
  batch = tuple(jax.ShapeDtypeStruct(*x) for x in (*shapes, (shape[:1], "f4")))
  optimizer = adamw_cosine(config.pretraining_rates[0], config.pretraining_steps)
  return abstract_step(module, loss, optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
