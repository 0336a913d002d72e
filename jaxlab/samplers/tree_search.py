"""Search in trees of actions, and draws without replacement that give it distinct branches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.samplers.top_k import row_top_k


class TreeSearchResult(NamedTuple):
  """The result of a search.

  Attributes:
    solved: whether the search reached a solution, bool scalar.
    actions: the actions that lead to it, i32 `[max_depth]`, -1 after them and where unsolved.
    depth: number of these actions, i32 scalar; 0 where unsolved.
    log_prob: their log-probability in nats, scalar; -inf where unsolved.
    num_expansions: nodes that were expanded, i32 scalar.
  """

  solved: chex.Array
  actions: chex.Array
  depth: chex.Array
  log_prob: chex.Array
  num_expansions: chex.Array


class DistinctDraws(NamedTuple):
  """Distinct tokens in the order in which they were drawn, and their log-probabilities.

  Attributes:
    tokens: i32 `[..., num_samples]`.
    log_probs: under the softmax that they were drawn from, in nats, `[..., num_samples]`.
  """

  tokens: chex.Array
  log_probs: chex.Array


def best_first_search(
  key: chex.PRNGKey,
  propose_fn: Callable[[chex.PRNGKey, Any], tuple[chex.Array, chex.Array]],
  transition_fn: Callable[[Any, chex.Array], tuple[Any, chex.Array]],
  root_state: chex.ArrayTree,
  *,
  num_expansions: int,
  branching: int,
  max_depth: int,
) -> TreeSearchResult:
  """Repeatedly expands the open node of the highest log-probability, until a solution is reached.

  One problem, one `lax.while_loop`; `jax.vmap` over keys and roots searches many::

    search = lambda key, root: best_first_search(
      key, propose_fn, transition_fn, root, num_expansions=64, branching=4, max_depth=8
    )
    results = jax.jit(jax.vmap(search))(keys, roots)

  Args:
    key: random key; expansion i proposes with `fold_in(key, i)`.
    propose_fn: `(key, state) -> (actions i32[branching], log_probs[branching])`; a proposal of
      log-probability -inf or NaN counts as none.
    transition_fn: `(state, action) -> (state, status)`, with status 1 for a solution, 0 for a state
      that is open and -1 for a failure; it is mapped over actions.
    root_state: where to start, a pytree of arrays; the root is open.
    num_expansions: how many nodes may be expanded, at least 1.
    branching: proposals per expansion, at least 1.
    max_depth: most actions of a solution, at least 1; an unsolved node at this depth is closed.

  Returns:
    The `TreeSearchResult`. Of nodes with equal log-probability the oldest is expanded, and of
    several solutions in one expansion the first proposal wins.

  Raises:
    ValueError: if `num_expansions`, `branching` or `max_depth` is below 1, or `propose_fn` gives
      another number of proposals.

  Reference: Polu and Sutskever, Generative Language Modeling for Automated Theorem Proving, 2020,
  section 4.2, https://arxiv.org/abs/2009.03393.
  """
  check_at_least(1, num_expansions=num_expansions, branching=branching, max_depth=max_depth)
  root_state = jax.tree.map(jnp.asarray, root_state)
  return _search(key, propose_fn, transition_fn, root_state, num_expansions, branching, max_depth)


@compiled_once
def _search(
  key, propose_fn, transition_fn, root_state, num_expansions, branching, max_depth
) -> TreeSearchResult:
  log_probs = jax.eval_shape(propose_fn, key, root_state)[1]
  dtype = jnp.promote_types(log_probs.dtype, jnp.float32)
  capacity = 1 + num_expansions * branching

  def proceed(search):
    any_open = jnp.any(search.priority > -jnp.inf)
    return (search.num_expansions < num_expansions) & any_open & (search.solution == 0)

  def expand(search):
    node = jnp.argmax(search.priority)
    state = jax.tree.map(lambda leaf: leaf[node], search.states)
    actions, log_probs = propose_fn(jax.random.fold_in(key, search.num_expansions), state)
    proposals = f"[{branching}]"
    check_arrays(actions=(actions, proposals), log_probs=(log_probs, proposals))
    children, status = jax.vmap(transition_fn, in_axes=(None, 0))(state, actions)
    log_probs = search.log_prob[node] + as_accumulator(log_probs).astype(dtype)
    depth = search.depth[node] + 1
    possible = log_probs > -jnp.inf
    solves = possible & (status == 1)
    is_open = possible & (status == 0) & (depth < max_depth)
    first_child = 1 + search.num_expansions * branching

    def append(buffer, values):
      values = jnp.broadcast_to(values, (branching, *buffer.shape[1:])).astype(buffer.dtype)
      return jax.lax.dynamic_update_slice_in_dim(buffer, values, first_child, axis=0)

    return _Search(
      num_expansions=search.num_expansions + 1,
      solution=jnp.where(jnp.any(solves), first_child + jnp.argmax(solves), 0).astype(jnp.int32),
      states=jax.tree.map(append, search.states, children),
      priority=append(
        search.priority.at[node].set(-jnp.inf), jnp.where(is_open, log_probs, -jnp.inf)
      ),
      log_prob=append(search.log_prob, log_probs),
      depth=append(search.depth, depth),
      action=append(search.action, actions),
      parent=append(search.parent, node),
    )

  closed = jnp.full(capacity, -jnp.inf, dtype)
  integers = jnp.zeros(capacity, jnp.int32)
  search = _Search(
    num_expansions=jnp.zeros((), jnp.int32),
    solution=jnp.zeros((), jnp.int32),
    states=jax.tree.map(
      lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype).at[0].set(leaf), root_state
    ),
    priority=closed.at[0].set(0.0),
    log_prob=closed.at[0].set(0.0),
    depth=integers,
    action=integers,
    parent=integers,
  )
  search = jax.lax.while_loop(proceed, expand, varying_carry(expand, search))
  solved = search.solution > 0
  return TreeSearchResult(
    solved=solved,
    actions=_path(search, max_depth),
    depth=search.depth[search.solution],
    log_prob=jnp.where(solved, search.log_prob[search.solution], -jnp.inf),
    num_expansions=search.num_expansions,
  )


def table_best_first_search(
  log_probs: chex.Array,
  next_state: chex.Array,
  solved: chex.Array,
  *,
  root: chex.Numeric = 0,
  num_expansions: int,
  max_depth: int,
) -> TreeSearchResult:
  """`best_first_search` over states that are rows of a table; every action is proposed.

  Args:
    log_probs: log-probability of each action in each state, `[s, a]`.
    next_state: where it leads, int `[s, a]`; negative, or a traced s or more, where it fails.
    solved: whether a state is a solution, bool `[s]`; the root always counts as open.
    root: the state to start from, int; a traced one outside the table proposes nothing.
    num_expansions: how many nodes may be expanded, at least 1.
    max_depth: most actions of a solution, at least 1.

  Returns:
    The `TreeSearchResult`.

  Raises:
    TypeError: if `next_state` is not of integers.
    ValueError: if `num_expansions` or `max_depth` is below 1, the shapes do not agree, or a
      concrete state lies outside the table.
  """
  check_arrays(
    log_probs=(log_probs, "[s, a]"),
    next_state=(next_state, "int [s, a]"),
    solved=(solved, "[s]"),
  )
  num_states, num_actions = np.shape(log_probs)
  check_range("next_state", next_state, f"(-inf, {num_states})")
  root = as_classes("root", root, num_states)
  log_probs, next_state, solved = map(jnp.asarray, (log_probs, next_state, solved))
  return best_first_search(
    jax.random.key(0),
    jax.tree_util.Partial(_propose_all, log_probs),
    jax.tree_util.Partial(_move_in_table, next_state, solved),
    root,
    num_expansions=num_expansions,
    branching=num_actions,
    max_depth=max_depth,
  )


def _propose_all(log_probs, _, state):
  return jnp.arange(log_probs.shape[1], dtype=jnp.int32), log_probs.at[state].get(mode="fill")


def _move_in_table(next_state, solved, state, action):
  reached = next_state[state, action].astype(jnp.int32)
  fails = (reached < 0) | (reached >= solved.shape[0])
  reached = jnp.where(fails, 0, reached)
  return reached, jnp.where(fails, -1, (solved[reached] != 0).astype(jnp.int32))


def sample_without_replacement(
  key: chex.PRNGKey, logits: chex.Array, *, num_samples: int
) -> DistinctDraws:
  """Draws distinct tokens one after the other, each from the softmax over those that are left.

  The largest of the logits after adding Gumbel noise are such draws, in one pass.

  Args:
    key: random key.
    logits: scores, `[..., v]`; -inf is drawn only when the others run out.
    num_samples: number of tokens, in [1, v].

  Returns:
    The `DistinctDraws`.

  Raises:
    ValueError: if `num_samples` lies outside [1, v].

  Reference: Kool et al., Stochastic Beams and Where to Find Them, ICML 2019, section 2,
  https://arxiv.org/abs/1903.06059.
  """
  logits = as_accumulator(logits)
  if not 1 <= num_samples <= logits.shape[-1]:
    raise ValueError(f"num_samples must lie in [1, {logits.shape[-1]}], got {num_samples}.")
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  noise = jax.random.gumbel(key, logits.shape, logits.dtype)
  _, tokens = row_top_k(log_probs + noise, num_samples)
  return DistinctDraws(tokens, jnp.take_along_axis(log_probs, tokens, axis=-1))


class _Search(NamedTuple):
  """The tree, one row per node in the order of creation; row 0 is the root.

  `solution` is 0 until there is one, since the root is never a solution; `priority` is the
  log-probability of open nodes and -inf of the others.
  """

  num_expansions: jax.Array
  solution: jax.Array
  states: Any
  priority: jax.Array
  log_prob: jax.Array
  depth: jax.Array
  action: jax.Array
  parent: jax.Array


def _path(search: _Search, max_depth: int) -> jax.Array:
  """The actions from the root to the solution, read from its end."""

  def place(_, carry):
    node, actions = carry
    # At the root nothing is written: place -1 would count from the end.
    slot = jnp.where(node > 0, search.depth[node] - 1, max_depth)
    actions = actions.at[slot].set(search.action[node], mode="drop")
    return search.parent[node], actions

  start = (search.solution, jnp.full(max_depth, -1, jnp.int32))
  start = varying_carry(lambda carry: place(0, carry), start)
  return jax.lax.fori_loop(0, max_depth, place, start)[1]
