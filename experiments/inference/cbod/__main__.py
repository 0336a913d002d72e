"""A benchmark in other words: does a model that leans on the wording give itself away?

Questions are about a table of facts. Models have read few or many of them in other words, each as
long as it takes to be right on 85% of new questions in the benchmark's words. Then the words of the
benchmark are changed, not what it asks, and a paired test looks for a fall of the accuracy.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.cbod import arms
from experiments.inference.cbod.arms import ACCURACY, DROP, FLAGGED, LOG_PROB, P_VALUE
from experiments.inference.cbod.questions import Questions, row_length
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import grid
from experiments.kit.train import adamw_cosine
from jaxlab import metrics
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "cbod"
SEEDS = {"laptop": 6}
TREND = "all models"
ADJUSTED = "p-value, adjusted"


@dataclasses.dataclass(frozen=True)
class Config:
  """The facts, the models and their training, and the tests."""

  num_entities: int = 200  # Of five facts each, about which the benchmark asks once.
  num_values: int = 40  # That a relation may have.
  decoder: tuple[int, ...] = (64, 2)  # Width and blocks.
  num_heads: int = 4  # Attention heads.
  num_steps: int = 800  # Updates, at most.
  questions: int = 64  # Per update.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  num_evaluations: int = 20  # Within a training; divides num_steps.
  num_validation: int = 500  # Questions in the benchmark's words.
  enough: tuple[float, ...] = (0.65, 0.75, 0.85)  # Accuracy on these at which models are tested.
  shares: tuple[float, ...] = (0.0, 0.03, 0.1, 1.0)  # Of questions in other words, four of them.
  leaked: float = 0.5  # Share of the benchmark's items, for a model with the third of these shares.
  strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # Of other words in tests.


PRESETS = {
  "smoke": Config(
    num_entities=4, num_values=6, decoder=(8, 1), num_heads=2, num_steps=4, questions=8,
    num_evaluations=2, num_validation=8, enough=(0.3, 0.85), strengths=(0.0, 0.25, 1.0),
  ),
  "laptop": Config(),
  "paper": Config(
    num_entities=2800, num_values=1000, decoder=(768, 12), num_heads=12, num_steps=50_000,
    questions=512, learning_rate=3e-4, num_validation=2000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("shares", "strengths", "enough", "leaked"))
  sizes.check_divides(config.num_evaluations, num_steps=config.num_steps)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  if config.num_values < 5:
    raise ValueError(f"num_values must be at least 5, got {config.num_values}.")
  if len(config.shares) != 4 or len(set(config.shares)) < 4:
    raise ValueError(f"shares must hold four different numbers, got {config.shares}.")
  if not {0.0, 0.25, 1.0} <= set(config.strengths):
    raise ValueError(f"strengths must hold 0, 0.25 and 1, got {config.strengths}.")


def name(share: float, leaked: bool = False) -> str:
  """What a model is called."""
  return f"{100 * share:g}% in other words" + (", leaked" if leaked else "")


def models_of(config: Config) -> dict[str, dict[str, float]]:
  """Model -> how its training questions are drawn."""
  plain = {name(share): {"share": share, "leaked": 0.0} for share in config.shares}
  twin = config.shares[2]
  return plain | {name(twin, True): {"share": twin, "leaked": config.leaked}}


def run(config: Config, context: Context) -> Results:
  """Trains all models, and tests them."""
  results, methods = Results(), models_of(config)
  seeds = np.asarray(context.seed_numbers, np.int32)
  measure = functools.partial(arms.measure, config)
  measured = grid(context, "models", measure, seeds, list(methods.values()))
  accuracy, log_prob, early, course = (
    measured.pop(key) for key in (ACCURACY, LOG_PROB, "early", "by update")
  )
  measured[ADJUSTED] = np.asarray(jax.vmap(metrics.holm_adjust)(measured[P_VALUE]))
  every = config.num_steps // config.num_evaluations
  for i, method in enumerate(methods):
    results.add({method: {quantity: x[:, i] for quantity, x in measured.items()}})
    for j, words in enumerate(arms.names_of_sets(config)):
      tested = {ACCURACY: accuracy[:, i, j], LOG_PROB: log_prob[:, i, j]}
      results.add({method: tested}, words=words)
    for j, level in enumerate(config.enough[:-1]):
      before, after = early[:, i, j].T
      results.add({method: {"canonical accuracy": before, DROP: before - after}}, enough=level)
    for j, x in enumerate(course[:, i].T, 1):
      results.add({method: {"validation accuracy by update": x}}, update=j * every)
  add_trend(config, results)
  return results


def add_trend(config: Config, results: Results) -> None:
  """Adds the line of drops over accuracies of twelve models: four shares, at three times each."""
  drops, accuracies = [], []
  for share in config.shares:
    method = name(share)
    accuracies.append(results.select(ACCURACY, method=method, words="strength 0"))
    drops.append(results.select(DROP, method=method, enough=None))
    for level in config.enough[:-1]:
      where = {"method": method, "enough": level}
      accuracies.append(results.select("canonical accuracy", **where))
      drops.append(results.select(DROP, **where))
  trend = jax.vmap(metrics.overfit_trend)(*(np.stack(x, axis=1) for x in (drops, accuracies)))
  fitted = {f"{key} of the trend": np.asarray(x) for key, x in trend._asdict().items()}
  ends = {"lowest accuracy": np.min(accuracies, axis=0), "highest": np.max(accuracies, axis=0)}
  results.add({TREND: fitted | ends})


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  _, surface, twin, full = map(name, config.shares)
  leaked = name(config.shares[2], True)

  def of(method, quantity=DROP):
    return results.select(quantity, method=method, enough=None)

  def accuracy(method, words="strength 0"):
    return results.select(ACCURACY, method=method, words=words)

  def early(method, quantity=DROP):
    return results.select(quantity, method=method, enough=config.enough[0])

  def between(reached):
    return [
      precondition("accuracies are .6 or more", np.min(reached, axis=0), at_least=0.6),
      precondition("and .95 or less", np.max(reached, axis=0), at_most=0.95),
    ]

  apart = np.abs(accuracy(surface) - accuracy(full))
  solved = np.min([of(method, "solved") for method in (surface, twin, full, leaked)], axis=0)
  sound = precondition("a solver answers all questions in all words", solved, at_least=1.0)
  requires = [
    sound,
    *between([accuracy(method) for method in (surface, full)]),
    precondition("both models are equally good, to .10", apart, at_most=0.1),
    precondition(
      "the first has read every word 20 times", of(surface, "rarest word"), at_least=20
    ),
  ]  # fmt: skip
  # Later the leaked benchmark is solved, and what wording costs is not seen.
  known = [early(method, "canonical accuracy") for method in (twin, leaked)]
  lowest, highest = of(TREND, "lowest accuracy"), of(TREND, "highest")
  return [
    compare(
      f"in other words, the accuracy of a model that read {surface} falls by .05 more than that of "
      "one that read all questions so",
      of(surface), of(full), margin=0.05, headline=True, requires=requires,
      paper="2.2 points on MMLU, a mean of 26 models, 20 of which are flagged",
    ),
    compare(
      "no false alarm: the drop of the latter is within .02 of 0",
      np.abs(of(full)), 0.02, better="lower", requires=requires,
    ),
    compare(
      "the drop of the former is .03 larger at strength 1 than at .25",
      accuracy(surface, "strength 0.25"), accuracy(surface, "strength 1"), margin=0.03,
      requires=requires, paper="it grows with the strength",
    ),
    compare(
      f"where the benchmark leaked, the drop is .02 larger, at {config.enough[0]:g} on other "
      "questions",
      early(leaked), early(twin), margin=0.02,
      requires=[
        sound, *between(known),
        precondition("leaked items are known better, by .03", known[1] - known[0], at_least=0.03),
      ],
    ),
    compare(
      "over twelve models the drop grows with the accuracy on the benchmark",
      of(TREND, "slope of the trend"), 0.0,
      requires=[
        sound,
        precondition("accuracies are .6 or more", lowest, at_least=0.6),
        precondition("and .95 or less", highest, at_most=0.95),
      ],
      paper="more accurate models drop more",
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy by strength; drops over accuracies, of models that are flagged filled."""
  figure, (left, right) = plots.panels(2, width=5.2, height=4.0)
  methods = [method for method in results.distinct("method") if method != TREND]
  words = [x for x in results.distinct("words") if x.startswith("strength")]
  for i, method in enumerate(methods):
    options = {"color": f"C{i}", "label": method}
    means = [results.select(ACCURACY, method=method, words=x).mean() for x in words]
    left.plot([float(x.split()[1]) for x in words], means, ".-", **options)
    accuracy = results.select(ACCURACY, method=method, words=words[0])
    drop, flagged = (results.select(x, method=method, enough=None) for x in (DROP, FLAGGED))
    for x, y, is_flagged in np.broadcast(accuracy, drop, flagged):
      right.plot(x, y, "o", color=f"C{i}", mfc=f"C{i}" if is_flagged else "none")
  left.set(xlabel="strength of the other words", ylabel=ACCURACY)
  left.legend(fontsize=7)
  right.axhline(0, color="gray", lw=1)
  right.set(xlabel="accuracy in the benchmark's words", ylabel=DROP, title="filled: flagged")
  return figure


def abstract(config: Config, mesh):
  """An update of a model, for a dry run."""
  number, kind = config.questions, np.int32
  shapes = (number, row_length(config)), (number, 4), (number,)
  batch = Questions(*(jax.ShapeDtypeStruct(shape, kind) for shape in shapes))
  optimizer = adamw_cosine(config.learning_rate, config.num_steps)
  return abstract_step(arms.network(config), arms.answer_loss(config), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
