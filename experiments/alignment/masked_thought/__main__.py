"""Masked fine-tuning: random tokens of the solution are replaced in what the model reads.

A base model knows arithmetic and restates short problems. It is fine-tuned on a few longer ones in
which the number after an operator is mostly that operator's favorite, so that it may be guessed
from the token before in place of read in the problem, and tested on problems without that habit.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.alignment.masked_thought import habits, tuning
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import choose, each_seed, grid
from experiments.kit.train import adamw_cosine
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "masked_thought"
SEEDS = {"laptop": 6}
HABIT, UNIFORM = "habit", "no habit"  # Of the training problems.
SFT, RANDOM, MASK = "SFT", "random tokens", "mask token"
DROPPED, NOISE = "dropped embeddings", "noisy embeddings"
MISREAD = "failures that begin with an operand"
OPERATORS, EVERYWHERE = "random tokens, operators", "random tokens, problem too"


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, the chains, and how they are perturbed."""

  decoder: tuple[int, ...] = (48, 2)  # Width and blocks of the decoder.
  num_heads: int = 4  # Its attention heads.
  modulus: int = 11  # Of the chains.
  num_terms: int = 5  # Numbers in a problem.
  base_steps: int = 1000  # Updates of the base model.
  base_texts: int = 64  # Fresh texts per update.
  num_train: int = 300  # Problems to fine-tune on.
  habit: float = 0.9  # Share of their operands that are their operators' favorites.
  num_validation: int = 500  # Problems without habit, to choose setting and epoch on.
  num_test: int = 1000  # And others to test on.
  num_epochs: int = 40  # Over the training problems.
  num_evaluations: int = 5  # Within a training; divides its updates.
  batch_size: int = 32  # Problems per update.
  num_dictated: int = 16  # Texts per update that keep up arithmetic, for every method.
  learning_rates: tuple[float, ...] = (3e-3,)  # AdamW, with a cosine to 0.
  dropouts: tuple[float, ...] = (0.0, 0.1)  # Of plain fine-tuning; the last is everyone's.
  weight_decays: tuple[float, ...] = (0.01, 0.1)  # Likewise; the first is everyone's.
  rates: tuple[float, ...] = (0.2, 0.4, 0.6)  # Last rates of replaced tokens.
  rate: float = 0.4  # Of the headline, one of them.
  dropped: tuple[float, ...] = (0.2, 0.4)  # Last rates of dropped embeddings.
  noise: float = 5.0  # Scale of noisy embeddings.
  warmup: float = 2 / 3  # Share of the training in which rates rise.
  num_bins: int = 11  # Of distances, in the figure.

  def __post_init__(self):
    if self.rate not in self.rates:
      raise ValueError(f"rate must be one of rates, {self.rates}, got {self.rate}.")


PRESETS = {
  "smoke": Config(
    decoder=(8, 1), num_heads=2, modulus=3, num_terms=3, base_steps=2, base_texts=8, num_train=8,
    num_validation=4, num_test=4, num_epochs=2, num_evaluations=2, batch_size=4, num_dictated=4,
    rates=(0.4,), dropped=(0.4,), num_bins=3,
  ),
  "laptop": Config(),
  "paper": Config(
    decoder=(768, 12), num_heads=12, modulus=97, num_terms=8, base_steps=20_000, base_texts=256,
    num_train=7473, habit=0.5, num_epochs=10, num_evaluations=10, batch_size=64, num_dictated=64,
    learning_rates=(1e-5,),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "habit", "dropouts", "rates", "rate", "dropped"
  sizes.check_sizes(config, shares=shares)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  sizes.check_at_most(config.num_train, batch_size=config.batch_size)
  updates = config.num_train // config.batch_size * config.num_epochs
  sizes.check_divides(config.num_evaluations, updates=updates)


def methods(config: Config) -> dict[tuple[str, float], dict]:
  """Method and rate -> what it does to the text that is read."""
  places = {OPERATORS: tuning.OPERATORS, EVERYWHERE: tuning.EVERYWHERE}
  return {
    **{(RANDOM, rate): {"rate": rate} for rate in config.rates},
    (MASK, config.rate): {"rate": config.rate, "random": 0.0},
    **{(DROPPED, rate): {"dropped": rate} for rate in config.dropped},
    (NOISE, config.noise): {"noise": config.noise},
    **{(name, config.rate): {"rate": config.rate, "places": x} for name, x in places.items()},
  }


def run(config: Config, context: Context) -> Results:
  """Trains base models, and fine-tunes them in every way."""
  results = Results()
  base = each_seed(context, "base model", functools.partial(tuning.pretrain, config))
  results.add({"base model": {"results right": 100 * base["results right"]}})
  for task, habit in ((HABIT, config.habit), (UNIFORM, 0.0)):
    fit = functools.partial(fine_tune, config, context, base["params"], task, habit)
    names, of_sft = ("dropout", "weight_decay"), []
    tried = [dict(zip(names, (x, y))) for x in config.dropouts for y in config.weight_decays]
    for dropout in config.dropouts:
      settings = [x for x in tried if x["dropout"] == dropout]
      of_sft.append(fit(f"{SFT}, dropout {dropout:g}", settings))
    together = {name: np.concatenate([x[name] for x in of_sft], axis=1) for name in of_sft[0]}
    add(results, SFT, choose(together, tried, select="validation/accuracy"), task=task)
    chosen = {
      name: perturbation
      for name, perturbation in methods(config).items()
      if task == HABIT or name[0] == RANDOM
    }
    common = {"dropout": config.dropouts[-1], "weight_decay": config.weight_decays[0]}
    measured = fit("perturbed", [common | x for x in chosen.values()])
    for i, (method, rate) in enumerate(chosen):
      add(results, method, {name: x[:, i] for name, x in measured.items()}, task=task, rate=rate)
  return results


def fine_tune(config, context, base, task: str, habit: float, stage: str, settings):
  """Fine-tunes with settings that share the dropout: quantity -> `[seeds, settings, ...]`."""
  (dropout,) = {setting["dropout"] for setting in settings}
  traced = [
    {name: x for name, x in (tuning.PLAIN | setting).items() if name != "dropout"}
    | {"habit": habit}
    for setting in settings
  ]
  program = _program(config, dropout)
  return grid(context, f"{task}/{stage}", program, base, traced)


@functools.cache  # One object, and so one compiled program.
def _program(config: Config, dropout: float):
  return functools.partial(tuning.fine_tune, config, dropout=dropout)


def add(results: Results, method: str, measured: dict[str, np.ndarray], **where) -> None:
  """Adds what was measured of a method; the sensitivity by the bin of the distance."""
  by_distance = measured.pop("sensitivity")
  results.add({method: measured}, **where)
  for i, values in enumerate(by_distance.T):
    results.add({method: {"sensitivity": values}}, **where, distance=i)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method: str, quantity: str = "accuracy", rate: float | None = config.rate, task=HABIT):
    where = {} if method == SFT else {"rate": rate}
    return results.select(quantity, method=method, task=task, **where)

  arithmetic = results.select("results right", method="base model")
  bounds = (
    ("the base model has 95% of results right", arithmetic, 95, None),
    ("without habit, plain fine-tuning solves 90%", of(SFT, task=UNIFORM), 90, None),
    ("with it, plain fine-tuning solves 35 to 85%", of(SFT), 35, 85),
    ("and has 97% of the training tokens right", of(SFT, "training tokens right"), 97, None),
    (
      "its failures begin with an operand",
      of(SFT, "failures that begin with an operand"),
      60,
      None,
    ),
  )
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  far = [of(method, "far sensitivity") for method in (RANDOM, SFT)]
  contrary = [of(method, "contrary operands right") for method in (RANDOM, SFT)]
  dropped = np.stack([of(DROPPED, "accuracy", rate) for rate in config.dropped])
  validated = np.stack([of(DROPPED, "validation/accuracy", rate) for rate in config.dropped])
  best = np.take_along_axis(dropped, validated.argmax(0)[None], axis=0)[0]
  return [
    compare(
      f"random tokens at rate {config.rate:g} solve 3 points more than tuned plain fine-tuning",
      of(RANDOM), of(SFT), margin=3.0, headline=True, requires=requires,
      paper="GSM8K, Llama-2-7B: 42.8 to 47.3",
    ),
    compare(
      "a mask token is at most 2 points behind random tokens",
      of(MASK), of(RANDOM), margin=-2.0, requires=requires,
    ),
    compare(
      "operands and results depend 20% more on far tokens of the problem",
      far[0] / far[1], 1.0, margin=0.2, requires=requires,
    ),
    compare(
      "operands against the habit are read right 5 points more often",
      *contrary, margin=5.0, requires=requires,
    ),
    compare(
      "random tokens solve more than dropped embeddings at their best rate",
      of(RANDOM), best, requires=requires,
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Accuracy by the rate of replaced tokens, with and without habit; sensitivity by distance."""
  figure, axes = plots.panels(3)
  for ax, task in zip(axes, (HABIT, UNIFORM)):
    for method in (RANDOM, MASK, DROPPED)[: 3 if task == HABIT else 1]:
      plots.curves(ax, results, "accuracy", x="rate", method=method, color="method", task=task)
    ax.axhline(results.select("accuracy", method=SFT, task=task).mean(), color="black", label=SFT)
    ax.set(title=task, xlabel="last rate", ylabel="accuracy (%)")
    ax.legend(fontsize=7)
  (rate,) = results.distinct("rate", method=MASK)
  for method, where in ((SFT, {}), (RANDOM, {"rate": rate})):
    options = {"x": "distance", "method": method, "color": "method", "task": HABIT, **where}
    plots.curves(axes[2], results, "sensitivity", **options)
  axes[2].set(title="sensitivity", xlabel="bin of the distance", ylabel="nats")
  axes[2].legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update with random tokens, for a dry run."""
  model, rows = tuning.network(config, dropout=config.dropouts[-1]), config.batch_size
  length = model.config.max_positions
  shapes = ((rows, length), "i4"), ((rows, length), "f4"), ((rows,), "i4"), ((rows,), "f4")
  *texts, progress = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
  loss = tuning.objective(config, model, tuning.PLAIN | {"rate": config.rate})
  optimizer = adamw_cosine(config.learning_rates[0], config.num_train // rows * config.num_epochs)
  return abstract_step(model, loss, optimizer, (habits.Texts(*texts), progress), mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
