import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.samplers import tree_search

S, A, DEPTH = 9, 3, 4


def random_table(seed):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(S, A))
  log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
  next_state = rng.integers(-1, S, (S, A))
  solved = rng.random(S) < 0.2
  return log_probs, next_state, solved


def slow_search(log_probs, next_state, solved, root, num_expansions, max_depth):
  """A heap of (minus log-prob, creation, state, actions); also the order of expansion."""
  counter = itertools.count(1)
  heap, expanded = [(0.0, 0, root, ())], []
  while heap and len(expanded) < num_expansions:
    cost, _, state, actions = heapq.heappop(heap)
    expanded.append(-cost)
    result = None
    for action in range(log_probs.shape[1]):
      order = next(counter)
      child, total = next_state[state, action], -cost + log_probs[state, action]
      if child < 0:
        continue
      if solved[child]:
        result = result or (actions + (action,), total)
      elif len(actions) + 1 < max_depth:
        heapq.heappush(heap, (-total, order, child, actions + (action,)))
    if result:
      return True, *result, expanded
  return False, (), -np.inf, expanded


TABLES = [random_table(seed) for seed in range(12)]
STACKED = tuple(np.stack(parts) for parts in zip(*TABLES))


def search_all(num_expansions):
  search = lambda *table: tree_search.table_best_first_search(  # noqa: E731
    *table, num_expansions=num_expansions, max_depth=DEPTH
  )
  return jax.jit(jax.vmap(search))(*STACKED)


# With all nodes of the tree in the budget the search is exhaustive.
BUDGETS = (1, 4, sum(A**d for d in range(DEPTH)))


@pytest.fixture(scope="module")
def results():
  return {budget: jax.tree.map(np.asarray, search_all(budget)) for budget in BUDGETS}


@pytest.mark.parametrize("budget", BUDGETS)
def test_search_matches_a_heap(results, budget):
  for row, table in enumerate(TABLES):
    result = jax.tree.map(lambda leaf, row=row: leaf[row], results[budget])
    solved, actions, log_prob, expanded = slow_search(*table, 0, budget, DEPTH)
    assert result.solved == solved and result.num_expansions == len(expanded)
    padded = list(actions) + [-1] * (DEPTH - len(actions))
    assert result.actions.tolist() == padded and result.depth == len(actions)
    np.testing.assert_allclose(result.log_prob, log_prob, rtol=1e-5)
    if solved:  # The best unexpanded node was never better than what was expanded before it.
      assert result.log_prob <= min(expanded) + 1e-5


def test_full_budget_finds_every_reachable_solution(results):
  for (_, next_state, solved), result in zip(TABLES, results[BUDGETS[-1]].solved):
    reached, frontier = set(), {0}
    for _ in range(DEPTH):
      frontier = {int(c) for s in frontier for c in next_state[s] if c >= 0}
      reached |= {c for c in frontier if solved[c]}
      frontier -= reached
    assert result == bool(reached)
  assert 0 < results[BUDGETS[-1]].solved.sum() < len(TABLES)


def test_more_budget_never_loses_a_solution(results):
  few, some, all_ = (results[budget] for budget in BUDGETS)
  assert np.all(few.solved <= some.solved) and np.all(some.solved <= all_.solved)
  np.testing.assert_array_equal(few.actions[few.solved], all_.actions[few.solved])


def test_branching_one_is_greedy():
  """A chain of most probable actions, in states that count up."""
  log_probs, next_state, _ = TABLES[0]
  best = np.argmax(log_probs, -1)
  next_state = np.where(next_state < 0, 0, next_state)

  def propose(key, state):
    del key
    action = jnp.asarray(best)[state["at"]]
    return action[None], jnp.asarray(log_probs)[state["at"], action][None]

  def move(state, action):
    steps = state["steps"] + 1
    at = jnp.asarray(next_state)[state["at"], action]
    return {"at": at, "steps": steps}, jnp.where(steps == 3, 1, 0)

  result = jax.jit(
    lambda root: tree_search.best_first_search(
      jax.random.key(0), propose, move, root, num_expansions=8, branching=1, max_depth=5
    )
  )({"at": 2, "steps": 0})
  actions, total, state = [], 0.0, 2
  for _ in range(3):
    actions.append(int(best[state]))
    total += log_probs[state, best[state]]
    state = next_state[state, best[state]]
  assert result.actions.tolist() == [*actions, -1, -1] and int(result.depth) == 3
  assert int(result.num_expansions) == 3 and bool(result.solved)
  np.testing.assert_allclose(result.log_prob, total, rtol=1e-5)


def test_ties_impossible_actions_and_the_root():
  log_probs = jnp.log(jnp.array([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1.0, 0, 0]]))
  next_state = jnp.array([[1, 2, 3], [-1, -1, 3], [3, 3, 3], [3, 3, 3]])
  solved = jnp.array([True, False, False, True])
  search = jax.jit(
    tree_search.table_best_first_search, static_argnames=("num_expansions", "max_depth")
  )
  result = search(log_probs, next_state, solved, num_expansions=9, max_depth=3)
  # The solved root is open, the action without probability is none, of two equal children the
  # older is expanded.
  assert result.actions.tolist() == [0, 2, -1] and int(result.num_expansions) == 2
  shallow = search(log_probs, next_state, solved, num_expansions=9, max_depth=1)
  assert not bool(shallow.solved) and int(shallow.num_expansions) == 1
  assert shallow.actions.tolist() == [-1] and int(shallow.depth) == 0
  assert float(shallow.log_prob) == -np.inf


def test_each_expansion_draws_new_proposals():
  def propose(key, state):
    del state
    return jax.random.randint(key, (2,), 0, 1000), jnp.zeros(2)

  result = tree_search.best_first_search(
    jax.random.key(3),
    propose,
    lambda state, action: (state + 1, jnp.where(state == 2, 1, 0)),
    jnp.zeros((), jnp.int32),
    num_expansions=10,
    branching=2,
    max_depth=4,
  )
  # Children of equal score are expanded in the order of creation, level by level.
  drawn = [int(propose(jax.random.fold_in(jax.random.key(3), i), None)[0][0]) for i in (0, 1, 3)]
  assert result.actions.tolist() == [*drawn, -1]


def test_draws_without_replacement():
  logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1])) + 5.0
  num = 20_000
  draw = jax.jit(tree_search.sample_without_replacement, static_argnames="num_samples")
  result = draw(jax.random.key(0), jnp.broadcast_to(logits, (num, 4)), num_samples=2)
  first, second = np.asarray(result.tokens).T
  probs = np.array([0.4, 0.3, 0.2, 0.1])
  pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
  counts = [np.sum((first == i) & (second == j)) for i, j in pairs]
  expected = [num * probs[i] * probs[j] / (1 - probs[i]) for i, j in pairs]
  assert sum(counts) == num
  assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3
  np.testing.assert_allclose(result.log_probs, np.log(probs)[result.tokens], rtol=1e-4)
  everything = draw(jax.random.key(1), jnp.array([0.0, -jnp.inf, 1e4, -1e4]), num_samples=4)
  assert sorted(everything.tokens.tolist()) == [0, 1, 2, 3]
  assert not np.isnan(everything.log_probs).any()


@pytest.mark.parametrize("name", ["num_expansions", "branching", "max_depth"])
def test_errors(name):
  options = {"num_expansions": 1, "branching": 1, "max_depth": 1} | {name: 0}
  with pytest.raises(ValueError, match=f"{name}.*0"):
    tree_search.best_first_search(jax.random.key(0), None, None, jnp.zeros(()), **options)


def test_states_outside_the_table():
  log_probs, solved = np.log(np.full((2, 2), 0.5)), np.array([False, True])
  search = lambda next_state, root=0: tree_search.table_best_first_search(  # noqa: E731
    log_probs, next_state, solved, root=root, num_expansions=3, max_depth=2
  )
  with pytest.raises(ValueError, match="next_state must lie in"):
    search(np.array([[2, 1], [0, 0]]))
  with pytest.raises(ValueError, match="root must lie in"):
    search(np.array([[0, 1], [0, 0]]), root=2)
  # Traced, it fails as a negative one does, and does not stand for the last row.
  result = jax.jit(search)(np.array([[2, -1], [0, 0]]))
  assert not result.solved and result.num_expansions == 1


@pytest.mark.parametrize("num", [0, 5])
def test_too_many_draws(num):
  with pytest.raises(ValueError, match=f"num_samples.*{num}"):
    tree_search.sample_without_replacement(jax.random.key(0), jnp.zeros(4), num_samples=num)
