"""The two tasks: misconceptions are unlearned; few problems do the work of many."""

import functools

import jax
import numpy as np

from experiments.alignment.rl_incorrect_data import policy, rows
from experiments.alignment.rl_incorrect_data.problems import Problems, Texts, draw_problems
from experiments.alignment.rl_incorrect_data.rows import CHOICES, CRITICAL, FEW, RANDOM
from experiments.kit import chains as kit
from experiments.kit.datasets import stack_seeds
from experiments.kit.sweep import amount_needed, by_seed, each_seed
from jaxlab import data
from jaxlab.experiment import Results

UNLEARN, FEWER = TASKS = "misconceptions", "few problems"
SFT, CLEAN, RFT, ROUNDS = "SFT", "SFT, right texts", "RFT", "RFT in rounds"
SPOTLESS, SOLUTIONS, WEIGHTED = "RFT, no wrong step", "DPO, solutions", "weighted steps"
STEPS = {CRITICAL: "DPO, steps", RANDOM: "DPO, random steps", FEW: "DPO, steps, few rollouts"}
FROM_WRONG = (SOLUTIONS, WEIGHTED, *STEPS.values())  # These learn from wrong solutions.
COST = "sampled tokens"


class Task:
  """Chains, the problems of all seeds, and programs as stages of the run."""

  def __init__(self, config, context, name: str):
    i = TASKS.index(name)
    shape = config.modulus[i], config.num_terms[i], False
    rate, noise = ((config.misconception_rate, 0.0), (0.0, config.noise))[i]
    author = data.ModularChainConfig(*shape, rate, config.misconception_prob, noise)
    self.chains = data.ModularChainConfig(*shape, 0.0, 0.0, 0.0)  # All that programs look at.
    num_train = (config.num_train, max(config.text_sizes))[i]
    corpus = config.base_steps[i] * config.base_texts
    counts = corpus, num_train, config.num_validation, config.num_test
    draw = functools.partial(draw_problems, author, counts, other_corpus=name == FEWER)
    self.problems: Problems = stack_seeds(draw, context.seed_numbers)
    self.config, self.name, self._context, self._index = config, name, context, i

  def stage(self, name: str, function, *arguments, **options):
    """`function(config, chains, key, *arguments of the seed, **options)` for all seeds."""
    program = _program(function, self.config, self.chains, **options)
    return each_seed(self._context, f"{self.name}/{name}", program, *arguments)

  def search(self, name: str, *arguments, wrong: bool = False):
    """`policy.search` for all seeds; solutions to learn from may be `wrong`."""
    rates = self.config.wrong_rates if wrong else self.config.learning_rates
    options = {"num_steps": self.config.num_steps[self._index], "learning_rates": rates}
    return self.stage(name, policy.search, *arguments, **options)


_program = functools.cache(functools.partial)  # One object, and so one compiled program.


def num_rows(config) -> int:
  """Solutions that a method learns from, repeated if there are fewer."""
  return config.num_train * max(config.num_samples, 1 + config.num_candidates)


def percent(measured: dict, **others) -> dict:
  """Measurements without the parameters; shares in percent."""
  kept = {name: x for name, x in measured.items() if name != "params"}
  return {name: x if "chosen" in name else 100 * x for name, x in kept.items()} | others


def own_rows(task: Task, name: str, params, problems: Problems, choices):
  """Samples solutions; gives what each method learns from, what it samples, and what is found."""
  config, chains = task.config, task.chains
  samples = task.stage(f"samples {name}", policy.sample, params, problems)
  wrong = Texts(by_seed(rows.wrong_solutions, samples), problems.train.answers)
  completed = task.stage(f"completions {name}", policy.complete, params, wrong)
  size = num_rows(config)
  right = functools.partial(rows.right_solutions, size)
  whole = functools.partial(rows.solution_pairs, config.num_train, chains)
  learned = {
    RFT: by_seed(right, samples),
    SPOTLESS: by_seed(functools.partial(right, spotless=True), samples),
    SOLUTIONS: by_seed(whole, samples),
  }
  cost = {method: samples[COST] for method in learned}
  found = {"wrong": wrong.tokens, **samples}
  for choice in choices:
    chosen = rows.choose_steps(config, completed["hits"], choice)
    num_rollouts = rows.num_used(choice, config.num_rollouts)
    inputs = policy.replace, params, wrong, chosen["step"]
    others = task.stage(f"{choice} steps {name}", *inputs, num_rollouts=num_rollouts)
    pairs = found[choice] = rows.select_pairs(config, chosen, others)
    of_steps = functools.partial(rows.step_pairs, config.num_train, chains)
    learned[STEPS[choice]] = by_seed(of_steps, samples, pairs)
    share = num_rollouts / config.num_rollouts
    cost[STEPS[choice]] = samples[COST] + share * completed[COST] + others[COST]
    if choice == CRITICAL:
      weigh = functools.partial(rows.weighted_steps, size)
      learned[WEIGHTED] = by_seed(weigh, samples, chosen, pairs)
      cost[WEIGHTED] = cost[STEPS[choice]]
  return learned, cost, found


def unlearn(task: Task, results: Results) -> None:
  """Learns from samples of a policy with misconceptions in every way."""
  problems = task.problems
  start = task.stage("imitation", policy.imitate, problems)
  learned, cost, found = own_rows(task, "1", start["params"], problems, CHOICES)
  size = num_rows(task.config)
  every = functools.partial(rows.all_steps, size, task.chains.num_terms - 1)
  learned[CLEAN] = by_seed(every, problems.clean.tokens)
  results.add({SFT: percent(start) | checks(task, found)}, task=UNLEARN)
  fits = {}
  for method, of_method in learned.items():
    inputs = start["params"], of_method, problems
    fits[method] = task.search(method, *inputs, wrong=method in FROM_WRONG)
    results.add({method: percent(fits[method], **{COST: cost.get(method, 0.0)})}, task=UNLEARN)
  now, drawn, right = fits[RFT], cost[RFT], functools.partial(rows.right_solutions, size)
  for i in range(2, task.config.num_rounds + 1):
    samples = task.stage(f"samples {i}", policy.sample, now["params"], problems)
    now = task.search(f"RFT {i}", now["params"], by_seed(right, samples), problems)
    drawn = drawn + samples[COST]
    results.add({ROUNDS: percent(now, **{COST: drawn})}, task=UNLEARN, round=i)


def checks(task: Task, found) -> dict[str, np.ndarray]:
  """What must hold of the policy's samples, and of the pairs of critical steps."""
  accepted, right = found["correct"], found["right"]
  spurious, met = accepted & ~right.all(-1), found["met"] & accepted[..., None]
  valid, step = by_seed(rows.is_valid, found, found[CRITICAL]), found[CRITICAL]["step"]
  truth = jax.jit(kit.right_steps, static_argnums=0)(task.chains, found["wrong"])
  at_step = np.take_along_axis(np.asarray(truth), step[..., None], axis=-1)
  share = lambda part, whole: 100 * part.sum((1, 2)) / np.maximum(whole.sum((1, 2)), 1)  # noqa: E731
  return {
    "accepted": 100 * accepted.mean((1, 2)),
    "accepted with a wrong step": share(spurious, accepted),
    "right at misconceptions": share((met & right).sum(-1), met.sum(-1)),
    "pairs": valid.sum(1),
    "critical steps that are wrong": share((valid & ~at_step[..., 0])[:, None], valid[:, None]),
  }


def need_fewer(task: Task, results: Results) -> None:
  """Imitates ever more texts of an author, and learns from own samples on few problems."""
  config, problems = task.config, task.problems
  base = task.stage("imitation", policy.imitate, problems)["params"]
  every = functools.partial(rows.all_steps, num_rows(config), task.chains.num_terms - 1)
  errors, own = [], {}
  for num in config.text_sizes:
    texts = by_seed(every, problems.train.tokens[:, :num])
    start = task.search(f"{SFT} {num}", base, texts, problems)
    errors.append(1 - start["accuracy"])
    results.add({SFT: percent(start, error=100 * errors[-1])}, task=FEWER, problems=num)
    if num in config.own_sizes:
      few = problems._replace(train=Texts(*(x[:, :num] for x in problems.train)))
      learned, *_ = own_rows(task, str(num), start["params"], few, (CRITICAL,))
      for method in (RFT, STEPS[CRITICAL]):
        inputs = start["params"], learned[method], problems
        own[method, num] = task.search(f"{method} {num}", *inputs, wrong=method in FROM_WRONG)
  for (method, num), fit in own.items():
    needed, beyond = amount_needed(config.text_sizes, np.stack(errors, 1), 1 - fit["accuracy"])
    more = {"doublings": np.log2(needed / num), "beyond the grid": 100.0 * beyond}
    measured = percent(fit, error=100 * (1 - fit["accuracy"]), **more)
    results.add({method: measured}, task=FEWER, problems=num)
