"""SequenceMatch: occupancies of texts are matched, and a backspace leaves what data never visit.

Chains of sums, differences and products are texts without a prompt, whose beginnings follow a
skewed law that sharpened sampling destroys. More valid texts count only if that law stays as near.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.alignment.sequencematch import texts, tuning
from experiments.alignment.sequencematch.texts import Sampling
from experiments.alignment.sequencematch.tuning import ARMS, CORRECTIONS, MAIN, WITHOUT
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import grid
from experiments.kit.train import adamw_cosine
from jaxlab.experiment import Claim, Context, Results, compare, precondition, t_interval

PAPER = "sequencematch"
SEEDS = {"laptop": 5}
LIKELIHOOD = "maximum likelihood"
SHARPENED = "maximum likelihood, best temperature"
NUCLEUS, KNOWN, CHECKED = "nucleus", "results sharpened", "wrong results again"


@dataclasses.dataclass(frozen=True)
class Config:
  """The texts, the decoder and its tuning."""

  modulus: int = 13  # Of the chains.
  num_terms: int = 6  # Numbers in a chain, which has one result less.
  number_decay: float = 0.75  # Of the probability of first numbers.
  operator_shares: tuple[float, ...] = (1.0, 0.6, 0.36)  # Of first operators, to scale.
  num_texts: int = 2000  # To learn from, again and again.
  decoder: tuple[int, ...] = (48, 2)  # Width and blocks.
  num_heads: int = 4  # Attention heads.
  num_steps: int = 950  # Updates of maximum likelihood.
  batch_size: int = 64  # Texts per update, and in tuning half of the sequences.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  tuning_steps: int = 400  # Updates of an arm.
  tuning_rates: tuple[float, ...] = (3e-4, 1e-3)  # To choose from, for every arm.
  refresh_every: int = 50  # Updates for which the same samples of the model serve.
  buffer: int = 1024  # Samples of the model.
  max_actions: int = 32  # Tokens and backspaces of a sequence.
  correction_rate: float = 0.3  # Results before which a wrong one is inserted.
  discount: float = 0.99  # Of rewards.
  alpha: float = 100.0  # Inverse strength of the penalty on squared rewards.
  ramp_share: float = 0.2  # Of the updates, over which the penalty sets in.
  temperatures: tuple[float, ...] = (1.0, 0.5, 0.6, 0.7, 0.8, 0.9)  # Of maximum likelihood.
  thresholds: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)  # Below which a token is drawn again.
  top_p: float = 0.9  # Of the nucleus.
  result_temperature: float = 0.5  # Of results alone.
  most_farther: float = 0.02  # By which a total variation may exceed that of maximum likelihood.
  num_selecting: int = 2000  # Samples to choose settings on.
  num_judged: int = 8192  # Samples to judge.


PRESETS = {
  "smoke": Config(
    modulus=3, num_terms=2, num_texts=16, decoder=(8, 1), num_heads=2, num_steps=2, batch_size=8,
    tuning_steps=2, tuning_rates=(1e-3,), refresh_every=1, buffer=8, max_actions=10,
    temperatures=(1.0, 0.6), thresholds=(0.1,), num_selecting=8, num_judged=16,
  ),
  "laptop": Config(),
  "paper": Config(
    num_terms=64, decoder=(768, 12), num_heads=12, num_texts=100_000, num_steps=20_000,
    tuning_steps=10_000, max_actions=300, learning_rate=3e-4, tuning_rates=(1e-5, 3e-5, 1e-4),
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("thresholds", "top_p", "discount", "correction_rate"))
  sizes.check_at_most(config.num_texts, batch_size=config.batch_size)
  sizes.check_divides(config.refresh_every, tuning_steps=config.tuning_steps)
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  sizes.check_at_most(config.max_actions, num_terms=texts.length(config) + texts.SLACK)
  if len(config.operator_shares) != texts.NUM_OPERATORS:
    raise ValueError(f"operator_shares must hold 3 numbers, got {config.operator_shares}.")
  if config.temperatures[0] != 1 or 0.6 not in config.temperatures:
    raise ValueError(f"temperatures must begin with 1 and hold 0.6, got {config.temperatures}.")


def ways(config: Config) -> list[tuple[dict, Sampling]]:
  """How maximum likelihood is sampled: what says so, and the sampling."""
  return [
    *(({"temperature": t}, Sampling(t, t)) for t in config.temperatures),
    *(({"threshold": x}, Sampling(threshold=x)) for x in config.thresholds),
    ({"sampling": NUCLEUS}, Sampling(top_p=config.top_p)),
    ({"sampling": KNOWN}, Sampling(result_temperature=config.result_temperature)),
    ({"sampling": CHECKED}, Sampling(checker=1.0)),
  ]


def run(config: Config, context: Context) -> Results:
  """Trains by maximum likelihood, samples it in all ways, and tunes it in all arms."""
  results, (labels, samplings) = Results(), zip(*ways(config))
  stacked = jax.tree.map(lambda *values: np.float32(values), *samplings)
  fit = functools.partial(tuning.fit_likelihood, config, stacked)
  start = context.over_seeds(LIKELIHOOD, fit)
  selecting, judged = (start.pop(name) for name in ("selecting", "judged"))
  judged = {k: values for k, values in judged.items() if k not in tuning.OF_BACKSPACES}
  for i, label in enumerate(labels):
    results.add({LIKELIHOOD: {name: values[:, i] for name, values in judged.items()}}, **label)
  start["distance"] = selecting["distance"][:, 0]
  sharp = {name: values[:, : len(config.temperatures)] for name, values in selecting.items()}
  best = np.asarray(tuning.best(config, sharp, start["distance"][:, None]))
  found = {name: values[np.arange(context.seeds), best] for name, values in judged.items()}
  found["chosen temperature"] = np.array(config.temperatures)[best]
  results.add({SHARPENED: found})
  fit = functools.partial(tuning.fit_arm, config)
  for name, arm in ARMS.items():
    found = grid(context, name, fit, start, [arm._asdict()])
    absent = (tuning.AREA,) if arm.backspace else tuning.OF_BACKSPACES
    results.add({name: {k: values[:, 0] for k, values in found.items() if k not in absent}})
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  plain = {"method": LIKELIHOOD, "temperature": 1.0}
  select = results.select
  valid = lambda method: select("valid", method=method)  # noqa: E731
  likelihood, distance = select("valid", **plain), select("distance", **plain)
  sharp = select("distance", method=LIKELIHOOD, temperature=0.6)
  wins = select("valid", method=LIKELIHOOD, sampling=CHECKED) - likelihood
  able = (
    precondition("maximum likelihood's texts are valid in 40%", likelihood, at_least=0.4),
    precondition("to 85%", likelihood, at_most=0.85),
    precondition("and otherwise well formed in 98%", select("well formed", **plain), at_least=0.98),
    precondition("right results are told, area .8", select(tuning.AREA, **plain), at_least=0.8),
    precondition("its beginnings are within .05 of their law", distance, at_most=0.05),
    precondition("a temperature of .6 takes them .05 farther", sharp - distance, at_least=0.05),
    precondition("drawing wrong results again gains 8 points", wins, at_least=0.08),
  )  # fmt: skip

  def near(method):
    farther = select("distance", method=method) - distance
    return precondition(f"{method} is at most .02 farther", farther, at_most=config.most_farther)

  main = (*able, near(MAIN))
  return [
    compare(
      "3 points more of the texts are valid than with maximum likelihood, their beginnings as near "
      "to the law",
      valid(MAIN), likelihood, margin=0.03, headline=True, requires=main,
      paper="a higher MAUVE than maximum likelihood",
    ),
    compare(
      "more are valid than with maximum likelihood at its best temperature",
      valid(MAIN), valid(SHARPENED), requires=(*main, near(SHARPENED)),
    ),
    compare(
      "one point more are valid than where corrections are imitated",
      valid(MAIN), valid(CORRECTIONS), margin=0.01, requires=(*main, near(CORRECTIONS)),
    ),
    compare(
      "one point more are valid than without a backspace",
      valid(MAIN), valid(WITHOUT), margin=0.01, requires=(*main, near(WITHOUT)),
    ),
    compare(
      "a larger share of backspaces follows a wrong token than of as many least likely tokens is "
      "wrong",
      select(tuning.AFTER_WRONG, method=MAIN), select(tuning.LOWEST, method=MAIN), requires=main,
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Valid texts over the distance of beginnings: a real gain lies above the line."""
  figure, (ax,) = plots.panels(1, width=7.0, height=4.6)
  point = lambda **where: [results.select(x, **where) for x in ("distance", "valid")]  # noqa: E731
  temperatures = sorted(results.distinct("temperature"))
  curve = [np.mean(point(method=LIKELIHOOD, temperature=t), axis=1) for t in temperatures]
  ax.plot(*np.transpose(curve), ".-", color="gray", label="maximum likelihood by temperature")
  for sampling in (NUCLEUS, KNOWN, CHECKED):
    at = np.mean(point(method=LIKELIHOOD, sampling=sampling), axis=1)
    ax.plot(*at, "x", label=f"maximum likelihood, {sampling}")
  for method in (SHARPENED, *ARMS):
    x, y = pair = point(method=method)
    halves = [np.nan_to_num(t_interval(v)[1] - v.mean(), posinf=0.0) for v in pair]
    ax.errorbar(x.mean(), y.mean(), *halves[::-1], fmt="o", capsize=3, label=method)
  ax.set(xlabel="total variation of beginnings from their law", ylabel="share of valid texts")
  ax.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """One update of matching with a backspace, for a dry run."""
  arm, size = ARMS[MAIN], config.batch_size
  draw = functools.partial(texts.draw_texts, config, num_texts=size)
  rows = jax.eval_shape(
    lambda key: tuning.lay_out_texts(config, key, draw(key), arm), jax.random.key(0)
  )
  batch = rows, rows, jax.ShapeDtypeStruct((size,), np.float32)
  optimizer = adamw_cosine(config.tuning_rates[-1], config.tuning_steps, weight_decay=0.01)
  loss = tuning.matching_loss(config, arm)
  return abstract_step(tuning.decoder(config), loss, optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
