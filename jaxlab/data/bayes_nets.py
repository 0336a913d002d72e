"""Bayes nets of binary variables: random ones, samples, and exact probabilities.

A net is `parents`, int `[N, P]`, the parents of each variable with -1 for none, and `cpt`, float
`[N, 2^P]`, the probability of value 1 given the parents: the value of parent j is bit j of the
entry's number, and 0 for none.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import opt_einsum

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
  is_known,
)

_ENUMERATED = 16  # Variables up to which all states are listed.


class BayesNet(NamedTuple):
  """Parents i32 `[N, P]` and conditional probabilities f32 `[N, 2^P]` of a net."""

  parents: np.ndarray
  cpt: np.ndarray


def random_bayes_net(
  key: chex.PRNGKey,
  *,
  num_variables: int = 100,
  num_edges: int = 100,
  max_parents: int = 5,
  concentration: float = 0.2,
) -> BayesNet:
  """Draws a net, on the host.

  Edges join random pairs, and point along a random order of the variables. A pair that would give a
  variable too many parents is drawn again. A variable without parents has a uniform probability of
  1, the other conditional probabilities are Beta draws.

  Args:
    key: random key.
    num_variables: number N of variables.
    num_edges: number of edges.
    max_parents: largest number P of parents.
    concentration: both parameters of the Beta distribution; below 1, values nearly follow from
      those of the parents.

  Returns:
    A `BayesNet`.

  Raises:
    ValueError: if `num_variables` or `max_parents` < 1, `num_edges` < 0 or above what the variables
      and `max_parents` allow, or `concentration` is not positive.

  Reference: Prystawski et al., Why Think Step by Step?, NeurIPS 2023, section 3.1,
  https://arxiv.org/abs/2304.03843; which draws orientations again until there is no cycle.
  """
  check_at_least(1, num_variables=num_variables, max_parents=max_parents)
  check_range("num_edges", num_edges, f"[0, {num_variables * (num_variables - 1) // 2}]")
  check_range("concentration", concentration, "(0, inf)")
  rng = host_generator(key)
  order = rng.permutation(num_variables)
  early, late = (order[ends] for ends in np.triu_indices(num_variables, 1))
  parents = np.full((num_variables, max_parents), -1, np.int32)
  counts, left = np.zeros(num_variables, int), num_edges
  for pair in rng.permutation(len(early)):
    child = late[pair]
    if left and counts[child] < max_parents:
      parents[child, counts[child]] = early[pair]
      counts[child] += 1
      left -= 1
  if left:
    raise ValueError(
      f"num_edges must be at most {num_edges - left} with max_parents={max_parents} in this order "
      f"of {num_variables} variables, got {num_edges}."
    )
  cpt = rng.beta(concentration, concentration, (num_variables, 2**max_parents))
  cpt = np.where(counts[:, None] == 0, rng.random((num_variables, 1)), cpt)
  return BayesNet(parents, cpt.astype(np.float32))


def sample_bayes_net(
  key: chex.PRNGKey, parents: chex.Array, cpt: chex.Array, *, num_samples: int
) -> jax.Array:
  """Draws states of all variables.

  Args:
    key: random key.
    parents: int `[N, P]`.
    cpt: `[N, 2^P]`.
    num_samples: number of states.

  Returns:
    Values 0 and 1, i32 `[num_samples, N]`.

  Raises:
    ValueError: if `num_samples` < 1, shapes do not agree, known parents are no variables or contain
      a cycle (which is named), or known probabilities lie outside [0, 1].

  Reference: as `random_bayes_net`.
  """
  check_at_least(1, num_samples=num_samples)
  depth = _check_net(parents, cpt)
  parents, cpt = jnp.asarray(parents).astype(jnp.int32), as_accumulator(cpt)
  uniform = jax.random.uniform(key, (num_samples, cpt.shape[0]), cpt.dtype)
  return _settle(uniform, parents, cpt, depth)


@functools.partial(jax.jit, static_argnums=3)
def _settle(uniform, parents, cpt, depth):
  # After as many rounds as the longest path has variables, every value follows from final ones.
  def settle(_, values):
    return (uniform < _probabilities(values, parents, cpt)).astype(jnp.int32)

  return jax.lax.fori_loop(0, depth, settle, (uniform * 0).astype(jnp.int32))


def joint_log_prob(parents: chex.Array, cpt: chex.Array, values: chex.Array) -> jax.Array:
  """Log-probability of states of all variables.

  Args:
    parents: int `[N, P]`.
    cpt: `[N, 2^P]`.
    values: 0 and 1, int `[b, N]`.

  Returns:
    Natural logarithms, float32 or wider, `[b]`; -inf for what cannot happen.

  Raises:
    ValueError: as `sample_bayes_net`, or if known values are neither 0 nor 1.

  Reference: as `random_bayes_net`.
  """
  _check_net(parents, cpt)
  check_arrays(cpt=(cpt, "[N, *]"), values=(values, "int [b, N]"))
  check_range("values", values, "[0, 1]")
  parents, values = (jnp.asarray(x).astype(jnp.int32) for x in (parents, values))
  probs = _probabilities(values, parents, as_accumulator(cpt))
  return jnp.sum(jnp.log(jnp.where(values == 1, probs, 1 - probs)), axis=-1)


def _probabilities(values: jax.Array, parents: jax.Array, cpt: jax.Array) -> jax.Array:
  """Probability of 1 of every variable given the values of its parents, `[b, N]`."""
  bits = jnp.where(parents[None] >= 0, values[:, jnp.maximum(parents, 0)], 0)
  index = jnp.sum(bits << jnp.arange(parents.shape[1])[None, None], axis=-1)
  return jnp.take_along_axis(cpt[None], index[..., None], axis=2)[..., 0]


def conditional_probability(
  parents: chex.Array, cpt: chex.Array, target: int, condition: int, condition_value: int
) -> float:
  """Probability that one variable is 1 given the value of another, on the host.

  Variables that are neither of the two nor their ancestors are left out, and the others are summed
  out one after the other.

  Args:
    parents: int `[N, P]`.
    cpt: `[N, 2^P]`.
    target: the variable that is asked for.
    condition: the variable that is known.
    condition_value: its value, 0 or 1.

  Returns:
    The probability, exact up to float64 rounding; NaN if the condition has probability 0.

  Raises:
    ValueError: as `sample_bayes_net`, if a variable lies outside [0, N), both are the same, or the
      value is neither 0 nor 1.

  Reference: as `random_bayes_net`.
  """
  _check_net(parents, cpt)
  check_choice("condition_value", condition_value, (0, 1))
  check_variables(len(parents), target=target, condition=condition)
  joint = _marginal(np.asarray(parents), np.asarray(cpt, np.float64), (target, condition))
  known = joint[:, condition_value]
  return float(known[1] / known.sum()) if known.sum() > 0 else float("nan")


def joint_distribution(
  parents: chex.Array, cpt: chex.Array, variables: Sequence[int]
) -> np.ndarray:
  """Joint distribution of a few variables, on the host.

  Args:
    parents: int `[N, P]`.
    cpt: `[N, 2^P]`.
    variables: k of the variables.

  Returns:
    Probabilities, an axis for each variable in the given order, f64 `[2] * k`.

  Raises:
    ValueError: as `sample_bayes_net`, or if variables lie outside [0, N) or are the same.

  Reference: as `random_bayes_net`.
  """
  _check_net(parents, cpt)
  check_variables(len(parents), **{f"variables[{i}]": x for i, x in enumerate(variables)})
  return np.asarray(_marginal(np.asarray(parents), np.asarray(cpt, np.float64), variables))


def marginal_probabilities(parents: chex.Array, cpt: chex.Array) -> np.ndarray:
  """Probability that each variable is 1, on the host.

  Args:
    parents: int `[N, P]`.
    cpt: `[N, 2^P]`.

  Returns:
    f32 `[N]`.

  Raises:
    ValueError: as `sample_bayes_net`.

  Reference: as `random_bayes_net`.
  """
  _check_net(parents, cpt)
  parents, cpt = np.asarray(parents), np.asarray(cpt, np.float64)
  if len(parents) <= _ENUMERATED:
    states, probs = _enumerated(parents, cpt)
    return (probs @ states).astype(np.float32)
  return np.array([_marginal(parents, cpt, (i,))[1] for i in range(len(parents))], np.float32)


def pairwise_mutual_information(parents: chex.Array, cpt: chex.Array) -> np.ndarray:
  """Mutual information of every pair of variables, on the host.

  Up to 16 variables all states are listed. Otherwise, pairs without a common ancestor are
  independent, and of every other one the joint distribution is computed.

  Args:
    parents: int `[N, P]`.
    cpt: `[N, 2^P]`.

  Returns:
    Nats, f32 `[N, N]`, with a diagonal of 0.

  Raises:
    ValueError: as `sample_bayes_net`.

  Reference: as `random_bayes_net`.
  """
  _check_net(parents, cpt)
  parents, cpt = np.asarray(parents), np.asarray(cpt, np.float64)
  size = len(parents)
  information = np.zeros((size, size))
  if size <= _ENUMERATED:
    states, probs = _enumerated(parents, cpt)
    values = np.stack([1 - states, states])  # [2, states, N]
    joints = np.einsum("usi,s,vsj->ijuv", values, probs, values, optimize=True)
  else:
    ancestors = [ancestors_of(parents, (i,)) for i in range(size)]
    joints = np.full((size, size, 2, 2), 0.25)
    for i in range(size):
      for j in range(i):
        if (ancestors[i] & ancestors[j]).any():
          joints[i, j] = _marginal(parents, cpt, (i, j))
  for i in range(size):
    for j in range(i):
      joint = joints[i, j]
      product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
      positive = joint > 0
      terms = joint[positive] * np.log(joint[positive] / product[positive])
      information[i, j] = information[j, i] = max(terms.sum(), 0.0)
  return information.astype(np.float32)


def _enumerated(parents: np.ndarray, cpt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """All states `[2^N, N]` and their probabilities."""
  size, width = parents.shape
  states = np.arange(2**size)[:, None] >> np.arange(size) & 1
  bits = np.where(parents >= 0, states[:, parents], 0)
  ones = cpt[np.arange(size), (bits << np.arange(width)).sum(-1)]
  return states, np.where(states == 1, ones, 1 - ones).prod(axis=1)


def _marginal(parents: np.ndarray, cpt: np.ndarray, variables: Sequence[int]) -> np.ndarray:
  """Joint distribution of a few variables, an axis each."""
  operands = []
  for i in np.flatnonzero(ancestors_of(parents, variables)):
    places = np.flatnonzero(parents[i] >= 0)
    bits = np.indices((2,) * len(places))
    ones = cpt[i, (bits << places.reshape(-1, *[1] * len(places))).sum(0)]
    operands += [np.stack([1 - ones, ones]), [int(i), *map(int, parents[i, places])]]
  return opt_einsum.contract(*operands, [*map(int, variables)], optimize="greedy")


def ancestors_of(parents: np.ndarray, variables: Sequence[int]) -> np.ndarray:
  """Which variables are among the given ones or their ancestors.

  Args:
    parents: int `[N, P]`, without a cycle.
    variables: some variables.

  Returns:
    bool `[N]`.
  """
  found, stack = np.zeros(len(parents), bool), [*variables]
  while stack:
    variable = stack.pop()
    if not found[variable]:
      found[variable] = True
      stack += [p for p in parents[variable] if p >= 0]
  return found


def host_generator(key: chex.PRNGKey) -> np.random.Generator:
  """NumPy's generator for a random key.

  Args:
    key: random key.

  Returns:
    The generator.
  """
  return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def check_variables(num_variables: int, **variables: int) -> None:
  """Raises if variables are not distinct variables of a net.

  Args:
    num_variables: number N of the net's variables.
    **variables: variables by the caller's names for them.

  Raises:
    ValueError: naming a variable outside [0, N), or two that are the same.
  """
  seen: dict[int, str] = {}
  for name, variable in variables.items():
    check_range(name, variable, f"[0, {num_variables})")
    if int(variable) in seen:
      raise ValueError(f"{name} must differ from {seen[int(variable)]}, got {variable} for both.")
    seen[int(variable)] = name


def check_parents(parents: chex.Array) -> int:
  """Raises if the parents of variables are not those of a net.

  Args:
    parents: int `[N, P]`.

  Returns:
    Number of variables on the longest path, or N if the parents are traced.

  Raises:
    ValueError: naming a parent outside [-1, N), a variable with the same parent twice, or a cycle.
  """
  check_arrays(parents=(parents, "int [N, P]"))
  size = np.shape(parents)[0]
  if not is_known(parents):
    return size
  check_range("parents", parents, f"[-1, {size})")
  parents = np.asarray(parents)
  for variable, row in enumerate(parents):
    row = row[row >= 0]
    if len(set(row)) < len(row):
      raise ValueError(f"parents of variable {variable} must be distinct, got {row}.")
  depths = np.zeros(size, int)
  while (depths == 0).any():
    known = np.where(parents >= 0, depths[parents], -1)
    ready = (depths == 0) & (known != 0).all(axis=1)
    if not ready.any():
      raise ValueError(f"parents must have no cycle, got {_cycle(parents, depths == 0)}.")
    depths[ready] = np.maximum(known[ready], 0).max(axis=1, initial=0) + 1
  return int(depths.max(initial=1))


def _cycle(parents: np.ndarray, left: np.ndarray) -> str:
  """A cycle among variables each of which has a parent among them, from parent to child."""
  path = [int(np.flatnonzero(left)[0])]
  while path[-1] not in path[:-1]:
    path.append(next(int(p) for p in parents[path[-1]] if p >= 0 and left[p]))
  return " -> ".join(map(str, path[path.index(path[-1]) :][::-1]))


def _check_net(parents: chex.Array, cpt: chex.Array) -> int:
  depth = check_parents(parents)
  size, width = np.shape(parents)
  check_arrays(cpt=(cpt, f"[{size}, {2**width}]"))
  check_range("cpt", cpt, "[0, 1]")
  return depth
