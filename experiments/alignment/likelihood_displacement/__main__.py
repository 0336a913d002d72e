"""Preference optimization that lowers what it prefers, and the score of pairs that foretells it.

DPO widens the margin between two responses. Where their hidden states are alike, that can only
happen by moving both, and mass goes to responses of another meaning: a model that is taught which
refusal is the better one refuses less. A score of the hidden states before training says which
pairs do this, so that they can be left out.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.alignment.likelihood_displacement import log_linear, texts
from experiments.alignment.likelihood_displacement.texts import CHANGE, REFUSALS, SCORE
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import text_loss
from experiments.kit.sweep import choose
from experiments.kit.train import adamw_cosine
from jaxlab import data
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "likelihood_displacement"
SEEDS = {"laptop": 6}
BEFORE, CORRELATION = "before", "rank correlation"


@dataclasses.dataclass(frozen=True)
class Config:
  """The texts, the decoder, the pairs, and when training on them stops."""

  prompts: tuple[int, ...] = (30, 10, 20)  # Of pairs, and others for validation and for testing.
  num_classes: int = 3  # Of responses: 0 refuses, 1 complies.
  paraphrases: int = 12  # Responses of a class.
  class_words: int = 2  # Words that only one class has.
  function_words: int = 3  # Words that all share.
  max_length: int = 8  # Words of the longest response.
  decoder: tuple[int, ...] = (64, 2)  # Width and blocks.
  num_heads: int = 4  # Attention heads.
  pretraining_updates: int = 1500  # Updates on fresh texts.
  pretraining_rows: int = 128  # Texts per update.
  pretraining_rate: float = 3e-3  # AdamW with a cosine to 0.
  num_pairs: int = 1024  # Of either data set.
  num_groups: int = 16  # Equal groups that are trained on alone.
  beta: float = 0.1  # Of DPO.
  learning_rate: float = 1e-4  # Adam.
  batch_size: int = 64  # Pairs per update; a smaller group is one batch.
  margin: float = 1.0  # Mean margin, times beta, at which every training stops.
  max_updates: int = 400  # Or after as many updates.
  check_every: int = 2  # Updates between looks at the margin; divides max_updates.
  sft_weights: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)  # Chosen on validation prompts.
  problems: int = 20  # Log-linear problems per seed.
  responses: int = 24  # Of a log-linear problem.
  response_dim: int = 16  # Of their embeddings.
  refusal_bias: float = 1.2  # Logit of refusals before training.


PRESETS = {
  "smoke": Config(
    prompts=(2, 1, 1), paraphrases=2, class_words=2, function_words=2, max_length=3, decoder=(8, 1),
    num_heads=2, pretraining_updates=2, pretraining_rows=4, num_pairs=8, num_groups=4, batch_size=4,
    max_updates=2, check_every=1, sft_weights=(0.1, 1.0), problems=2, responses=4, response_dim=4,
  ),
  "laptop": Config(),
  "paper": Config(
    prompts=(400, 50, 50), paraphrases=64, class_words=512, function_words=4096, max_length=64,
    decoder=(2048, 18), num_heads=8, pretraining_updates=20_000, pretraining_rate=3e-4,
    learning_rate=5e-7, max_updates=1000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  if len(config.prompts) != 3:
    raise ValueError(f"prompts must hold three numbers, got {config.prompts}.")
  for name in ("num_classes", "paraphrases"):
    if getattr(config, name) < 2:
      raise ValueError(f"{name} must be at least 2, got {getattr(config, name)}.")
  texts.task_of(config, 0)  # Raises where there are not so many different responses.
  sizes.check_divides(config.num_heads, decoder=config.decoder[0])
  sizes.check_divides(config.num_groups, num_pairs=config.num_pairs)
  sizes.check_at_most(config.num_pairs, batch_size=config.batch_size)
  sizes.check_divides(config.check_every, max_updates=config.max_updates)
  sizes.check_divides(4, num_groups=config.num_groups)


def run(config: Config, context: Context) -> Results:
  """Trains on groups of pairs by every measure, and on what every filter keeps."""
  from scipy import stats

  results = Results()

  measured = context.over_seeds("log-linear", functools.partial(log_linear.measure, config))
  results.add(log_linear.summarize(config, measured), problem="log-linear")
  seeds = np.asarray(context.seed_numbers, np.int32)
  pretrain = functools.partial(texts.pretrain, config)
  drawn = context.over_seeds("pretraining", pretrain, arguments=seeds)
  parts = np.split(drawn["classes"], np.cumsum(config.prompts)[:-1], axis=1)
  before = {q: 100 * part[..., 0].mean(1) for q, part in zip(REFUSALS, parts)}
  before["valid (%)"] = 100 * drawn["classes"].sum(2).mean(1)
  results.add({BEFORE: before})

  train = functools.partial(texts.train_groups, config)
  for name in texts.MEASURES:
    arguments = drawn, drawn["mixed, measures"][name]
    scores = context.over_seeds(f"groups/{name}", train, arguments=arguments)
    for group in range(config.num_groups):
      values = {quantity: value[:, group] for quantity, value in scores.items()}
      results.add({name: values}, group=group + 1)
    pairs = zip(scores["measure"], scores[CHANGE])
    correlation = [stats.spearmanr(a, b).statistic for a, b in pairs]
    results.add({name: {CORRELATION: np.array(correlation)}})

  kept = context.over_seeds("filters", texts.kept_pairs, arguments=drawn)
  train = functools.partial(texts.train_on_refusals, config)

  def on_refusals(stage, name, weight):
    setting = {"kept": kept[name], "sft_weight": np.full(context.seeds, weight, np.float32)}
    return context.over_seeds(f"refusals/{stage}", train, arguments=(drawn, setting))

  for name in texts.FILTERS:
    results.add({name: on_refusals(name, name, 0.0)})
  settings = [{"sft_weight": weight} for weight in config.sft_weights]
  scores = [on_refusals(f"{texts.SFT} {w}", texts.ALL, w) for w in config.sft_weights]
  scores = {name: np.stack([s[name] for s in scores], axis=1) for name in scores[0]}
  results.add({texts.SFT: choose(scores, settings, select=REFUSALS[1])})
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  quarter = config.num_groups // 4

  def over_groups(quantity, reduce=np.mean, groups=range(config.num_groups)):
    values = [results.select(quantity, method=SCORE, group=g + 1) for g in groups]
    return reduce(np.stack(values), axis=0)

  low, high = (
    over_groups(CHANGE, groups=groups)
    for groups in (range(quarter), range(3 * quarter, config.num_groups))
  )
  size = config.num_pairs // config.num_groups
  error = over_groups("spread of the measure") / np.sqrt(size)
  spread = over_groups("measure", np.ptp) / error
  margin = over_groups("margin", np.min)
  known = results.select("valid (%)", method=BEFORE)
  valid = precondition("95% of the probability is on known responses", known, at_least=95)
  fallen = (
    valid,
    precondition("every group reached the margin", margin, at_least=config.margin),
    precondition("the highest quarter falls by 0.3 nats", high, at_most=-0.3),
    precondition("groups spread over four standard errors of the score", spread, at_least=4),
  )

  def refusing(name):
    return results.select(REFUSALS[-1], method=name)

  start = refusing(BEFORE)
  cost = start - refusing(texts.ALL)
  cure = (
    valid,
    precondition("refusals before are 30 to 80%", start, at_least=30, at_most=80),
    precondition("training on all pairs costs 10 points of refusals", cost, at_least=10),
  )
  ours, *rivals = (
    np.abs(results.select(CORRELATION, method=name)) for name in (SCORE, *texts.RIVALS)
  )
  after, at_first = (
    results.select(when, method=log_linear.BOTH_REFUSE, problem="log-linear")
    for when in (log_linear.AFTER, log_linear.BEFORE)
  )
  return [
    compare(
      "the chosen responses of pairs in the lowest quarter of the score fall by half a nat less "
      "than those in the highest quarter, at equal margins",
      low, high, margin=0.5, headline=True, requires=fallen,
    ),
    compare(
      "rank correlation with the change, its size: the score's is .1 above the best rival's",
      ours, np.max(rivals, axis=0), margin=0.1, requires=fallen,
    ),
    compare(
      "refusals on test prompts: the half of the lowest scores keeps 10 points more than a random "
      "half",
      refusing(texts.LOWEST), refusing(texts.RANDOM), margin=10.0, requires=cure,
      paper="Llama-3-8B-Instruct falls from 74.4% to 33.4% with all pairs",
    ),
    compare(
      "refusals on test prompts: the half of the lowest scores keeps more than all pairs with an "
      "SFT term",
      refusing(texts.LOWEST), refusing(texts.SFT), requires=cure,
    ),
    compare(
      "log-linear: to prefer one refusal to another costs 5 points of refusals",
      after, at_first, better="lower", margin=5.0,
    ),
  ]  # fmt: skip


def figure(results: Results):
  """Changes by group, and refusals by filter."""
  figure, (left, right) = plots.panels(2, width=5.5, height=4.4)
  for name in (*texts.RIVALS, SCORE):
    groups = results.distinct("group", method=name)
    changes = [results.select(CHANGE, method=name, group=g).mean() for g in groups]
    ours = name == SCORE
    style = {"color": "C0", "zorder": 3} if ours else {"alpha": 0.6, "markersize": 4}
    left.plot(groups, changes, "o-" if ours else ".:", label=name, **style)
  left.axhline(0.0, color="gray", linewidth=0.8)
  left.set(
    xlabel="group of pairs, from the lowest to the highest of a measure", ylabel="change (nats)"
  )
  left.set_title("the chosen responses of a group of pairs")
  left.legend(fontsize=7)
  plots.intervals(right, results, REFUSALS[2], by="method")
  right.set(ylim=(0, None))
  return figure


def abstract(config: Config, mesh):
  """The step that trains the decoder on texts, for a dry run."""
  task, model = texts.task_of(config, 0), texts.network(config)
  draw = functools.partial(data.paraphrase_batch, config=task, batch_size=config.pretraining_rows)
  rows = jax.eval_shape(lambda: draw(jax.random.key(0)))
  optimizer = adamw_cosine(config.pretraining_rate, config.pretraining_updates)
  return abstract_step(model, text_loss(model), optimizer, rows, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
