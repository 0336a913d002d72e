import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import metrics, samplers

SIZE, FLIP = 5, 0.1
KEY = jax.random.key(0)
# A chain of five variables, each of which flips the one before with probability FLIP.
STATES = np.arange(2**SIZE)[:, None] >> np.arange(SIZE) & 1
PROBS = np.where(STATES[:, 1:] == STATES[:, :-1], 1 - FLIP, FLIP).prod(1) / 2
TARGETS, CONDITIONS = (np.array(x) for x in ([4, 3, 0, 1, 0, 2], [0, 0, 4, 4, 3, 0]))
VALUES = np.array([0, 1, 1, 0, 1, 0])
TRUTH = 0.5 + (VALUES - 0.5) * (1 - 2 * FLIP) ** np.abs(TARGETS - CONDITIONS)
SCAFFOLDS = np.array([[1, 2, 3], [1, 2, -1], [3, 2, 1], [3, 2, -1], [2, 1, -1], [1, -1, -1]])
AT_ENDS = [0, 1, 2, 3, 5]  # Queries whose condition has one neighbor.
EVERY, NEIGHBORS = np.ones((SIZE, SIZE)), np.abs(np.subtract.outer(*[np.arange(SIZE)] * 2)) == 1


def oracle(visible):
  """A model that knows the joint distribution, but reads only the visible values.

  Its cache is the text. After a value it writes the neighbors of what it has written.
  """

  states, probs = jnp.asarray(STATES), jnp.asarray(PROBS)

  def evidence(text, position):
    """Values of the variables written before a position, -1 for none."""
    places = jnp.arange(2, text.shape[0] - 1, 2)
    known = jnp.full(SIZE, -1)
    names, values = text[places] - 4, text[places + 1] - 2
    written = places + 1 < position
    return known.at[jnp.where(written, names, SIZE)].set(values, mode="drop")

  def logits_at(text, position):
    known, token = evidence(text, position), text[position]
    name = jnp.clip(token - 4, 0, SIZE - 1)
    counts = (jnp.asarray(visible)[name] > 0) & (known >= 0)
    agrees = jnp.all(~counts | (known == states), axis=1)
    ones = jnp.sum(jnp.where(agrees & (states[:, name] == 1), probs, 0))
    ones /= jnp.sum(jnp.where(agrees, probs, 0))
    of_value = jnp.full(4 + SIZE, -jnp.inf).at[2].set(jnp.log(1 - ones)).at[3].set(jnp.log(ones))
    last = jnp.clip(text[position - 1] - 4, 0, SIZE - 1)
    near = jnp.abs(jnp.arange(SIZE) - last) == 1
    unseen = evidence(text, position + 1) < 0
    of_name = jnp.where(near & unseen, 0.0, -30.0)
    of_name = jnp.concatenate([jnp.zeros(4), of_name])
    return jnp.where(token >= 4, of_value, of_name)

  def apply(tokens, cache, positions):
    cache = jax.vmap(lambda text, at, new: text.at[at].set(new, mode="drop"))(
      cache, positions, tokens
    )
    return jax.vmap(jax.vmap(logits_at, (None, 0)))(cache, positions), cache

  return samplers.DecodeFns(lambda b, t: jnp.zeros((b, t), jnp.int32), apply)


@functools.cache
def estimates(which):
  fns = oracle({"every": EVERY, "near": NEIGHBORS}[which])
  queries, sizes = (TARGETS, CONDITIONS, VALUES), {"num_variables": SIZE, "num_samples": 400}

  @jax.jit
  def run(key):
    return (
      samplers.direct_estimate(fns, *queries, num_variables=SIZE),
      samplers.scaffolded_estimate(key, fns, *queries, SCAFFOLDS, **sizes),
      samplers.free_estimate(key, fns, *queries, **sizes),
    )

  return jax.tree.map(np.asarray, run(KEY))


def test_exact_conditionals_need_no_steps():
  direct, scaffolded, free = estimates("every")
  np.testing.assert_allclose(direct, TRUTH, atol=1e-5)
  np.testing.assert_allclose(scaffolded, TRUTH, atol=0.06)
  np.testing.assert_allclose(free.prob, TRUTH, atol=0.08)


def test_knowledge_of_neighbors_is_chained():
  direct, scaffolded, free = estimates("near")
  np.testing.assert_allclose(direct, 0.5, atol=1e-5)
  np.testing.assert_allclose(scaffolded, TRUTH, atol=0.1)
  np.testing.assert_allclose(free.prob[AT_ENDS], TRUTH[AT_ENDS], atol=0.1)
  # What the direct answers miss is the gap of the chain.
  flips = np.tile(np.array([[1 - FLIP, FLIP], [FLIP, 1 - FLIP]], np.float32), (4, 1, 1))
  gap = jax.jit(metrics.chain_reasoning_gap, static_argnums=(2, 3))
  missed = (direct[0] - TRUTH[0]) ** 2
  np.testing.assert_allclose(missed, gap(np.full(2, 0.5, np.float32), flips, 0, 4), rtol=1e-4)


def test_traces_are_the_variables_in_between():
  _, _, free = estimates("near")
  assert free.traces.shape == (6, 400, SIZE) and free.traces.dtype == np.int32
  assert (free.prop_valid[AT_ENDS] == 1).all()
  for query in AT_ENDS:
    step = np.sign(TARGETS[query] - CONDITIONS[query])
    between = [*range(CONDITIONS[query] + step, TARGETS[query], step)]
    expected = between + [-1] * (SIZE - len(between))
    assert (free.traces[query] == expected).all()
  # From the middle, half of the texts go the other way.
  assert 0.4 < np.mean(free.traces[4, :, 0] == 4) < 0.6


def test_no_text_reaches_the_target():
  def never(tokens, cache, positions):
    logits = jnp.where(jnp.arange(4 + SIZE) == 4 + 1, 0.0, -1e9)
    return jnp.broadcast_to(logits, (*tokens.shape, 4 + SIZE)), cache

  fns = samplers.DecodeFns(lambda b, t: jnp.zeros((b, t)), never)
  free = jax.jit(
    lambda key: samplers.free_estimate(
      key, fns, np.array([4]), np.array([0]), np.array([1]), num_variables=SIZE, num_samples=2
    )
  )(KEY)
  assert np.isnan(free.prob).all() and (np.asarray(free.prop_valid) == 0).all()
  assert (np.asarray(free.traces) == 1).all()


def test_errors():
  fns = samplers.table_decode_fns(np.zeros((9, 9), np.float32))
  for arguments, message in (
    (([5], [0], [0]), r"targets must lie in \[0, 5\)"),
    (([0], [-1], [0]), r"conditions must lie in \[0, 5\)"),
    (([0], [1], [2]), r"condition_values must lie in \[0, 1\]"),
    (([1], [1], [0]), r"targets\[0\] must differ from its condition, got 1 for both"),
    (([1, 2], [3], [0]), "conditions must have shape"),
  ):
    arrays = [np.array(x) for x in arguments]
    with pytest.raises(ValueError, match=message):
      samplers.direct_estimate(fns, *arrays, num_variables=SIZE)
  arrays = [np.array(x) for x in ([1], [2], [0])]
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    samplers.free_estimate(KEY, fns, *arrays, num_variables=SIZE, num_samples=0)
  with pytest.raises(ValueError, match=r"scaffolds must lie in \[-1, 5\)"):
    scaffolds = np.array([[7]])
    samplers.scaffolded_estimate(KEY, fns, *arrays, scaffolds, num_variables=SIZE)
