"""What is learned from samples of `n` problems: right solutions, pairs, weighted steps."""

import jax
import numpy as np

from experiments.kit.alignment import Pairs
from experiments.kit.chains import Steps, step_ids
from jaxlab import data, metrics

# How the step of a pair is chosen.
CRITICAL, RANDOM, FEW = CHOICES = "critical", "random", "few rollouts"


def num_used(choice: str, num_rollouts: int) -> int:
  """How many completions count: a quarter if few are to count."""
  return max(num_rollouts // 4, 1) if choice == FEW else num_rollouts


def values_of(hits: np.ndarray) -> np.ndarray:
  """Values `[...]` of prefixes by their completions `[..., rollouts]`."""
  return np.asarray(metrics.prefix_values(hits.sum(-1), num_rollouts=hits.shape[-1]))


@jax.jit
def _critical(values, threshold, mask):
  advantages = metrics.step_advantages(values)
  step = metrics.critical_step(advantages, threshold=threshold, mask=mask)
  return {"step": step, "advantages": advantages}


def choose_steps(config, hits: np.ndarray, choice: str) -> dict[str, np.ndarray]:
  """The steps `[seeds, n]` to replace, by the completions of all prefixes."""
  values = values_of(hits[..., : num_used(choice, hits.shape[-1])])
  mask = np.ones((*values.shape[:-1], values.shape[-1] - 1), bool)
  if choice == RANDOM:
    anywhere = np.random.default_rng(0).integers(mask.shape[-1], size=mask.shape[:-1])
    mask = np.arange(mask.shape[-1]) == anywhere[..., None]
  chosen = jax.device_get(_critical(values, config.threshold, mask))
  return chosen | {"mask": mask, "values": values}


def select_pairs(config, chosen, others) -> dict[str, np.ndarray]:
  """Pairs of the chosen steps `[seeds, n]` and the best of the other ones, and their advantages."""
  of_others = values_of(others["hits"])
  everywhere = np.repeat(of_others[..., None, :], chosen["mask"].shape[-1], axis=-2)
  select = jax.jit(metrics.select_step_pairs)
  options = {"threshold": config.threshold, "margin": config.margin, "mask": chosen["mask"]}
  pairs = jax.device_get(select(chosen["values"], everywhere, **options))._asdict()
  before = np.take_along_axis(chosen["values"], chosen["step"][..., None], axis=-1)
  return pairs | {"tokens": others["tokens"], "advantages": of_others - before}


def all_steps(size: int, num_steps: int, tokens, keep=None) -> Steps:
  """Solutions to imitate."""
  every = np.ones((len(tokens), num_steps), bool)
  return filled(Steps(tokens, 0 * every.astype(np.float32), every), keep, size)


def right_solutions(size: int, samples, *, spotless: bool = False) -> Steps:
  """Different right solutions; those whose every step is right, if they must be spotless."""
  right = samples["correct"] & (samples["right"].all(-1) | (not spotless))
  tokens = samples["tokens"].reshape(-1, samples["tokens"].shape[-1])
  problems = np.repeat(np.arange(len(right)), right.shape[1])
  keep = data.unique_correct(tokens, right.ravel(), problems)
  return all_steps(size, samples["right"].shape[-1], tokens, keep)


def wrong_solutions(samples) -> np.ndarray:
  """The first wrong solution of every problem, `[n, T]`; any where none is wrong."""
  return samples["tokens"][np.arange(len(samples["correct"])), samples["correct"].argmin(1)]


def solution_pairs(size: int, chains, samples) -> Pairs:
  """A right and a wrong solution of every problem that has both."""
  correct, rejected = samples["correct"], wrong_solutions(samples)
  chosen = samples["tokens"][np.arange(len(correct)), correct.argmax(1)]
  mask = np.broadcast_to(step_ids(chains) >= 0, chosen.shape)
  return filled(Pairs(chosen, rejected, mask, mask), correct.any(1) & ~correct.all(1), size)


def step_pairs(size: int, chains, samples, pairs) -> Pairs:
  """The better step of each valid pair, and the wrong solution's own."""
  chosen = pairs["tokens"][np.arange(len(pairs["step"])), np.maximum(pairs["candidate"], 0)]
  mask = step_ids(chains)[None] == pairs["step"][:, None]
  wrong = wrong_solutions(samples)
  return filled(Pairs(chosen, wrong, mask, mask), is_valid(samples, pairs), size)


def is_valid(samples, pairs) -> np.ndarray:
  """Which problems have a wrong solution and a valid pair of steps."""
  return pairs["valid"] & ~samples["correct"].all(1)


def weighted_steps(size: int, samples, chosen, pairs) -> Steps:
  """All steps of wrong solutions, and the others in their critical places."""
  wrong, num_others = wrong_solutions(samples), pairs["advantages"].shape[1]
  advantages, step = chosen["advantages"], np.repeat(pairs["step"], num_others)
  at_step = np.arange(advantages.shape[1])[None] == step[:, None]
  of_others = np.where(at_step, pairs["advantages"].reshape(-1, 1), 0).astype(np.float32)
  rows = Steps(
    np.concatenate([wrong, pairs["tokens"].reshape(-1, wrong.shape[1])]),
    np.concatenate([advantages, of_others]),
    np.concatenate([np.ones(advantages.shape, bool), at_step]),
  )
  keep = ~samples["correct"].all(1)
  return filled(rows, np.concatenate([keep, np.repeat(keep, num_others)]), size)


def filled(rows, keep: np.ndarray | None, size: int):
  """The rows to keep, again and again; none to keep leaves masks empty, and nothing is learned."""
  chosen = np.arange(len(rows[0])) if keep is None else np.flatnonzero(keep)
  index = np.resize(chosen if len(chosen) else [0], size)
  rows = type(rows)(*(array[index] for array in rows))
  masks = {name: getattr(rows, name) & (len(chosen) > 0) for name in rows._fields if "mask" in name}
  return rows._replace(**masks)
