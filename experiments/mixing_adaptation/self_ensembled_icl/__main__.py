"""Pooling one model's predictions over demonstrations and wordings calibrates few-shot answers.

A decoder is pretrained to label sentences by hidden rules from demonstrations. With 50 labeled
examples of a new task it then answers in context (ICL), after fine-tuning without demonstrations
(FT), or after fine-tuning on prompts that hold some (SupICL). The labels of the new tasks
are noisier than those of pretraining, so that single runs are overconfident. Every training prompt
draws its wording and its demonstrations anew, so every variation is one that the model has met. The
paper does this with Flan-T5 on text; here the language is synthetic, at every size.
"""

import dataclasses
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import plots, sizes
from experiments.mixing_adaptation.self_ensembled_icl import pretraining
from experiments.mixing_adaptation.self_ensembled_icl.answers import (
  ICL,
  ICL_LONG,
  METHODS,
  SOFTENED,
  SUPICL,
  SUPICL_LONG,
  all_answers,
  measure,
  variants,
)
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "self_ensembled_icl"
SEEDS = {"laptop": 10}


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, its pretraining, and the tasks that it is adapted to."""

  embed_dim: int = 32  # Width of the decoder.
  num_layers: int = 2  # Its blocks.
  num_heads: int = 4  # Its attention heads.
  mlp_ratio: int = 2  # Hidden width of the perceptrons over the decoder's.
  num_words: int = 2  # Words in a sentence.
  rule_dims: int = 1  # Dimensions of the words' vectors, of 16, that rules read.
  pretraining_steps: int = 3000  # AdamW steps on fresh tasks.
  pretraining_batch: int = 64  # Tasks a step.
  pretraining_noise: float = 0.1  # Share of wrong labels in pretraining.
  pretraining_rate: float = 4e-3  # Peak; warm-up over a twentieth, then a cosine to a tenth.
  num_tasks: int = 16  # New tasks.
  task_noise: float = 0.3  # Share of wrong labels in them.
  num_train: int = 50  # Labeled examples of each.
  num_test: int = 100  # Queries of each.
  num_shots: int = 2  # Demonstrations in a prompt of ICL and SupICL.
  num_draws: int = 3  # Draws of demonstrations that are pooled, or shown in one long prompt.
  adaptation_steps: int = 100  # AdamW steps of FT and SupICL.
  adaptation_batch: int = 8  # Examples a step.
  adaptation_rate: float = 1e-3  # Of FT and SupICL, constant.


PRESETS = {
  "smoke": Config(
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    pretraining_steps=2,
    pretraining_batch=8,
    num_tasks=2,
    num_train=8,
    num_test=6,
    num_shots=1,
    num_draws=2,
    adaptation_steps=2,
    adaptation_batch=4,
  ),
  "laptop": Config(),
  "paper": Config(
    embed_dim=512,
    num_layers=12,
    num_heads=8,
    mlp_ratio=4,
    num_words=8,
    rule_dims=16,
    pretraining_steps=30_000,
    pretraining_batch=256,
    pretraining_rate=3e-4,
    num_test=500,
    num_shots=3,
    num_draws=5,
    # 200 epochs of 50 examples.
    adaptation_steps=1250,
    adaptation_rate=5e-5,
  ),
}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("pretraining_noise", "task_noise"))
  sizes.check_divides(config.num_heads, embed_dim=config.embed_dim)
  per_call = pretraining.steps_per_call(config)
  sizes.check_divides(per_call, pretraining_steps=config.pretraining_steps)
  sizes.check_at_most(config.num_train, adaptation_batch=config.adaptation_batch)
  # A training example is shown others.
  sizes.check_at_most((config.num_train - 1) // config.num_draws, num_shots=config.num_shots)
  sizes.check_at_most(pretraining.WORD_DIM, rule_dims=config.rule_dims)


def run(config: Config, context: Context) -> Results:
  """Answers of all methods under all variations, then single runs and ensembles of them."""
  params = pretraining.pretrain(config, context)
  answers = all_answers(config, context, params)
  results = Results()
  for method in METHODS:
    logits = answers[method]
    num_draws = logits.shape[1]
    # One draw, repeated, is measured by the program of several.
    repeated = np.repeat(logits, config.num_draws // num_draws, axis=1)
    rows = jax.device_get(measure(repeated, answers["labels"]))
    rows = dict(zip(variants(config.num_draws), rows))
    for pooling, over in variants(num_draws):
      where = {"pooling": pooling, **({"over": over} if over else {})}
      results.add({method: rows[pooling, over]}, **where)
  return results


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """What pooling does to either way in context, and how the two trade accuracy off."""

  def mean(quantity: str, methods=(ICL, SUPICL), **where):
    """Of both ways in context together."""
    return np.mean([results.select(quantity, method=m, **where) for m in methods], axis=0)

  single, pooled = {"pooling": "single run"}, {"pooling": "mean", "over": "both"}
  accuracy, error = mean("accuracy", **single), mean("ECE", **single)
  able = precondition("single runs are right on 40% or more", accuracy, at_least=0.4)
  wrong = precondition("single runs have an ECE of .08 or more", error, at_least=0.08)

  def lower(text, margin, baseline, **options):
    ece = mean("ECE", **pooled)
    return compare(
      text, ece, baseline, better="lower", margin=margin, requires=(able, wrong), **options
    )

  return [
    lower(
      "the mean over demonstrations and wordings lowers the ECE of single runs by .02 or more",
      0.02,
      error,
      headline=True,
      paper="43% lower on average",
    ),
    compare(
      "the mean over both is at most 1 point less accurate than single runs",
      mean("accuracy", **pooled),
      accuracy,
      margin=-0.01,
      requires=(able,),
    ),
    lower(
      "the mean's ECE is below that of one prompt with all its demonstrations",
      0.01,
      mean("ECE", (ICL_LONG, SUPICL_LONG), **single),
    ),
    lower("the mean's ECE is below the vote's", 0.005, mean("ECE", pooling="vote", over="both")),
    lower(
      "the mean's ECE is below that of single runs made as confident as it is by a temperature",
      0.005,
      mean("ECE", pooling=SOFTENED),
    ),
    compare(
      "single runs: SupICL is more accurate than ICL",
      results.select("accuracy", method=SUPICL, **single),
      results.select("accuracy", method=ICL, **single),
      margin=0.01,
      requires=(able,),
    ),
  ]


def figure(results: Results):
  """Calibration and accuracy of single runs, and of what is pooled over all that varies."""
  drawing, axes = plots.panels(3)
  varied = {method: "both" for method in (ICL, SUPICL)}
  pooled = Results(
    record
    for record in results
    if record.field("pooling") != "maximum"
    and record.field("over") in (None, varied.get(record.method, "templates"))
  )
  for ax, quantity in zip(axes, ("ECE", "overconfidence", "accuracy")):
    plots.intervals(ax, pooled, quantity, by="method", color="pooling")
  axes[1].axhline(0, color="gray", ls=":")
  drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
  return drawing


def abstract(config: Config, mesh):
  """The pretraining step, for a dry run."""
  init, update = pretraining.pretraining_step(config, mesh)
  batch = {"key": jax.ShapeDtypeStruct((config.pretraining_batch, 2), np.uint32)}
  return update, jax.eval_shape(init, jax.random.key(0)), batch


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
