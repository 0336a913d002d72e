"""Which pairs of responses a policy ranks right after preference optimization, and which never.

The policy that DPO aims at ranks most pairs right. But DPO's loss falls by what a policy adds to
the reference's log-ratio, so that a pair which the reference ranks wrongly by c nats is flipped
only below a loss of log(1 + exp(-beta c)). Pairs of two responses of one reference with known
preferences show how far policies stay behind, and on which pairs.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.alignment.preference_ranking import policies
from experiments.alignment.preference_ranking.policies import (
  DECIDES,
  KL,
  LOSS,
  PREFERENCE,
  WIN_RATE,
  ranking,
)
from experiments.kit import dialogue, plots, sizes
from experiments.kit.sweep import choose
from jaxlab import metrics
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "preference_ranking"
SEEDS = {"laptop": 8}
REFERENCE, IDEAL = "reference", "ideal policy"
DPO, LAST = "DPO", "DPO, last step"
EXPLICIT, SFT, ON_POLICY = "explicit reward model", "SFT", "policy gradient on the true reward"
FLIPPED, BY_C, BY_PREFERENCE = "flipped (%)", "area, by c", "area, by the preference"
NEAR, FAR = "correlation with win rate, near", "correlation with win rate, far"
TRAINING = ranking("training")


@dataclasses.dataclass(frozen=True)
class Config(dialogue.DialogueSizes):
  """The dialogues, the reference, the pairs, and what learns from them."""

  samples: int = 384  # Responses of a prompt, of which the distinct ones make pairs.
  pairs: tuple[int, ...] = (4000, 1000, 1000)  # For training, validation and testing.
  sharpness: float = 4.0  # Of preferences: the logit of a difference of 1 in reward.
  betas: tuple[float, ...] = (0.1, 0.5, 1.0)  # Of DPO.
  headline_beta: float = 0.5  # One of them.
  rates: tuple[float, ...] = (1e-4, 3e-4)  # Adam's learning rates, chosen on validation.
  updates: int = 750  # Updates on pairs.
  batch_size: int = 64  # Pairs per update.
  eval_every: int = 25  # Updates between evaluations; divides updates.
  judged: int = 16  # Responses of a prompt for win rates and divergences.
  policy_updates: int = 300  # Updates on the true reward, each on all prompts.
  policy_samples: int = 4  # Responses of a prompt in such an update.
  bins: int = 9  # Of pairs by c, equally many in each; a multiple of 3.
  near: float = 1.0  # Nats from the reference, within which win rates are compared.


PRESETS = {
  "smoke": Config(
    num_prompts=4, response_length=3, response_tokens=4, decoder=(8, 1), num_heads=2,
    reference_updates=2, reference_rows=8, samples=24, pairs=(12, 6, 6), betas=(0.5, 1.0),
    rates=(1e-3,), updates=4, batch_size=4, eval_every=1, judged=4, policy_updates=4,
    policy_samples=2, bins=3,
  ),
  "laptop": Config(),
  "paper": Config(
    num_prompts=4096, response_length=128, response_tokens=8192, decoder=(768, 12), num_heads=12,
    reference_updates=20_000, reference_rate=3e-4, pairs=(60_000, 2000, 2000), rates=(5e-7, 1e-6),
    updates=20_000, eval_every=500,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  dialogue.check_dialogues(config)
  if len(config.pairs) != 3:
    raise ValueError(f"pairs must hold three numbers, got {config.pairs}.")
  if config.headline_beta not in config.betas:
    raise ValueError(f"betas must hold {config.headline_beta} (headline_beta), got {config.betas}.")
  sizes.check_divides(3, bins=config.bins)
  sizes.check_divides(config.eval_every, updates=config.updates)
  sizes.check_at_most(config.pairs[0], batch_size=config.batch_size)
  sizes.check_at_most(config.samples * config.num_prompts // 2, pairs=sum(config.pairs))


def run(config: Config, context: Context) -> Results:
  """Trains all policies on the pairs of each seed, and ranks them."""
  results = Results()

  rank = jax.jit(jax.vmap(functools.partial(policies.rank, config)))
  seeds = np.asarray(context.seed_numbers, np.int32)
  draw = functools.partial(policies.draw, config)
  drawn = context.over_seeds("pairs", draw, arguments=seeds)
  reference = drawn["reference"][..., 0] - drawn["reference"][..., 1]
  described = {name: drawn[name] for name in ("valid", "distinct")}
  described["deviation of log-ratios"] = reference.std(axis=1)
  results.add({REFERENCE: {**rank(reference), **described}})

  def search(stage, fn, select, *, better="lower", **fixed):
    """Every learning rate, of which each seed's validation chooses one."""
    train, scores = functools.partial(fn, config), []
    settings = [{"rate": rate, **fixed} for rate in config.rates]
    for setting in settings:
      repeated = {name: np.full(context.seeds, x, np.float32) for name, x in setting.items()}
      name = f"{stage}/{setting['rate']}"
      scores.append(context.over_seeds(name, train, arguments=(drawn, repeated)))
    scores = {name: np.stack([s[name] for s in scores], axis=1) for name in scores[0]}
    return choose(scores, settings, select=select, better=better)

  explicit = search("rewards", policies.train_rewards, LOSS)
  results.add({EXPLICIT: {PREFERENCE: explicit[PREFERENCE]}})
  sft = search("sft", policies.train_sft, LOSS)
  results.add({SFT: rank(sft["ratios"])})
  for beta in config.betas:
    chosen = search(f"dpo/{beta}", policies.train_dpo, policies.LOWEST, beta=beta)
    ideal = ideal_ratios(drawn["reference"], drawn["strength"], beta)
    results.add(
      {IDEAL: rank(ideal), EXPLICIT: rank(reference + explicit["ahead"] / beta)}, beta=beta
    )
    results.add({DPO: rank(chosen["best"]), LAST: rank(chosen["last"])}, beta=beta)
    best = chosen["best evaluation"][:, None]
    names = (KL, WIN_RATE, LOSS, PREFERENCE)
    scores = {name: np.take_along_axis(chosen[name], best, axis=1)[:, 0] for name in names}
    scores |= {name: value for name, value in chosen.items() if name.startswith("chosen/")}
    scores[DECIDES] = chosen[DECIDES].min(axis=1)
    scores["updates"] = (1 + best[:, 0]) * config.eval_every
    if beta == config.headline_beta:
      scores |= correlations(config, chosen)
    results.add({DPO: scores}, beta=beta)
    parts = [reference, chosen["best"], drawn["strength"]]
    add_wrong_pairs(config, results, *(x[:, : config.pairs[0]] for x in parts), beta)
  beta = config.headline_beta
  chosen = search("policy", policies.train_on_policy, "objective", better="higher", beta=beta)
  values = {name: chosen[name] for name in (KL, WIN_RATE)}
  results.add({ON_POLICY: {**rank(chosen["ratios"]), **values}}, beta=beta)
  return results


@jax.jit
def ideal_ratios(reference, strength, beta):
  """Log-ratios `[seeds, n]` of the policy that preference learning aims at."""
  of_seed = lambda r, p: metrics.idealized_log_ratio(*r.T, p, beta=beta)  # noqa: E731
  return jax.vmap(of_seed)(reference, jax.nn.sigmoid(strength))


def correlations(config: Config, scores) -> dict[str, np.ndarray]:
  """Rank correlation of ranking accuracy and win rate over evaluations, near and far."""
  from scipy import stats

  found = {NEAR: [], FAR: []}
  for accuracy, rate, kl in zip(scores[TRAINING], scores[WIN_RATE], scores[KL]):
    for name, where in ((NEAR, kl <= config.near), (FAR, kl > config.near)):
      pair = accuracy[where], rate[where]
      defined = where.sum() >= 3 and all(np.ptp(values) > 0 for values in pair)
      found[name].append(stats.spearmanr(*pair).statistic if defined else np.nan)
  return {name: np.array(values) for name, values in found.items()}


def add_wrong_pairs(config: Config, results: Results, reference, policy, strength, beta: float):
  """Adds which training pairs that the reference ranks wrongly are flipped, by how wrong they are.

  Args:
    config: of the experiment.
    results: what is added to.
    reference: log-ratios `[seeds, n]`.
    policy: likewise, of DPO.
    strength: of the preference, log-odds `[seeds, n]`.
    beta: of DPO.
  """
  areas, counts, bins = {BY_C: [], BY_PREFERENCE: []}, [], []
  for ratio, learned, odds in zip(reference, policy, strength):
    c, flipped = -ratio, learned > 0
    wrong = np.flatnonzero(c >= 0)
    order = wrong[np.argsort(c[wrong])]
    parts = np.array_split(order, config.bins)
    bins.append([(c[p].mean(), 100 * flipped[p].mean()) for p in parts])
    counts.append(len(wrong) // 3)
    for name, score in ((BY_C, c), (BY_PREFERENCE, -odds)):
      areas[name].append(area_under_curve(score[wrong], ~flipped[wrong]))
  values = {name: np.array(x) for name, x in areas.items()} | {"pairs of a third": np.array(counts)}
  results.add({DPO: values}, beta=beta, pairs="wrongly ranked")
  for i, (c, flipped) in enumerate(np.moveaxis(np.array(bins), 0, -1)):
    results.add({DPO: {"c": c, FLIPPED: flipped}}, beta=beta, part=i)


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
  """Probability that a positive has the higher score; NaN if there is none, or nothing else."""
  from scipy import stats

  if positive.all() or not positive.any():
    return np.nan
  wins = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
  return wins / (positive.sum() * (~positive).sum())


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, at the penalty of the headline."""
  at = {"beta": config.headline_beta}

  def accuracy(method, part=TRAINING):
    return results.select(part, method=method, **at)

  def flipped(third):
    parts = range(third * config.bins // 3, (third + 1) * config.bins // 3)
    return np.mean([results.select(FLIPPED, method=DPO, part=i, **at) for i in parts], axis=0)

  def of_dpo(quantity, **where):
    return results.select(quantity, method=DPO, **at, **where)

  reference = results.select(TRAINING, method=REFERENCE)
  deviation = results.select("deviation of log-ratios", method=REFERENCE)
  wrong, ideal = {"pairs": "wrongly ranked"}, accuracy(IDEAL)
  requires = (
    precondition("the reference ranks 40 to 60% right", reference, at_least=40, at_most=60),
    precondition("its log-ratios deviate by 3 nats", deviation, at_least=3),
    precondition("the ideal policy ranks 80 to 95% right", ideal, at_least=80, at_most=95),
    precondition("DPO agrees with 65% of validation labels", of_dpo(PREFERENCE), at_least=65),
    precondition("a third holds 250 pairs", of_dpo("pairs of a third", **wrong), at_least=250),
  )
  return [
    compare(
      "training pairs: the ideal policy ranks 10 points more right than DPO's of the lowest "
      "validation loss",
      ideal, accuracy(DPO), margin=10.0, headline=True, requires=requires,
      paper="gaps of up to 59 points; most tuned models rank below 60% right",
    ),
    compare(
      "pairs that the reference ranks wrongly: of the easiest third by c, 30 points more are "
      "flipped than of the hardest",
      flipped(0), flipped(2), margin=30.0, requires=requires,
    ),
    compare(
      "which of them stay wrong: c tells it better than the strength of the preference, by .1 of "
      "area under the curve",
      of_dpo(BY_C, **wrong), of_dpo(BY_PREFERENCE, **wrong), margin=0.1, requires=requires,
    ),
    compare(
      "an explicit reward model on the same pairs, put into the closed form, ranks 3 points more "
      "right than DPO",
      accuracy(EXPLICIT), accuracy(DPO), margin=3.0, requires=requires,
    ),
    compare(
      f"rank correlation of ranking accuracy and win rate over training: .3 higher within "
      f"{config.near:g} nat of the reference than beyond",
      of_dpo(NEAR), of_dpo(FAR), margin=0.3, requires=requires,
    ),
  ]  # fmt: skip


def figure(results: Results):
  """What is flipped against how wrong it was, and ranking accuracies by penalty."""
  figure, (left, right) = plots.panels(2, width=5.0)
  threshold = left.twinx()
  for i, beta in enumerate(results.distinct("beta", quantity=FLIPPED)):
    parts = results.distinct("part", quantity=FLIPPED, beta=beta)
    c, flipped = (
      np.array([results.select(q, beta=beta, part=p).mean() for p in parts]) for q in ("c", FLIPPED)
    )
    left.plot(c, flipped, "o-", color=f"C{i}", label=f"beta {beta:g}")
    threshold.plot(c, np.log1p(np.exp(-beta * c)), ":", color=f"C{i}")
  left.set(xlabel="c of wrongly ranked pairs (nats)", ylabel=FLIPPED, ylim=(0, 100))
  left.legend(fontsize=7)
  threshold.set(ylabel="loss below which a pair is flipped (dotted)", ylim=(0, np.log(2)))
  for method in (IDEAL, EXPLICIT, DPO, LAST):
    plots.curves(right, results, TRAINING, x="beta", color="method", method=method)
  right.set(xscale="log", ylabel=f"{TRAINING} (%)")
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """The step that trains the reference, for a dry run."""
  return dialogue.abstract_reference(config, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
