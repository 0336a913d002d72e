"""CrossTune: descriptions of the classes read what a black-box encoder says of a text.

Texts of a few topic words among many others, and a frozen encoder that knows related words. Heads
learn from few texts of each class, with the descriptions, without or with wrong ones, and from
generated texts, some of which are about another topic; a teacher of few texts switches those off
that it disagrees with. Baselines search descriptions without gradient, or are logistic regressions
on the same rows and with the descriptions' likeness among their features.
"""

import dataclasses
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.train import adamw_cosine
from experiments.labels.crosstune import heads, rows, tasks
from experiments.labels.crosstune.heads import DESCRIBED, FREE, SHUFFLED
from experiments.labels.crosstune.rows import BETTER, ORACLE, RIGHT, SEARCH, SWITCHED, TEACHER
from experiments.labels.crosstune.tasks import TEST
from jaxlab._checks import check_at_least
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "crosstune"
SEEDS = {"laptop": 10}


@dataclasses.dataclass(frozen=True)
class Config:
  """The texts, the heads, and the digits."""

  num_classes: int = 8  # Topics.
  vocab_size: int = 512  # Words.
  dim: int = 64  # Width of the encoder's states.
  length: int = 24  # Words of a text.
  topic_words: int = 40  # Words of each topic.
  class_overlap: float = 0.3  # How often a topic word is one of another topic.
  distractor_rate: float = 0.85  # How often a word belongs to no topic.
  shots: tuple[int, ...] = (4, 16, 64)  # Labeled texts of each class.
  headline_shots: int = 16  # One of these.
  num_generated: int = 150  # Generated texts of each class.
  wrong_rate: float = 0.3  # How often they are about another topic.
  threshold: float = 0.6  # Of the teacher's confidence, one of the next.
  thresholds: tuple[float, ...] = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # Of the figure.
  num_validation: int = 200  # Texts, and digits, that choose settings.
  num_test: int = 2000  # Other texts to test on.
  num_subsets: int = 200  # Descriptions that are searched.
  num_heads: int = 4  # Of the attention.
  attention_dim: int = 64  # Width of the attention.
  mlp_width: int = 126  # Of both layers of an MLP, which has about as many parameters.
  num_steps: int = 1800  # Updates of every head.
  batch_size: int = 32  # Rows per update.
  learning_rates: tuple[float, ...] = (1e-3, 3e-3)  # AdamW with a cosine to 0, to choose from.
  penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)  # Of logistic regression, likewise.
  num_described: int = 3  # Images that describe a digit.
  num_digits: int = 1400  # Digits to test on.


PRESETS = {
  "smoke": Config(
    num_classes=3, vocab_size=40, dim=8, length=6, topic_words=10, shots=(2, 3), headline_shots=3,
    num_generated=5, thresholds=(0.0, 0.6), num_validation=10, num_test=20, num_subsets=3,
    num_heads=2, attention_dim=8, mlp_width=8, num_steps=4, batch_size=4, learning_rates=(1e-3,),
    penalties=(1.0,), num_described=1, num_digits=20,
  ),
  "laptop": Config(),
  "paper": Config(
    num_classes=20, vocab_size=50_000, dim=1024, length=128, topic_words=1000, num_generated=1000,
    num_heads=16, attention_dim=1024, mlp_width=2030, num_steps=3000, num_test=10_000,
    learning_rates=(4e-5, 1e-4, 1e-3),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "class_overlap", "distractor_rate", "wrong_rate", "threshold", "thresholds"
  sizes.check_sizes(config, shares=shares)
  check_at_least(2, num_classes=config.num_classes)
  tasks.text_config(config)
  sizes.check_divides(config.num_heads, attention_dim=config.attention_dim)
  for name, values in (("headline_shots", config.shots), ("threshold", config.thresholds)):
    sizes.check_known([*map(str, values)], **{name: [str(getattr(config, name))]})
  sizes.check_at_most(config.num_classes * min(config.shots), batch_size=config.batch_size)
  # There are 174 images of the rarest digit.
  sizes.check_at_most(174 - config.num_described, headline_shots=config.headline_shots)
  datasets.describe("digits").check_splits(*tasks.sizes_of_digits(config).values())


def run(config: Config, context: Context) -> Results:
  """Trains and searches on texts, then on digits."""
  results = Results()
  rows.add_topics(config, context, results)
  rows.add_digits(config, context, results)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  where, few = {"task": rows.TOPICS}, {"task": rows.TOPICS, "shots": config.headline_shots}

  def of(method: str):
    return results.select(TEST, method=method, **few)

  def switched(quantity: str):
    return results.select(quantity, method=TEACHER, threshold=config.threshold, **few)

  ours, search, regression = of(SWITCHED), of(SEARCH), of(BETTER)
  zero_shot, oracle = (results.select(TEST, method=m, **where) for m in (rows.ZERO_SHOT, ORACLE))
  precision = results.select("precision", method=rows.GENERATED, **where)
  bounds = (
    ("the nearest description is right on 40 to 75%", zero_shot, 0.4, 0.75),
    ("the word oracle is 8 points above both baselines", oracle - np.maximum(search, regression),
     0.08, None),
    ("65 to 75% of generated texts are about their label", precision, 0.65, 0.75),
    ("the teacher is right on 45%", of(DESCRIBED), 0.45, None),
    ("it keeps 20 to 80% of the generated texts", switched("kept_share"), 0.2, 0.8),
    ("right generated texts are worth 3 points", of(RIGHT) - of(DESCRIBED), 0.03, None),
  )  # fmt: skip
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  claim = lambda *sides, **options: compare(*sides, requires=requires, **options)  # noqa: E731
  return [
    claim("descriptions and switched generated texts are 1 point above the best of a search over "
          "descriptions", ours, search, margin=0.01, headline=True,
          paper="+5.7 points on average over the best gradient-free tuning, seven sets"),
    claim("and above the better of two logistic regressions on the same texts", ours, regression),
    claim("of few texts alone, descriptions are above free vectors", of(DESCRIBED), of(FREE)),
    claim("and above shuffled descriptions", of(DESCRIBED), of(SHUFFLED)),
    claim("switched generated texts are above all of them", ours, of(rows.ALL)),
    claim("10 points more of the switched texts are about their label", switched("precision"),
          precision, margin=0.1),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy against shots; precision against the share of generated texts that is kept."""
  drawing, (left, right) = plots.panels(2, width=5.5, height=4.0)
  for method in (*heads.VECTORS, rows.ALL, SWITCHED, RIGHT, SEARCH, rows.POOLED, BETTER):
    plots.curves(left, results, TEST, x="shots", method=method, task=rows.TOPICS)
  plots.log_axis(left, "labeled texts of a class")
  for method, style in ((rows.ZERO_SHOT, ":"), (ORACLE, "--")):
    value = results.select(TEST, method=method, task=rows.TOPICS).mean()
    left.axhline(value, color="gray", linestyle=style, label=method)
  left.set(ylabel="accuracy")
  plots.legend_below(drawing, left, columns=4)
  of_teacher, quantities = {"method": TEACHER, "task": rows.TOPICS}, ("kept_share", "precision")
  plots.paths(right, results, *quantities, along="threshold", color="shots", **of_teacher)
  of_teacher["shots"] = results.distinct("shots", method=TEACHER)[-1]
  for theta in results.distinct("threshold")[-4:]:
    point = [results.select(q, threshold=theta, **of_teacher).mean() for q in quantities]
    right.annotate(f"{theta:g}", point, fontsize=7)
  right.set(xlabel="share of generated texts that is kept", ylabel="share of these that is right")
  right.legend(title="shots of the teacher", fontsize=7)
  return drawing


def abstract(config: Config, mesh):
  """An update of the attention with free vectors, for a dry run."""
  module = heads.make_head(config, config.num_classes)
  shape = config.batch_size, config.length, config.dim
  batch = jax.ShapeDtypeStruct(shape, np.float32), jax.ShapeDtypeStruct(shape[:1], np.int32)
  optimizer = adamw_cosine(config.learning_rates[0], config.num_steps)
  return abstract_step(module, heads.head_loss(module), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
