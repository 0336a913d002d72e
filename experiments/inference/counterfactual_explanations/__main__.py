"""Faithful explanations: which text stands in for the counterfactual of a text?

A classifier rates reviews of a known causal model. The effect of a concept on its output is
estimated with edits of the text, and with other texts: those of equal labels, those near in the
classifier's own embedding, and those near in a space that learned from noisy edits what a
counterfactual is. The true counterfactuals tell how far the effects go.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.counterfactual_explanations import explainers as by
from experiments.inference.counterfactual_explanations import readers
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import each_seed, grid
from experiments.kit.train import adamw_cosine
from jaxlab._checks import check_at_least
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "counterfactual_explanations"
SEEDS = {"laptop": 8}
ERROR, AGREE = "error", "confounders agree"
CLASSIFIER = "classifier"


@dataclasses.dataclass(frozen=True)
class Config:
  """The texts, the classifier to be explained, and the spaces."""

  num_train: int = 3000  # Texts with a rating, and one edit of each concept.
  num_labeled: int = 300  # Of these, whose concepts are labeled.
  num_candidates: int = 1500  # Texts among which matches are sought.
  num_test: int = 400  # Texts whose effects are explained: four concepts, two changes each.
  error_rate: float = 0.1  # Of edits.
  top_k: int = 10  # Matches or edits whose outputs are averaged, beside one.
  decoder: tuple[int, ...] = (48, 2)  # Width and blocks of classifier and spaces.
  num_heads: int = 4  # Their attention heads.
  classifier_steps: int = 600  # Updates of the classifier.
  classifier_batch: int = 32  # Texts per update.
  learning_rate: float = 3e-3  # AdamW, with a cosine to 0.
  space_steps: int = 600  # Updates of a space.
  space_batch: int = 16  # Texts per update, beside their keys.
  space_rate: float = 3e-3  # AdamW, with a cosine to 0.
  num_keys: int = 2  # Valid matches and edits of confounders of a text in an update.
  temperature: float = 0.1  # Of the similarities.


PRESETS = {
  "smoke": Config(
    num_train=24, num_labeled=8, num_candidates=16, num_test=6, top_k=2, decoder=(8, 1),
    num_heads=2, classifier_steps=2, classifier_batch=4, space_steps=2, space_batch=4,
  ),
  "laptop": Config(),
  "paper": Config(
    num_train=100_000, num_labeled=1755, num_candidates=10_000, num_test=2000, decoder=(768, 12),
    num_heads=12, classifier_steps=10_000, classifier_batch=128, learning_rate=2e-5,
    space_steps=20_000, space_batch=32, space_rate=2e-5, num_keys=5,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("error_rate",))
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  of_train = ("num_labeled", "classifier_batch", "space_batch", "num_keys")
  sizes.check_at_most(config.num_train, **{name: getattr(config, name) for name in of_train})
  sizes.check_at_most(config.num_candidates, top_k=config.top_k)
  check_at_least(2, top_k=config.top_k)


def run(config: Config, context: Context) -> Results:
  """Trains the classifier and three spaces, and explains the classifier in every way."""
  results = Results()
  explained = each_seed(context, CLASSIFIER, functools.partial(readers.explained, config))
  results.add({CLASSIFIER: {name: 100 * x for name, x in explained.pop("scores").items()}})
  inputs = explained.pop("tokens"), explained["labels"]["few"]["train"]
  learn = functools.partial(readers.learn_space, config)
  learned = grid(context, "space", learn, inputs, [*by.SPACES.values()])
  spaces = {m: {name: x[:, i] for name, x in learned.items()} for i, m in enumerate(by.SPACES)}
  found = each_seed(context, "effects", functools.partial(by.score, config), explained, spaces)
  results.add({by.CAUSAL: {name: 100 * found[name] for name in by.OF_PROBLEM}})
  for i, method in enumerate(by.METHODS):
    shares = {name: 100 * found[name][:, i] for name in by.OF_METHOD}
    results.add({method: {n: x for n, x in shares.items() if np.isfinite(x).all()}})
    for j, distance in enumerate(by.DISTANCES):
      for k, matches in enumerate((1, config.top_k)):
        values = {ERROR: found["errors"][:, i, j, k]}
        results.add({method: values}, distance=distance, matches=matches)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method: str, matches: int = 1):
    return results.select(ERROR, method=method, distance=by.DISTANCES[0], matches=matches)

  def about(name: str, method: str = CLASSIFIER):
    return results.select(name, method=method)

  causal, accuracy = of(by.CAUSAL), about("accuracy")
  above = accuracy - about("majority class")
  bounds = (
    (
      "no effect is 1.3 times as far off as causal matches",
      of(by.ZERO) / causal,
      1.3,
      None,
    ),
    ("a constant effect is 1.2 times as far off", of(by.CONSTANT) / causal, 1.2, None),
    ("the classifier is right on 55 to 90%", accuracy, 55, 90),
    ("and 20 points above the most frequent rating", above, 20, None),
    (
      "80% of the texts have a candidate of equal confounders",
      about("covered", by.CAUSAL),
      80,
      None,
    ),
  )
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  claim = functools.partial(compare, better="lower", requires=requires)
  return [
    claim("causal matches are 15% less far off than matches by the classifier's embedding",
          causal / of(by.EMBEDDING), 1.0, margin=0.15, headline=True,
          paper="the best of the matchers on CEBaB"),
    claim("generated edits are .05 less far off than causal matches", of(by.GENERATION), causal,
          margin=0.05, paper="generation is best"),
    claim("causal matches are .02 less far off than those of equal labels by the same edits",
          causal, of(by.WITH_EDITS), margin=0.02, paper="approximate matches are further off"),
    claim(f"the mean of {config.top_k} causal matches is .01 less far off than one",
          of(by.CAUSAL, config.top_k), causal, margin=0.01, paper="more matches help every method"),
  ]  # fmt: skip


def figure(results: Results):
  """Errors of all methods with one match and with several; confounders that matches share."""
  figure, (left, right) = plots.panels(2, width=5.5, height=4.5)
  one, many = sorted(results.distinct("matches"))

  def mean(method, matches=one):
    where = {"method": method, "distance": by.DISTANCES[0], "matches": matches}
    return results.select(ERROR, **where).mean()

  methods = sorted(by.METHODS, key=mean, reverse=True)
  places = range(len(methods))
  for matches, face in ((one, "none"), (many, "tab:blue")):
    values = [mean(method, matches) for method in methods]
    left.scatter(values, places, facecolors=face, edgecolors="tab:blue", label=f"{matches} texts")
  for method, style in ((by.ZERO, ":"), (by.TRUE, "--")):
    left.axvline(mean(method), color="gray", linestyle=style, label=method)
  left.set_yticks(places, methods, fontsize=7)
  left.set(xlabel="error of the effect (length of the difference)", xlim=(0, None))
  left.legend(fontsize=7)
  sharing = Results(r for r in results if r.quantity == AGREE)
  plots.intervals(right, sharing, AGREE, by="method")
  right.set_ylabel("confounders that the first match shares (%)")
  return figure


def abstract(config: Config, mesh):
  """An update of the classifier, for a dry run."""
  module, rows = readers.reader(config, readers.NUM_CLASSES), config.classifier_batch
  tokens, labels = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((rows, 32), (rows,)))
  optimizer = adamw_cosine(config.learning_rate, config.classifier_steps)
  return abstract_step(module, readers.label_loss(module), optimizer, (tokens, labels), mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
