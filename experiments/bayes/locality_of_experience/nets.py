"""A net, the questions about pairs that no text shows, and the texts of three kinds."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import numpy as np

from jaxlab import data

KINDS = LOCAL, WRONG, FULL = "local", "wrong_local", "fully_observed"


class Questions(NamedTuple):
  """What is asked, the probability that targets are 1 with and without the condition; `[q]`.

  Questions count, are `used`, if the condition has this value often enough.
  """

  targets: chex.Array
  conditions: chex.Array
  values: chex.Array
  probs: chex.Array
  marginals: chex.Array
  used: chex.Array


class Steps(NamedTuple):
  """What may be written before the target of a question.

  Attributes:
    scaffolds: variables that separate target and condition, -1 after the last, `[q, N - 2]`.
    negatives: as many others, likewise.
    others: single variables at random, `[q, num_samples]`.
    chained: answers by exact conditionals along the scaffold, `[q]`.
    variances: of these answers if one draw replaces the sum over the scaffold's values, `[q]`.
  """

  scaffolds: chex.Array
  negatives: chex.Array
  others: chex.Array
  chained: chex.Array
  variances: chex.Array


class Problem(NamedTuple):
  """A net, pairs of it `[h, 2]` that no text shows, and what is made of them.

  Questions are about these pairs, which are `distances` edges apart, and about neighbors. Rows of
  texts, uint8 `[n, row_length]`, their tokens and how many show a held-out pair are by kind.
  """

  parents: chex.Array
  held_out: chex.Array
  distances: chex.Array
  questions: Questions
  steps: Steps
  neighbors: Questions
  texts: dict[str, chex.Array]
  num_tokens: dict[str, chex.Array]
  num_leaks: dict[str, chex.Array]


def new_key(rng: np.random.Generator) -> chex.PRNGKey:
  """A random key."""
  return jax.random.key(rng.integers(2**31))


def random_net(config, rng: np.random.Generator) -> data.BayesNet:
  """Draws a random net, or a chain that parts in two after a third of its variables."""
  if config.net == "random":
    names = "num_variables", "num_edges", "max_parents", "concentration"
    return data.random_bayes_net(new_key(rng), **{name: getattr(config, name) for name in names})
  order, third = rng.permutation(config.num_variables), config.num_variables // 3
  before = np.roll(order, 1)
  before[2 * third] = order[third - 1]
  parents = np.full((config.num_variables, 1), -1, np.int32)
  parents[order[1:], 0] = before[1:]
  cpt = np.where(parents < 0, 0.5, (config.flip, 1 - config.flip))
  return data.BayesNet(parents, cpt.astype(np.float32))


def draw_net(config, rng: np.random.Generator) -> tuple[data.BayesNet, np.ndarray]:
  """The candidate whose held-out pairs have the most mutual information, and these pairs."""
  candidates = []
  for _ in range(config.num_candidates):
    net = random_net(config, rng)
    distances = data.graph_distances(net.parents)
    if (np.triu(distances) > 1).sum() < 2 * config.num_pairs:
      continue  # Too few pairs to choose from.
    information = data.pairwise_mutual_information(*net)
    matrices, size = (information, distances), {"num_pairs": config.num_pairs}
    pairs = data.select_held_out_pairs(new_key(rng), *matrices, **size)
    candidates.append((information[tuple(pairs.T)].mean(), net, pairs))
  if not candidates:
    raise ValueError(f"no candidate has {2 * config.num_pairs} pairs (num_pairs) that are apart.")
  _, net, pairs = max(candidates, key=lambda candidate: candidate[0])
  return net, pairs


def make_questions(config, net: data.BayesNet, pairs: Sequence[Sequence[int]]) -> Questions:
  """Questions about pairs, both ways and for both values."""
  rows = [(*ends, v) for a, b in pairs for ends in ((a, b), (b, a)) for v in (0, 1)]
  targets, conditions, values = np.array(rows, np.int32).T
  ones = data.marginal_probabilities(*net)
  used = np.where(values == 1, ones[conditions], 1 - ones[conditions]) >= config.least_probability
  probs = np.array([data.conditional_probability(*net, *row) for row in rows])
  probs = np.where(used, probs, ones[targets]).astype(np.float32)
  return Questions(targets, conditions, values, probs, ones[targets], used)


def make_steps(config, rng: np.random.Generator, net: data.BayesNet, questions: Questions) -> Steps:
  """Draws what may be written before each target."""
  rows, every = [], np.arange(config.num_variables)
  for i, (target, condition, value) in enumerate(zip(*questions[:3])):
    scaffold = data.reasoning_scaffold(net.parents, target, condition)
    negative = data.negative_scaffold(new_key(rng), net.parents, target, condition)
    others = rng.choice(np.setdiff1d(every, (target, condition)), config.num_samples)
    asked = net, target, condition, value
    exact = chain(*asked, scaffold) if questions.used[i] else (0.0, 0.0)
    padded = (np.array([*x, *[-1] * (len(every) - 2 - len(x))]) for x in (scaffold, negative))
    rows.append(Steps(*(x.astype(np.int32) for x in (*padded, others)), *np.float32(exact)))
  return Steps(*map(np.stack, zip(*rows)))


def chain(
  net: data.BayesNet, target: int, condition: int, value: int, scaffold: Sequence[int]
) -> tuple[float, float]:
  """Mean and variance, over the values of a scaffold, of the probability that a target is 1.

  The condition tells the scaffold's values, and has no other way to the target.
  """
  joint = data.joint_distribution(*net, (condition, *scaffold))[value]
  weights = joint / joint.sum()
  joint = data.joint_distribution(*net, (*scaffold, target))
  ones = joint[..., 1] / np.where(joint.sum(-1) > 0, joint.sum(-1), 1)
  mean = (weights * ones).sum()
  return mean, (weights * (ones - mean) ** 2).sum()


def draw_problem(config, seed: int) -> Problem:
  """Draws the net of a seed, questions about it, and texts of all kinds.

  All kinds have as many rows. After as many tokens as that with the fewest has, rows are empty.
  """
  rng = np.random.default_rng(seed)
  net, held_out = draw_net(config, rng)
  questions = make_questions(config, net, held_out)
  edges = [(net.parents[child, i], child) for child, i in np.argwhere(net.parents >= 0)]
  wrong = random_net(config, rng).parents
  options = {LOCAL: {}, WRONG: {"neighborhood_parents": wrong}, FULL: {"fully_observed": True}}
  shared = {n: getattr(config, n) for n in ("radius", "radius_parameter", "keep_prob")}
  num_leaks = dict.fromkeys(KINDS, 0)

  def draw(kind, num):
    texts = data.local_documents(
      new_key(rng), *net, num_documents=num, held_out_pairs=held_out, **shared, **options[kind]
    )
    num_leaks[kind] += count_leaks(texts.tokens, held_out)
    return texts

  num_rows = config.num_steps * config.rows_per_update
  rows = {kind: pack(functools.partial(draw, kind), num_rows, config.row_length) for kind in KINDS}
  counts = {kind: np.cumsum((x > 0).sum(axis=1)) for kind, x in rows.items()}
  fewest = min(x[-1] for x in counts.values())
  rows = {kind: np.where((counts[kind] <= fewest)[:, None], x, 0) for kind, x in rows.items()}
  return Problem(
    parents=net.parents,
    held_out=held_out,
    distances=data.graph_distances(net.parents)[questions.targets, questions.conditions],
    questions=questions,
    steps=make_steps(config, rng, net, questions),
    neighbors=make_questions(config, net, edges),
    texts=rows,
    num_tokens={kind: (x > 0).sum() for kind, x in rows.items()},
    num_leaks=num_leaks,
  )


def pack(draw: Callable[[int], data.Documents], num_rows: int, length: int) -> np.ndarray:
  """Writes texts, `number -> texts` one after the other into rows `[num_rows, length]`."""
  rows, row, end = np.zeros((num_rows, length), np.uint8), 0, 0
  while True:
    for tokens, size in zip(*draw(num_rows)):
      if end + size > length:
        row, end = row + 1, 0
        if row == num_rows:
          return rows
      rows[row, end : end + size] = tokens[:size]
      end += size


def count_leaks(tokens: np.ndarray, pairs: np.ndarray) -> int:
  """How many texts show both variables of a pair."""
  shown = lambda variable: (tokens == 4 + variable).any(axis=1)  # noqa: E731
  return int(np.sum([shown(a) & shown(b) for a, b in pairs]))
