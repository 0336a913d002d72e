"""The rows of the table: what is trained, searched and fitted on texts, and on digits."""

import functools

import jax
import numpy as np

from experiments.kit import datasets
from experiments.kit.sweep import by_seed, choose, each_seed
from experiments.labels.crosstune import heads, rules, tasks
from experiments.labels.crosstune.heads import DESCRIBED, FREE, MLP, VECTORS
from experiments.labels.crosstune.tasks import FEW, TEST, VALIDATION
from jaxlab import algorithms
from jaxlab.experiment import Context, Results

TOPICS, DIGITS = "topics", "digits"
GENERATED, TEACHER = "generated", "teacher"
ALL, SWITCHED, RIGHT = (f"{DESCRIBED} + {rows} generated" for rows in ("all", "switched", "right"))
ZERO_SHOT, SEARCH, ORACLE = "nearest description", "search over descriptions", "word oracle"
POOLED, SIMILAR = "logistic regression", "logistic regression, best tokens"
ON_SWITCHED = " + switched generated"
BETTER = f"better logistic regression{ON_SWITCHED}"


def add_topics(config, context: Context, results: Results) -> None:
  """Adds the rows of the texts, and what the teacher switches."""
  size, shots, seeds = tasks.sizes_of_texts(config), config.shots, context.seeds
  few, made, checked, tested = (len(tasks.part(size, name)) for name in tasks.PARTS)
  texts = each_seed(context, "rules", _program(rules.read_texts, config))
  labels, truth = (texts[name][:, few : few + made] for name in ("labels", "truth"))

  def train(stage: str, arms: dict[str, np.ndarray], vectors, *, is_mlp: bool = False):
    """Trains on rows `[seeds, shots, p]` of each method, adds the scores, and gives all."""
    rows = np.concatenate([*arms.values()], axis=1)
    which = np.tile(np.repeat([VECTORS.index(v) for v in vectors], len(shots)), (seeds, 1))
    found = each_seed(context, stage, _program(heads.learn_texts, config, is_mlp), rows, which)
    parts = {name: np.split(x, len(arms), axis=1) for name, x in found.items()}
    for i, method in enumerate(arms):
      for j, num in enumerate(shots):
        scores = {name: parts[name][i][:, j] for name in (VALIDATION, TEST)}
        best = _best(scores, "learning rate", config.learning_rates)
        results.add({method: best}, task=TOPICS, shots=num)
    return {method: {name: x[i] for name, x in parts.items()} for i, method in enumerate(arms)}

  own = np.arange(few + made) < config.num_classes * np.array(shots)[:, None]
  own = np.tile(own, (seeds, 1, 1))
  train("MLP", {MLP: own}, (FREE,), is_mlp=True)
  teacher = train("few texts", dict.fromkeys(VECTORS, own), VECTORS)[DESCRIBED]
  best = teacher[VALIDATION].argmax(-1)[..., None, None, None]
  probs = np.take_along_axis(teacher["probs"], best, axis=2)[:, :, 0]

  switch = functools.partial(_switch, np.array(config.thresholds, np.float32))
  kept, reports = by_seed(switch, probs, labels, truth)
  for i, theta in enumerate(config.thresholds):
    for j, num in enumerate(shots):
      report = {name: x[:, i, j] for name, x in reports._asdict().items()}
      results.add({TEACHER: report}, task=TOPICS, shots=num, threshold=theta)
  right = labels == truth
  results.add({GENERATED: {"precision": right.mean(1)}}, task=TOPICS)
  use = {ALL: np.ones_like(right)[:, None], RIGHT: right[:, None]}
  use[SWITCHED] = kept[:, config.thresholds.index(config.threshold)]
  arms = {method: own.copy() for method in use}
  for method, arm in arms.items():
    arm[..., few:] = use[method]
  train("generated texts", arms, 3 * (DESCRIBED,))

  splits = np.arange(few + made, few + made + checked), np.arange(-tested, 0)
  for i, num in enumerate(shots):
    where = {"task": TOPICS, "shots": num}
    test = by_seed(functools.partial(rules.search, config, num), texts["right"])
    results.add({SEARCH: {TEST: test}}, **where)
    inputs = texts["features"], texts["labels"], texts["truth"]
    for suffix, rows in (("", own), (ON_SWITCHED, arms[SWITCHED])):
      rows = np.pad(rows[:, i], ((0, 0), (0, checked + tested)))
      _add_regressions(config, results, suffix, (*inputs, rows), splits, **where)
  by_rule = texts["right"][:, 0, :, few:]
  _add_zero_shot(results, by_rule[..., :checked], by_rule[..., checked:], task=TOPICS)
  results.add({ORACLE: {TEST: texts["oracle"]}}, task=TOPICS)


def add_digits(config, context: Context, results: Results) -> None:
  """Adds the rows of digits; all learn from the images that describe them."""
  size, where = tasks.sizes_of_digits(config), {"task": DIGITS, "shots": config.headline_shots}
  task = datasets.stack_seeds(functools.partial(tasks.draw_digits, config), context.seed_numbers)
  found = each_seed(context, "digits", _program(heads.learn_digits, config), task)
  for i, method in enumerate(VECTORS):
    scores = {name: x[:, i] for name, x in found.items()}
    results.add({method: _best(scores, "learning rate", config.learning_rates)}, **where)
  read = each_seed(context, "digits, rules", rules.read_digits, task)
  few, *splits = (tasks.part(size, name) for name in (FEW, VALIDATION, TEST))
  rows = np.tile(np.arange(task.labels.shape[1]) < len(few), (context.seeds, 1))
  inputs = read["features"], task.labels, task.truth, rows
  _add_regressions(config, results, "", inputs, splits, **where)
  _add_zero_shot(results, *(read["right"][..., rows] for rows in splits), task=DIGITS)


_program = functools.cache(functools.partial)  # One object, and so one compiled program.


def _best(scores, name: str, values) -> dict[str, np.ndarray]:
  return choose(scores, [{name: value} for value in values], select=VALIDATION)


@jax.jit
def _switch(thresholds, probs, labels, truth):
  """Which generated rows are kept `[thresholds, shots, g]`, and reports of them."""
  keep = lambda theta, p: algorithms.agreement_mask(p, labels, threshold=theta)  # noqa: E731
  kept = jax.vmap(jax.vmap(keep, (None, 0)), (0, None))(thresholds, probs)
  report = lambda rows: algorithms.agreement_report(rows, labels, truth)  # noqa: E731
  return kept, jax.vmap(jax.vmap(report))(kept)


def _add_regressions(config, results: Results, suffix: str, inputs, splits, **where) -> None:
  """Adds both logistic regressions, and the better one on validation rows."""
  features, *others = inputs
  penalties, both = config.penalties, []
  for method, columns in ((POOLED, config.dim), (SIMILAR, features.shape[-1])):
    fit = functools.partial(rules.regress, penalties, splits)
    both.append(by_seed(fit, features[..., :columns], *others))
    results.add({method + suffix: _best(both[-1], "penalty", penalties)}, **where)
  if suffix:
    scores = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *both)
    results.add({BETTER: _best(scores, "penalty", 2 * penalties)}, **where)


def _add_zero_shot(results: Results, validation, test, **where) -> None:
  """Adds both rules without training, `[seeds, 2, rows]`, and the better one on validation rows."""
  scores = {VALIDATION: validation.mean(-1), TEST: test.mean(-1)}
  for i, rule in enumerate(rules.RULES):
    results.add({rule: {name: x[:, i] for name, x in scores.items()}}, **where)
  results.add({ZERO_SHOT: _best(scores, "rule", range(len(rules.RULES)))}, **where)
