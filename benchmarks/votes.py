"""Votes, RPC and pass@k of 10,000 problems in one call, beside a Python loop over problems."""

import collections
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import metrics, samplers, training

PACKAGES = ("scipy",)
_PROBLEMS, _SAMPLES, _K = 10_000, 100, 10
_LOOPED = 100  # Problems of a turn of the loops, whose times are per problem.
_GROUP = f"{_PROBLEMS:,} problems x {_SAMPLES} samples"
_VOTES, _RPC, _PASS = "majority_vote", "pruned_consistency_confidence", f"pass_at_k, k {_K}"
_ALL = "all three, one jitted call"
_LOOPS = {_ALL: "a Python loop", _VOTES: "Counter", _RPC: "L-BFGS of scipy", _PASS: "math.comb"}
ROWS = tuple(
  Row(_GROUP, ours, peer, goal=50.0 if ours == _ALL else None, unit="problem")
  for ours, peer in _LOOPS.items()
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  num_problems = 100 if quick else _PROBLEMS
  num_looped = 4 if quick else _LOOPED
  mesh = measure.start(divides=num_problems)
  rng = np.random.default_rng(0)
  # A problem's paths are likely or not, and likely ones are mostly of one answer.
  likely = rng.random((num_problems, _SAMPLES)) < rng.beta(2, 2, (num_problems, 1))
  scores = np.where(likely, -0.25, -0.9) + 0.15 * rng.normal(size=likely.shape)
  scores = np.minimum(scores, -0.01).astype(np.float32)
  answers = np.where(
    likely & (rng.random(likely.shape) < 0.8), 0, rng.integers(0, 20, likely.shape)
  )
  pool = answers.astype(np.int32), scores
  on_devices = training.shard_batch(pool, mesh)
  programs = {name: jax.jit(function) for name, function in _FUNCTIONS.items()}
  functions = {name: functools.partial(f, *on_devices) for name, f in programs.items()}
  some = [x[:num_looped] for x in pool]
  loops = {
    peer: functools.partial(_by_problem, _OF_PROBLEM[ours], *some) for ours, peer in _LOOPS.items()
  }
  times = measure.interleave(
    {name: Timed(call, num_problems) for name, call in functions.items()}
    | {name: Timed(call, num_looped) for name, call in loops.items()},
    quick=quick,
    repetitions=5,
  )
  found = {name: np.asarray(functions[name]())[:num_looped] for name in (_VOTES, _RPC, _PASS)}
  same = {name: _agreement(x, loops[_LOOPS[name]]()) for name, x in found.items()}
  checks = {
    "votes and pass@k as the loop's": same[_VOTES] == same[_PASS] == 1,
    # Both searches are local, and may end in different optima.
    "RPC chooses the loop's answer in 98% of the problems": same[_RPC] >= 0.98,
  }
  for row in ROWS:
    held = programs[row.ours].lower(*on_devices).compile().memory_analysis().temp_size_in_bytes
    notes = {"bytes a problem beside arguments and results": held / num_problems}
    if row.ours == _ALL:
      notes |= {f"problems alike, {name}": share for name, share in same.items()}
    yield measure.result(row, times, checks=checks, notes=notes)


def _vote(answers, scores):
  del scores
  return samplers.majority_vote(answers).answer


def _prune(answers, scores):
  confidence = samplers.pruned_consistency_confidence(answers, scores)
  return jnp.take_along_axis(answers, jnp.argmax(confidence, axis=-1)[:, None], axis=1)[:, 0]


def _pass_at_k(answers, scores):
  del scores
  return metrics.pass_at_k(jnp.sum(answers == 0, axis=1), num_samples=answers.shape[1], k=_K)


_FUNCTIONS = {_VOTES: _vote, _RPC: _prune, _PASS: _pass_at_k}
_FUNCTIONS[_ALL] = lambda *pool: tuple(_FUNCTIONS[name](*pool) for name in (_VOTES, _RPC, _PASS))


def _agreement(ours, theirs) -> float:
  return float(np.mean(np.isclose(ours, theirs, atol=1e-5)))


def _by_problem(function, answers, scores):
  return np.array([function(*row) for row in zip(answers.tolist(), scores)])


def _vote_of_problem(answers, scores):
  del scores
  return collections.Counter(answers).most_common(1)[0][0]


def _pass_of_problem(answers, scores):
  del scores
  wrong = sum(answer != 0 for answer in answers)
  return 1 - math.comb(wrong, _K) / math.comb(len(answers), _K)


def _prune_of_problem(answers, scores):
  probs = np.exp(np.float64(scores))
  weight, *rest = _fit(probs)
  shape, scale = np.reshape(rest, (2, 2))
  first, second = _densities(probs, weight, shape, scale)
  means = scale * special.gamma(1 + 1 / shape)
  lower = first > second if means[0] < means[1] else second > first
  keep = ~lower | (probs >= probs.mean())
  totals = collections.defaultdict(float)
  for answer, prob, kept in zip(answers, probs, keep):
    totals[answer] += prob * kept
  return max(totals, key=totals.get)


def _densities(x, weight, shape, scale):
  """Of the two components, with their weights."""
  shape, scale, shares = (np.reshape(y, (2, 1)) for y in (shape, scale, (weight, 1 - weight)))
  log_ratio = np.log(x) - np.log(scale)
  power = np.exp(np.minimum(shape * log_ratio, 80.0))
  return np.exp(np.log(shares * shape / scale) + (shape - 1) * log_ratio - power)


def _fit(x):
  def loss(params):
    weight, *rest = params
    return -np.sum(np.log(_densities(x, weight, *np.reshape(rest, (2, 2))).sum(0) + 1e-300))

  bounds = [(0.2, 0.8)] + [(0.01, None)] * 4
  return optimize.minimize(loss, (0.5, 1.0, 1.0, 1.5, 2.0), bounds=bounds, method="L-BFGS-B").x


_OF_PROBLEM = {_VOTES: _vote_of_problem, _RPC: _prune_of_problem, _PASS: _pass_of_problem}
_OF_PROBLEM[_ALL] = lambda *row: [_OF_PROBLEM[name](*row) for name in (_VOTES, _RPC, _PASS)]


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
