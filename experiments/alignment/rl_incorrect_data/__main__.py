"""Learning from wrong solutions: which step went wrong, found by rollouts.

A policy imitates texts with misconceptions: some entries of the table of arithmetic mostly show one
wrong value. Answers that are right by luck keep misconceptions among its own right solutions; pairs
of a wrong step and a better one, by the values of prefixes, unlearn them. A second task asks how
many texts of a noisy author plain imitation needs for the same error.
"""

import dataclasses
import functools
import sys

import jax

from experiments import catalogue
from experiments.alignment.rl_incorrect_data import policy, tasks
from experiments.alignment.rl_incorrect_data.rows import CRITICAL
from experiments.alignment.rl_incorrect_data.tasks import FEWER, RFT, SFT, STEPS, UNLEARN
from experiments.kit import chains as kit
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.train import adamw_cosine
from jaxlab import data
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "rl_incorrect_data"


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, the chains, and what is sampled; pairs of numbers are of the two tasks."""

  decoder: tuple[int, ...] = (48, 2)  # Width and blocks of the decoder.
  modulus: tuple[int, ...] = (12, 11)  # Of the chains.
  num_terms: tuple[int, ...] = (8, 5)  # Numbers in a problem.
  misconception_rate: float = 0.2  # Share of the first task's table.
  misconception_prob: float = 0.75  # How often its texts show a misconception.
  noise: float = 0.2  # Share of steps of the second task's texts that are arbitrary.
  base_steps: tuple[int, ...] = (1000, 600)  # Updates of a new policy, on fresh texts.
  base_texts: int = 64  # Texts per update.
  num_train: int = 2000  # Problems of the first task, with their answers.
  text_sizes: tuple[int, ...] = (100, 200, 400, 800, 1600)  # Problems of the second; increasing.
  own_sizes: tuple[int, ...] = (200, 400)  # Of these, where the policy learns from own samples.
  num_validation: int = 500  # Other problems, to choose rate and update on.
  num_test: int = 2000  # And others to test on.
  num_samples: int = 4  # Solutions of a problem.
  num_rollouts: int = 64  # Completions of a prefix.
  num_candidates: int = 4  # Other steps in the critical place.
  threshold: float = 0.15  # The drop of the value that makes a step critical.
  margin: float = 0.1  # The least gap of a pair of steps.
  beta: float = 0.1  # Of DPO, and of the weights exp(advantage / beta).
  max_weight: float = 20.0  # The largest of these.
  learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)  # To choose from, for imitation.
  wrong_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4)  # Likewise, from wrong solutions.
  batch_size: int = 32  # Rows per update.
  num_steps: tuple[int, ...] = (300, 1500)  # Updates of a method.
  num_evaluations: int = 3  # Within a training; divides num_steps.
  num_rounds: int = 4  # Of sampling and training on right solutions.


PRESETS = {
  "smoke": Config(
    decoder=(8, 1), modulus=(3, 3), num_terms=(3, 3), base_steps=(2, 2), base_texts=4, num_train=8,
    text_sizes=(4, 8), own_sizes=(8,), num_validation=4, num_test=4, num_samples=2, num_rollouts=2,
    num_candidates=2, learning_rates=(1e-3,), wrong_rates=(1e-3,), batch_size=4,
    num_steps=(2, 2), num_evaluations=1, num_rounds=2,
  ),
  "laptop": Config(),
  "paper": Config(
    decoder=(768, 12), modulus=(96, 97), base_steps=(20_000, 20_000), base_texts=256,
    num_train=8000, text_sizes=(8000, 16_000, 32_000, 64_000, 128_000), own_sizes=(8000, 16_000),
    learning_rates=(1e-5, 1e-4), wrong_rates=(1e-7, 1e-6), num_steps=(3000, 3000),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "misconception_rate", "misconception_prob", "noise", "threshold", "margin"
  sizes.check_sizes(config, shares=shares)
  names = "modulus", "num_terms", "base_steps", "num_steps"
  sizes.check_lengths(tasks=tasks.TASKS, **{name: getattr(config, name) for name in names})
  for num_steps in config.num_steps:
    sizes.check_divides(config.num_evaluations, num_steps=num_steps)
  sizes.check_divides(4, decoder=config.decoder[0])
  sizes.check_at_most(config.num_train, batch_size=config.batch_size)
  sizes.check_known([*map(str, config.text_sizes)], own_sizes=[*map(str, config.own_sizes)])


def run(config: Config, context: Context) -> Results:
  """Runs both tasks."""
  results = Results()
  tasks.unlearn(tasks.Task(config, context, UNLEARN), results)
  tasks.need_fewer(tasks.Task(config, context, FEWER), results)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method: str, quantity: str = "accuracy", **where):
    return results.select(quantity, method=method, task=where.pop("task", UNLEARN), **where)

  steps, pairs = STEPS[CRITICAL], min(500, config.num_train // 2)
  bounds = (
    ("the policy solves 25 to 60%", of(SFT), 25, 60),
    ("25 to 70% of its samples are accepted", of(SFT, "accepted"), 25, 70),
    ("15% of these hold a wrong step", of(SFT, "accepted with a wrong step"), 15, None),
    ("they are mostly wrong at misconceptions", of(SFT, "right at misconceptions"), None, 50),
    (f"there are {pairs} pairs of steps", of(SFT, "pairs"), pairs, None),
    ("70% of them replace a wrong step", of(SFT, "critical steps that are wrong"), 70, None),
    ("right texts of the same problems give 90%", of(tasks.CLEAN), 90, None),
  )
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  rounds = of(tasks.ROUNDS, round=config.num_rounds)
  beliefs = (of(method, "misconceptions") for method in (steps, RFT))
  doublings = (
    of(method, "doublings", task=FEWER, average=("problems",)) for method in (steps, RFT)
  )
  texts = [of(SFT, task=FEWER, problems=config.text_sizes[i]) for i in (0, -1)]
  ratio = (100 - texts[1]) / (100 - texts[0])
  falls = precondition("imitation of more texts halves the error", ratio, at_most=0.5)
  claim, ours = functools.partial(compare, requires=requires), of(steps)
  headline = {"headline": True, "paper": "per-step DPO is worth 8 times the problems, RFT twice"}
  text = "few problems: pairs of steps are worth half a doubling of the problems more than RFT"
  return [
    claim("pairs of steps solve 5 points more than RFT on the same problems", ours, of(RFT),
          margin=5.0, **headline),
    claim(f"pairs of steps solve 2 points more than {config.num_rounds} rounds of RFT", ours,
          rounds, margin=2.0),
    claim("pairs of steps solve 3 points more than pairs of whole solutions", ours,
          of(tasks.SOLUTIONS), margin=3.0),
    claim("pairs of steps make misconceptions 30 points less likely than RFT does", *beliefs,
          better="lower", margin=30.0),
    claim("steps weighted by exp(advantage / beta) are at most 3 points behind pairs of steps",
          of(tasks.WEIGHTED), ours, margin=-3.0),
    compare(text, *doublings, margin=0.5, paper="3 doublings against 1", requires=(falls,)),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy and repeated misconceptions of all methods; error against the number of problems."""
  figure, (left, right) = plots.panels(2, width=5.5)
  for quantity in ("accuracy", "misconceptions"):
    plots.intervals(left, results, quantity, by="method", color="quantity", task=UNLEARN)
  left.set(title="misconceptions", ylabel="%")
  left.legend(fontsize=7)
  plots.curves(right, results, "error", x="problems", task=FEWER)
  right.set(title="few problems", xscale="log", yscale="log", ylabel="error (%)")
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update on weighted steps, for a dry run."""
  chains = data.ModularChainConfig(config.modulus[0], config.num_terms[0], verbose=False)
  model, rows = policy.network(config, chains), config.batch_size
  length, steps = chains.prompt_length + chains.response_length, (rows, chains.num_terms - 1)
  shapes = ((rows, length), "i4"), (steps, "f4"), (steps, "f4")
  batch = kit.Steps(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
  loss = kit.step_loss(model, chains, beta=config.beta, max_weight=config.max_weight)
  return abstract_step(model, loss, adamw_cosine(1e-3, config.num_steps[0]), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
