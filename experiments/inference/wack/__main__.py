"""Ignorance or error: does a model that answers wrongly know the answer, and can one see it inside?

Documents about people are right throughout, or wrong throughout. A decoder of them answers wrongly
about rare people, whom it does not know, and about others after wrong answers. Linear probes of its
hidden states before the answer tell the two apart, where what it puts out hardly does.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.wack import people, probes
from experiments.inference.wack.probes import BEST, GENERIC, OUTPUT, OWN, PLACES, THREE, TWO
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import each_seed, run_seeds
from experiments.kit.train import adamw_cosine
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "wack"
MODELS = "models"
OVERLAP, BY_LAYER = "Jaccard index", "accuracy by layer"
MATCHED = "best layer, people of equal frequency"
_RATIO = 1.1  # Of the counts of matched facts.


@dataclasses.dataclass(frozen=True)
class Config:
  """The documents, the decoder, the prompts and the probes."""

  num_people: int = 2000  # Whom documents ask about.
  num_attributes: int = 3  # Of each.
  num_values: int = 40  # That an attribute may have.
  num_lines: int = 5  # Of a document.
  unreliable_fraction: float = 0.25  # Of the documents, which tell myths throughout.
  zipf_exponent: float = 1.1  # Of the frequencies of people.
  num_documents: int = 128_000  # Each read once.
  decoder: tuple[int, ...] = (48, 3)  # Width and blocks.
  num_heads: int = 4  # Attention heads.
  batch_size: int = 64  # Documents per update.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  well_known: int = 50  # The most frequent people, whom shots ask about.
  num_shots: int = 3  # Lines before a question.
  wrong_shots: tuple[int, ...] = (1, 2, 3)  # Wrong ones among them, to choose from.
  num_samples: int = 5  # Answers that must all be right if a fact is known.
  temperature: float = 0.5  # Of these.
  train_rows: int = 500  # Of a class, for a probe.
  validation_rows: int = 200  # Of a class, to choose layer and regularization on.
  test_rows: int = 200  # Of a class.
  regularizations: tuple[float, ...] = (1.0, 10.0, 100.0)  # C, for every probe.


PRESETS = {
  "smoke": Config(
    num_people=20, num_attributes=1, num_values=3, num_lines=2, num_documents=16, decoder=(8, 1),
    num_heads=2, batch_size=8, well_known=4, num_shots=2, wrong_shots=(1, 2), num_samples=2,
    train_rows=6, validation_rows=4, test_rows=4, regularizations=(1.0,),
  ),
  "laptop": Config(),
  "paper": Config(
    num_people=30_000, num_values=1000, num_documents=20_000_000, decoder=(768, 12), num_heads=12,
    batch_size=512, learning_rate=3e-4, well_known=1000, train_rows=700, test_rows=300,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("unreliable_fraction",))
  sizes.check_at_most(config.num_documents, batch_size=config.batch_size)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  sizes.check_at_most(config.num_people, well_known=config.well_known)
  sizes.check_at_most(config.num_lines, num_shots=config.num_shots)
  sizes.check_at_most(config.num_shots, wrong_shots=max(config.wrong_shots))
  sizes.check_at_most(config.num_values - 1, num_attributes=config.num_attributes)
  check_at_least(2, num_values=config.num_values, well_known=config.well_known)
  check_at_least(3, decoder=config.decoder[0])
  check_range("temperature", config.temperature, "(0, inf)")


def run(config: Config, context: Context) -> Results:
  """Trains two models per seed, asks them about all facts, and fits probes."""
  results, seeds = Results(), np.asarray(context.seed_numbers, np.int32)
  fit = functools.partial(people.fit_model, config)
  options = {"num_seeds": 2 * context.seeds, "arguments": np.repeat(seeds, 2)}
  params = run_seeds(context, MODELS, fit, **options)["params"]
  pairs = jax.tree.map(lambda x: x.reshape(context.seeds, 2, *x.shape[1:]), params)
  measure = functools.partial(probes.measure_both, config)
  measured = each_seed(context, "probes", measure, seeds, pairs)
  results.add({of: {OVERLAP: x} for of, x in measured.pop("overlaps").items()})
  flat = {name: x.reshape(-1, x.shape[-1]) for name, x in measured.pop("matched").items()}
  found = [
    probes.matched_accuracy(**{name: x[i] for name, x in flat.items()}, ratio=_RATIO)
    for i in range(2 * context.seeds)
  ]
  accuracy, number = np.reshape(found, (-1, 2, 2)).mean(axis=1).T
  results.add({MATCHED: {"accuracy": accuracy, "pairs": number}}, task=TWO)
  measured = jax.tree.map(lambda x: x.mean(axis=1), measured)  # Over both models.
  results.add({MODELS: measured.pop("scores")})
  for (i, j, k), _ in np.ndenumerate(measured["layers"][0]):
    accuracy = {list(probes.COMPONENTS)[j]: {BY_LAYER: measured["layers"][:, i, j, k]}}
    results.add(accuracy, place=PLACES[i], layer=k + 1)
  for task in (TWO, THREE, OWN):
    results.add({method: {"accuracy": x} for method, x in measured[task].items()}, task=task)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, as means over the two models of a seed."""

  def accuracy(method, task=TWO):
    return results.select("accuracy", method=method, task=task)

  def of_models(quantity):
    return results.select(quantity, method=MODELS)

  errors, right = of_models("errors among known"), of_models("right on known, good shots")
  lost = right - of_models("right on known, bad shots")
  bounds = (
    ("800 facts are known", of_models("known"), 800, None),
    ("600 are not", of_models("not known"), 600, None),
    ("wrong shots lead astray on 25 to 75% of the known ones", errors, 0.25, 0.75),
    ("other good shots leave 95% of them right", right, 0.95, None),
    ("wrong shots cost .2 of this", lost, 0.2, None),
    ("100 test facts of each class", of_models("fewest test rows"), 100, None),
  )
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  pairs = results.select("pairs", method=MATCHED, task=TWO)
  matched = precondition("30 pairs of facts are of equal frequency", pairs, at_least=30)
  return [
    compare(
      "error or ignorance, before the answer: the best layer is .05 more often right than a probe "
      "of the output",
      accuracy(BEST), accuracy(OUTPUT), margin=0.05, headline=True, requires=requires,
    ),
    compare(
      "right, error or ignorance: the best layer is .05 more often right than the output",
      accuracy(BEST, THREE), accuracy(OUTPUT, THREE), margin=0.05, requires=requires,
      paper="60 to 70% of three classes in middle layers",
    ),
    compare(
      "not rarity alone: on facts that training states equally often the best layer is .08 above "
      "chance",
      accuracy(MATCHED), 0.5, margin=0.08, requires=(*requires, matched),
    ),
    compare(
      "right or error, after the answer: training on the model's own answers is .03 better than on "
      "right and wrong ones of another",
      accuracy(BEST, OWN), accuracy(GENERIC, OWN), margin=0.03, requires=requires,
      paper="model-specific data are better than generic ones",
    ),
    compare(
      "errors of two models overlap less than those of one after other wrong shots, by .10",
      *(results.select(OVERLAP, method=of) for of in ("two models", "one model, other shots")),
      better="lower", margin=0.1, requires=requires,
      paper="models that know the same facts err on different ones",
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy over layers, by place and component; and overlaps of errors."""
  figure, axes = plots.panels(len(PLACES), width=3.8)
  for ax, place in zip(axes, PLACES[:-1]):
    plots.curves(ax, results, BY_LAYER, x="layer", place=place)
    for method, style in zip(probes.EXTRA, ("--", "-.", ":")):
      height = results.select("accuracy", method=method, task=TWO).mean()
      ax.axhline(height, color="black", ls=style, lw=1, label=method)
    ax.set(title=f"at the {place}", ylabel="accuracy, error or ignorance", ylim=(0.4, 1))
  axes[0].legend(fontsize=6)
  plots.intervals(axes[-1], results, OVERLAP, by="method", color="quantity")
  axes[-1].set(title="sets of errors, of facts", ylim=(0, 1))
  return figure


def abstract(config: Config, mesh):
  """An update of the decoder, for a dry run."""
  model, size = people.network(config), config.batch_size
  draw = functools.partial(people.documents, dataclasses.replace(config, num_documents=size))
  batch = jax.eval_shape(draw, jax.ShapeDtypeStruct((), np.int32))
  optimizer = adamw_cosine(config.learning_rate, config.num_documents // size)
  return abstract_step(model, people.answer_loss(config, model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
