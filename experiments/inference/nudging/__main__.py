"""Nudging: a small aligned model writes the few tokens of which a large base model is unsure.

Texts of the base model work on a problem, digress or stop, and nothing announces which; it can do
the arithmetic once it works. A small model that always works, and is worse at arithmetic, decides
the style where the base is unsure. Whether uncertainty finds these places is seen against as many
tokens elsewhere, and against the first one alone; fine-tuning the base is what nudging would save.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.nudging import arms
from experiments.inference.nudging.arms import (
  BASE,
  DICTATED,
  FIRST,
  LARGE,
  NUDGED,
  RANDOM,
  SMALL,
)
from experiments.inference.nudging.problems import Problems, Styles
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import text_loss
from experiments.kit.sweep import run_seeds
from experiments.kit.train import adamw_cosine
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "nudging"


@dataclasses.dataclass(frozen=True)
class Config(Styles):
  """The styles, the problems, the models, and the threshold."""

  modulus: int = 7  # Of the chains.
  num_terms: int = 7  # Numbers in a chain.
  large: tuple[int, ...] = (64, 2)  # Width and blocks of the base model.
  small: tuple[int, ...] = (16, 1)  # Width and blocks of the small model.
  num_heads: int = 4  # Attention heads.
  base_steps: int = 1500  # Updates on base texts.
  texts_per_update: int = 64  # Fresh base texts.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0, on base texts.
  num_aligned: int = 1024  # Aligned texts, the same for both models.
  batch_size: int = 64  # Aligned texts per update.
  tuning_steps: int = 200  # Updates on aligned texts.
  tuning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)  # To choose from, for both models.
  threshold: float = 0.4  # Of the base's certainty, one of the next.
  thresholds: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.95)  # Increasing.
  max_new_tokens: int = 40  # Of a response.
  num_validation: int = 300  # Problems to choose the rate of fine-tuning on.
  num_test: int = 400  # Others, to test on.


PRESETS = {
  "smoke": Config(
    modulus=3, num_terms=3, decisions=(0, 1), large=(8, 1), small=(8, 1), num_heads=2, base_steps=2,
    texts_per_update=4, num_aligned=8, batch_size=4, tuning_steps=2, tuning_rates=(1e-3,),
    thresholds=(0.2, 0.4), max_new_tokens=10, num_validation=4, num_test=9,
  ),
  "laptop": Config(),
  "paper": Config(
    modulus=97, num_terms=16, decisions=(0, 3, 6, 9, 12), large=(4096, 32), small=(2048, 16),
    num_heads=16, base_steps=100_000, texts_per_update=512, learning_rate=3e-4,
    num_aligned=100_000, tuning_steps=2000, tuning_rates=(1e-5, 3e-5, 1e-4), max_new_tokens=512,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "shares", "plus_shares", "threshold", "thresholds"
  sizes.check_sizes(config, zero=("decisions",), shares=shares)
  for name in ("modulus", "num_terms"):
    if getattr(config, name) < 2:
      raise ValueError(f"{name} must be at least 2, got {getattr(config, name)}.")
  for name in ("shares", "plus_shares"):
    values = getattr(config, name)
    if len(values) != 3 or abs(sum(values) - 1) > 1e-6:
      raise ValueError(f"{name} must be 3 numbers that sum to 1, got {values}.")
  sizes.check_at_most(config.num_terms - 2, decisions=max(config.decisions))
  sizes.check_at_most(config.num_aligned, batch_size=config.batch_size)
  if config.threshold not in config.thresholds:
    raise ValueError(f"threshold must be one of {config.thresholds}, got {config.threshold}.")
  if list(config.thresholds) != sorted(set(config.thresholds)):
    raise ValueError(f"thresholds must increase, got {config.thresholds}.")
  length = arms.chains_of(config).response_length
  if config.max_new_tokens < length:
    raise ValueError(f"max_new_tokens must be at least {length}, got {config.max_new_tokens}.")
  for name in ("large", "small"):
    sizes.check_divides(config.num_heads, **{name: getattr(config, name)[0]})


def run(config: Config, context: Context) -> Results:
  """Trains both pairs of models, and decodes in all ways."""
  results, trained = Results(), {}
  for name in ("small", "large"):
    train = functools.partial(arms.train, config, size=getattr(config, name))
    trained[name] = run_seeds(context, name, train)
  found = context.over_seeds("decoding", functools.partial(arms.measure, config), arguments=trained)
  results.add(found["scores"])
  for i, threshold in enumerate(config.thresholds):
    curve = {m: {q: x[:, i] for q, x in of.items()} for m, of in found["curves"].items()}
    results.add(curve, threshold=threshold)
  results.extras |= {name: x[0] for name, x in found["example"].items()}
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity="accuracy"):
    return results.select(quantity, method=method, threshold=None)

  nudged, undecided = of(NUDGED), of(BASE, "certainty where undecided")
  requires = (
    precondition("the base solves .75 if its style is dictated", of(DICTATED), at_least=0.75),
    precondition("and .45 or less by itself", of(BASE), at_most=0.45),
    precondition("the small aligned model solves .15 or more", of(SMALL), at_least=0.15),
    precondition("and .60 or less", of(SMALL), at_most=0.6),
    precondition("the large aligned model solves .75", of(LARGE), at_least=0.75),
    precondition("the base's certainty where style is undecided is .28 or more", undecided,
                 at_least=0.28),
    precondition("and .40 or less", undecided, at_most=0.4),
  )  # fmt: skip
  share = of(NUDGED, "nudged")
  drift = np.abs(of(RANDOM, "nudged") - share)
  few = precondition("a quarter of the tokens is nudged in every seed", share.max(), at_most=0.25)
  equal = precondition("random nudging has the same share, to .05", drift.max(), at_most=0.05)
  return [
    compare("the nudged base solves .10 more than the small aligned model", nudged, of(SMALL),
            margin=0.1, headline=True, requires=requires,
            paper="OLMo 7B nudged by 1B: above 7B instruct by 10 points on GSM8K, 9% of tokens"),
    compare("it solves at most .05 less than the base fine-tuned on the same texts", nudged,
            of(LARGE), margin=-0.05, requires=requires,
            paper="mostly equal or better than the large aligned model"),
    compare("it solves .10 more than with as many tokens nudged at random", nudged, of(RANDOM),
            margin=0.1, requires=(*requires, equal)),
    compare("it solves .10 more than with the first token nudged alone", nudged, of(FIRST),
            margin=0.1, requires=requires),
    compare("the base's uncertainty finds where style is decided: area under the ROC curve .9",
            of(BASE, "AUROC of places"), 0.9, requires=(*requires, few)),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy against the share of nudged tokens; and a response, by who wrote each token."""
  figure, (top, bottom) = plots.panels(2, width=7.0, columns=1)
  thresholds = results.distinct("threshold")
  for i, method in enumerate((NUDGED, RANDOM)):
    curve = [
      [results.select(q, method=method, threshold=t).mean() for t in thresholds]
      for q in ("nudged", "accuracy")
    ]
    top.plot(*curve, ".-", color=f"C{i}", label=method)
    for x, y, t in zip(*curve, thresholds):
      top.annotate(f"{t:g}", (x, y), fontsize=6)
  for i, method in enumerate((BASE, SMALL, LARGE), 2):
    value = results.select("accuracy", method=method, threshold=None).mean()
    top.axhline(value, color=f"C{i}", linestyle=":", label=method)
  top.set(xlabel="share of nudged tokens", ylabel="accuracy")
  top.legend(fontsize=7)
  if "tokens" in results.extras:
    tokens, nudged = (results.extras[name] for name in ("tokens", "nudged"))
    length = int(np.max(np.flatnonzero(tokens), initial=0)) + 1
    for place in range(length):
      color = "C1" if nudged[place] else "C0"
      bottom.text(place + 0.5, 0.5, str(tokens[place]), color=color, ha="center")
    bottom.set(xlim=(0, length), ylim=(0, 1), yticks=[], xlabel="token of a response")
    bottom.set_title("written by the base (blue), and by the small aligned model (orange)")
  return figure


def abstract(config: Config, mesh):
  """An update of the base model, for a dry run."""
  model = arms.network(config, config.large)
  shape = config.texts_per_update, model.config.max_positions
  shapes = (shape, np.int32), (shape, np.float32), (shape[:1], np.int32)
  batch = Problems(*(jax.ShapeDtypeStruct(*x) for x in shapes))
  optimizer = adamw_cosine(config.learning_rate, config.base_steps, weight_decay=0.01)
  return abstract_step(model, text_loss(model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
