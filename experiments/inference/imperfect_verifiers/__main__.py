"""Imperfect verifiers: resampling until a weak test accepts makes no strong model of a weak one.

Chains of five terms, of which a visible test checks the first two steps and the full test all four.
Hard tasks meet a misconception in both halves: their samples are rarely accepted, and mostly wrong
where they are. The right solution is one text, so that acceptance and correctness are exact
probabilities of its parts, and so are rewards at any number of attempts.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.inference.imperfect_verifiers import tasks
from experiments.inference.imperfect_verifiers.tasks import base_models, resampling, weak_and_strong
from experiments.kit import plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.language_models import text_loss
from experiments.kit.sweep import each_seed
from experiments.kit.train import adamw_cosine
from experiments.kit.zoo import LADDER
from jaxlab import data, metrics
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "imperfect_verifiers"

SHARED, PLAIN = "shared difficulty", "independent difficulty"
VISIBLE, FULL = "visible test", "full test"
SINGLE, REWARD = "single-sample accuracy", "reward"
FALSE_SHARE, GAP = "false among accepted", "accepted and wrong"
COVERAGE = "coverage with the full test"
BEST, AT_BEST, AT_MOST = "best number of attempts", "reward there", "reward of most attempts"
CEILING, FALSE_RATE = tasks.CEILING, tasks.FALSE_RATE


@dataclasses.dataclass(frozen=True)
class Config:
  """The chains, their tests, and the ladder of models."""

  modulus: int = 11  # Of the chains.
  num_terms: int = 5  # Numbers in a problem.
  num_checked: int = 2  # Steps that the visible test checks; the others are hidden.
  small: tuple[int, ...] = LADDER[0][:3]  # Width, blocks and attention heads of small decoders.
  small_noise: tuple[float, ...] = LADDER[0][3]  # In their texts; the middle one is the weak model.
  large: tuple[int, ...] = LADDER[1][:3]  # Likewise of large ones.
  large_noise: tuple[float, ...] = LADDER[1][3]  # Likewise; the last is the strong model.
  num_steps: int = 1500  # Updates.
  other_steps: int = 600  # Of two models whose training ends early, a small and a large one.
  other_rate: float = 0.3  # Share of misconceptions in the table of one more, a large one.
  texts_per_step: int = 128  # Fresh texts of an update.
  learning_rate: float = 3e-3  # AdamW with a cosine to 0.
  pool: int = 30_000  # Problems among which tasks are found.
  num_easy: int = 1500  # Tasks without a misconception on the way.
  num_hard: int = 500  # Tasks with one in both halves.
  attempts: int = 256  # The most that are looked at.
  costs: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)  # Of an accepted wrong solution; 1 is one.
  num_coverage: int = 100  # Attempts of the weak model with the full test.
  num_sampled: int = 200  # Tasks of which the weak model's samples meet verifiers with errors.
  num_samples: int = 64  # Of each.
  error_rates: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3)  # False positives of these.

  def __post_init__(self):
    if 1.0 not in self.costs:
      raise ValueError(f"costs must hold 1.0, got {self.costs}.")

  @property
  def chains(self) -> data.ModularChainConfig:
    """The chains."""
    return data.ModularChainConfig(self.modulus, self.num_terms)


PRESETS = {
  "smoke": Config(
    modulus=3, num_terms=3, num_checked=1, small=(8, 1, 2), small_noise=(0.1,), large=(16, 1, 2),
    large_noise=(0.0,), num_steps=2, other_steps=1, texts_per_step=4, pool=40, num_easy=4,
    num_hard=4, attempts=8, costs=(0.0, 1.0), num_coverage=4, num_sampled=4, num_samples=4,
    error_rates=(0.0, 0.1),
  ),
  "laptop": Config(),
  "paper": Config(
    modulus=97, num_terms=9, num_checked=4, small=(256, 4, 4), large=(1024, 24, 16),
    num_steps=50_000, other_steps=20_000, texts_per_step=512, learning_rate=3e-4, pool=200_000,
    num_samples=200,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  shares = "small_noise", "large_noise", "other_rate", "error_rates"
  sizes.check_sizes(config, shares=shares)
  check_at_least(2, modulus=config.modulus)
  check_at_least(3, num_terms=config.num_terms)
  check_range("num_checked", config.num_checked, f"[1, {config.num_terms - 2}]")
  for name in ("small", "large"):
    sizes.check_lengths(**{name: getattr(config, name), "(width, blocks, heads)": range(3)})
    width, _, heads = getattr(config, name)
    sizes.check_divides(heads, **{name: width})
  check_at_least(config.small[0] + 1, large=config.large[0])
  sizes.check_at_most(config.pool, **{"num_easy + num_hard": config.num_easy + config.num_hard})
  sizes.check_at_most(config.num_easy + config.num_hard, num_sampled=config.num_sampled)
  sizes.check_at_most(config.attempts, num_coverage=config.num_coverage)


def run(config: Config, context: Context) -> Results:
  """Trains the models that are not stored; measures them with both tests."""
  results, seeds = Results(), np.array(context.seed_numbers)
  drawn = each_seed(context, "tasks", functools.partial(tasks.draw, config), seeds)
  results.add({"pool": {f"{kind} tasks": drawn[kind] for kind in ("easy", "hard")}})
  for name, base in base_models(config).items():
    params = base.load_seeds(context, f"model/{name}")
    program = tasks.prober(config.chains, (base.hidden_size, base.num_layers, base.num_heads))
    log_probs = each_seed(context, f"exact/{name}", program, params, drawn["tokens"])
    for i, difficulty in enumerate((SHARED, PLAIN)):
      results.add({name: rates(config, log_probs[:, i])}, difficulty=difficulty)
    if name in weak_and_strong(config):
      add_curves(config, results, name, log_probs[:, 0])
    if name == weak_and_strong(config)[0]:
      errors = functools.partial(tasks.sample_errors, config)
      sampled = each_seed(context, "errors", errors, params, drawn["tokens"][:, 0])
      for i, rate in enumerate(config.error_rates):
        results.add({name: {k: v[:, i] for k, v in sampled.items()}}, verifier=FULL, errors=rate)
  return results


def rates(config: Config, log_probs: np.ndarray) -> dict[str, np.ndarray]:
  """What is exact of a model by its log-probabilities `[seeds, n, S]`; one number per seed."""
  log_probs = log_probs.astype(np.float64)
  accepted, right = np.exp(log_probs[..., config.num_checked - 1]), np.exp(log_probs[..., -1])
  ceiling, single, gap = (x.mean(1) for x in (right / accepted, right, accepted - right))
  coverage = resampling(log_probs, log_probs.shape[-1], [config.num_coverage])[:, 0]
  values = {SINGLE: single, "accepted": accepted.mean(1), CEILING: ceiling, COVERAGE: coverage}
  # Two different things: of accepted samples, and of wrong ones.
  return values | {FALSE_SHARE: 1 - ceiling, GAP: gap, FALSE_RATE: gap / (1 - single)}


_best = jax.jit(metrics.optimal_num_samples)


def add_curves(config: Config, results: Results, name: str, log_probs: np.ndarray) -> None:
  """Adds rewards by attempts, and the limit by the number of checked steps."""
  log_probs, num_steps = log_probs.astype(np.float64), log_probs.shape[-1]
  hard = np.arange(log_probs.shape[1]) >= config.num_easy
  for kind, rows in (("easy", ~hard), ("hard", hard)):
    results.add({name: rates(config, log_probs[:, rows])}, tasks=kind)
  before = np.insert(log_probs, 0, 0.0, axis=-1)
  for i, limit in enumerate(np.exp(log_probs[..., -1:] - before).mean(1).T):
    results.add({name: {CEILING: limit}}, steps_checked=i)
  every = np.arange(1, config.attempts + 1)
  shown = 2 ** np.arange(config.attempts.bit_length())
  for cost in config.costs:
    halves = [resampling(log_probs[:, i::2], config.num_checked, every, cost) for i in (0, 1)]
    best = np.array([int(_best(np.float32(rewards), every)) for rewards in halves[0]])
    # Chosen on one half of the tasks, evaluated on the other; no attempt at all is worth 0.
    there = np.insert(halves[1], 0, 0.0, axis=1)[np.arange(len(best)), best]
    results.add({name: {BEST: best, AT_BEST: there, AT_MOST: halves[1][:, -1]}}, cost=cost)
    rewards = resampling(log_probs, config.num_checked, shown, cost)
    for k, reward in zip(shown, rewards.T):
      results.add({name: {REWARD: reward}}, verifier=VISIBLE, cost=cost, attempts=int(k))
  for k, reward in zip(shown, resampling(log_probs, num_steps, shown).T):
    results.add({name: {REWARD: reward}}, verifier=FULL, cost=0.0, attempts=int(k))


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  weak, strong = weak_and_strong(config)

  def of(quantity: str, method: str, **where):
    where = where or {"difficulty": SHARED}
    return results.select(quantity, method=method, **where)

  def easier(quantity: str):
    gaps = [of(quantity, m, tasks="easy") - of(quantity, m, tasks="hard") for m in (weak, strong)]
    return np.minimum(*gaps)

  single = of(SINGLE, strong)
  first = of(REWARD, strong, verifier=VISIBLE, cost=1.0, attempts=1)
  bounds = (
    (
      "the strong model solves .2 more than the weak one at once",
      single - of(SINGLE, weak),
      0.2,
      None,
    ),
    ("the strong one solves .5 to .85", single, 0.5, 0.85),
    ("of what the weak one has accepted, .2 are wrong", of(FALSE_SHARE, weak), 0.2, None),
    ("one attempt of the strong model is worth more than none at cost 1", first, 1e-6, None),
    ("both models: hard tasks are accepted .2 less often", easier("accepted"), 0.2, None),
    ("and .2 more of what is accepted is wrong", easier(CEILING), 0.2, None),
  )
  requires = [precondition(text, x, at_least=low, at_most=high) for text, x, low, high in bounds]
  claim = functools.partial(compare, requires=requires)
  best = of(BEST, strong, cost=1.0)
  few = precondition("the chosen number is below 10 in every seed", best.max(), at_most=9)
  names = list(base_models(config))
  shares, accuracies = ([of(q, name) for name in names] for q in (FALSE_SHARE, SINGLE))
  doses = [of(CEILING, weak, steps_checked=i) for i in (config.num_terms - 2, 1)]
  correlation = np.array(
    [np.corrcoef(x, y)[0, 1] for x, y in zip(np.transpose(shares), np.transpose(accuracies))]
  )
  return [
    claim("one sample of the strong model is right .05 more often than what the weak model is "
          "accepted for, however often it tries", single, of(CEILING, weak), margin=0.05,
          headline=True, paper="HumanEval+: Command-Light .715, GPT-4o's single sample .855"),
    claim(f"with the full test {config.num_coverage} attempts of the weak model solve .1 more than "
          "one of the strong model", of(COVERAGE, weak), single, margin=0.1),
    claim(f"over {len(names)} models, single-sample accuracy and the share of false among accepted "
          "correlate at -.8 or below", correlation, -0.8, better="lower"),
    compare("strong model, cost 1: the best number of attempts is worth .03 more than "
            f"{config.attempts}", of(AT_BEST, strong, cost=1.0), of(AT_MOST, strong, cost=1.0),
            margin=0.03, requires=(*requires, few),
            paper="Llama-3.1-70B: 9 attempts at cost 1"),
    claim("weak model: with three of four steps checked the limit is .1 higher than with one",
          *doses, margin=0.1),
  ]  # fmt: skip


def figure(results: Results):
  """Limits of all models by their accuracy, and rewards by attempts."""
  figure, (left, right) = plots.panels(2, width=5.0)
  names = results.distinct("method", difficulty=SHARED)
  _, strong = results.distinct("method", verifier=FULL, cost=0.0)
  for name in names:
    x, y = (results.select(q, method=name, difficulty=SHARED).mean() for q in (SINGLE, CEILING))
    left.plot(x, y, "o", label=name)
  line = results.select(SINGLE, method=strong, difficulty=SHARED).mean()
  left.axhline(line, color="gray", linewidth=0.8, linestyle=":", label=f"one sample of {strong}")
  left.set(xlabel=SINGLE, ylabel=CEILING)
  left.legend(fontsize=6)
  for verifier, style in ((VISIBLE, "-"), (FULL, ":")):
    options = {"x": "attempts", "color": "cost", "method": strong, "verifier": verifier}
    plots.curves(right, results, REWARD, **options)
    for line in right.lines[-len(results.distinct("cost", verifier=verifier)) :]:
      line.set_linestyle(style)
  right.set(title=f"{strong} (dotted: {FULL})", xscale="log", ylabel=REWARD)
  right.legend(title="cost", fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of the strong model, for a dry run."""
  base = base_models(config)[weak_and_strong(config)[1]]
  batch = jax.eval_shape(lambda key: base.draw(key, config.texts_per_step), jax.random.key(0))
  optimizer = adamw_cosine(config.learning_rate, base.num_steps)
  return abstract_step(base.model, text_loss(base.model), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
