"""Pooling one model's predictions over demonstrations and wordings calibrates few-shot answers.

A decoder is pretrained to label sentences by hidden rules from demonstrations. With 50 labeled
examples of a new task it then answers in context (ICL), after fine-tuning without demonstrations
(FT), or after fine-tuning on prompts that hold some (SupICL). Every training prompt draws its
wording and its demonstrations anew, so every variation is one that the model has met. The paper
does this with Flan-T5 on text; here the language is synthetic, at every size.
"""

import dataclasses
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import plots
from experiments.mixing_adaptation.self_ensembled_icl import pretraining
from experiments.mixing_adaptation.self_ensembled_icl.answers import all_answers, measure, variants
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "self_ensembled_icl"
METHODS = ("ICL", "FT", "SupICL")


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, its pretraining, and the tasks that it is adapted to."""

  embed_dim: int = 64  # Width of the decoder.
  num_layers: int = 3  # Its blocks.
  num_heads: int = 4  # Its attention heads.
  mlp_ratio: int = 2  # Hidden width of the perceptrons over the decoder's.
  rule_dims: int = 1  # Dimensions of the words' vectors, of 16, that rules read.
  pretraining_steps: int = 2000  # AdamW steps on fresh tasks.
  pretraining_batch: int = 128  # Tasks a step.
  max_shots: int = 4  # Most demonstrations in pretraining.
  pretraining_rate: float = 2e-3  # Peak; warm-up over a twentieth, then a cosine to a tenth.
  num_tasks: int = 20  # New tasks.
  num_train: int = 50  # Labeled examples of each.
  num_test: int = 250  # Queries of each.
  num_shots: int = 3  # Demonstrations in a prompt of ICL and SupICL.
  num_draws: int = 5  # Draws of demonstrations that are pooled.
  adaptation_steps: int = 150  # AdamW steps of FT and SupICL.
  adaptation_batch: int = 8  # Examples a step.
  adaptation_rate: float = 1e-3  # Of FT and SupICL, constant.


PRESETS = {
  "smoke": Config(
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    pretraining_steps=2,
    pretraining_batch=8,
    max_shots=2,
    num_tasks=2,
    num_train=8,
    num_test=6,
    num_shots=2,
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
    rule_dims=16,
    pretraining_steps=30_000,
    pretraining_batch=256,
    max_shots=10,
    pretraining_rate=3e-4,
    num_test=500,
    # 200 epochs of 50 examples.
    adaptation_steps=1250,
    adaptation_rate=5e-5,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Answers of all methods under all variations, then single runs and ensembles of them."""
  params = pretraining.pretrain(config, context)
  answers = context.cached("answers", all_answers, config, context, params)
  results = Results()
  for method in METHODS:
    logits = answers[method]
    num_draws = logits.shape[1]
    # FT is shown nothing and has one draw; repeated, it is measured by the program of the others.
    repeated = np.repeat(logits, config.num_draws // num_draws, axis=1)
    rows = jax.device_get(measure(repeated, answers["labels"]))
    rows = dict(zip(variants(config.num_draws), rows))
    for pooling, over in variants(num_draws):
      where = {"pooling": pooling, **({"over": over} if over else {})}
      results.add({method: rows[pooling, over]}, **where)
  return results


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """What pooling does to either way in context, and how the methods trade accuracy off."""

  def mean(quantity: str, **where):
    """Of ICL and SupICL together."""
    return np.mean([results.select(quantity, method=m, **where) for m in ("ICL", "SupICL")], axis=0)

  single, pooled = {"pooling": "single run"}, {"pooling": "mean", "over": "both"}
  vote = {"pooling": "vote", "over": "both"}
  accuracy, error = mean("accuracy", **single), mean("ECE", **single)
  able = precondition("single runs are right on 50% or more", accuracy, at_least=0.5)
  wrong = precondition("single runs have an ECE of .08 or more", error, at_least=0.08)

  def lower(text, baseline, margin, **more):
    ece = mean("ECE", **pooled), mean("ECE", **baseline)
    return compare(text, *ece, better="lower", margin=margin, requires=(able, wrong), **more)

  def single_runs(text, quantity, method, margin):
    sides = (results.select(quantity, method=m, **single) for m in (method, "ICL"))
    return compare(text, *sides, margin=margin, requires=(able,))

  return [
    lower(
      "the mean over demonstrations and wordings lowers the ECE of single runs by .02 or more",
      single,
      0.02,
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
    lower("the mean's ECE is below the vote's", vote, 0.005),
    lower("the mean's ECE is below batch calibration's", {"pooling": "batch calibration"}, 0.005),
    single_runs("single runs: SupICL is more accurate than ICL", "accuracy", "SupICL", 0.01),
    single_runs("single runs: FT is more overconfident than ICL", "overconfidence", "FT", 0.02),
  ]


def figure(results: Results):
  """Accuracy against calibration, single runs and ensembles."""
  figure, axes = plots.panels(2)
  marks = {"single run": "o", "batch calibration": "x", "mean": "*", "vote": "^", "maximum": "s"}
  for ax, error in zip(axes, ("ECE", "NLL")):
    for i, method in enumerate(METHODS):
      for pooling, mark in marks.items():
        for record in results.matching(quantity=error, method=method, pooling=pooling):
          accuracy = results.select("accuracy", method=method, **record.setting)
          ax.plot(accuracy.mean(), record.values.mean(), mark, color=f"C{i}", alpha=0.8)
    ax.set(xlabel="accuracy", ylabel=error)
  for pooling, mark in marks.items():
    ax.plot([], [], mark, color="gray", label=pooling)
  for i, method in enumerate(METHODS):
    ax.plot([], [], "-", color=f"C{i}", label=method)
  ax.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """The pretraining step, for a dry run."""
  init, update = pretraining.pretraining_step(config, mesh)
  batch = {"key": jax.ShapeDtypeStruct((config.pretraining_batch, 2), np.uint32)}
  return update, jax.eval_shape(init, jax.random.key(0)), batch


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
