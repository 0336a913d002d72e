import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import samplers
from jaxlab.training.mesh import make_mesh
from jaxlab.training.seeds import over_seeds
from jaxlab.training.state import init_state
from jaxlab.training.update import LossOutput, build_update

OPTIMIZER = optax.sgd(0.1)
INPUTS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
UPDATE = build_update(
  lambda params, _, batch, key: LossOutput(
    (batch @ params + jax.random.normal(key, (6,)) - 1) ** 2
  ),
  OPTIMIZER,
)


def experiment(key):
  """Trains for five steps, with the engine's own update."""
  state = init_state(key, jax.random.normal(key, (2,)), OPTIMIZER)

  def step(state, _):
    state, metrics = UPDATE(state, INPUTS)
    return state, metrics["loss"]

  state, losses = jax.lax.scan(step, state, length=5)
  return {"params": state.params, "losses": losses, "number": jnp.int32(7)}


@pytest.fixture(scope="module")
def by_hand():
  keys = jax.random.split(jax.random.key(5), 10)
  results = [jax.jit(experiment)(key) for key in keys]
  assert not np.allclose(results[0]["params"], results[1]["params"])
  return keys, results


@pytest.mark.parametrize("num_seeds", [1, 3, 8, 10])
def test_seeds_equal_single_runs(num_seeds):
  key = jax.random.key(num_seeds)
  results = over_seeds(key, experiment, num_seeds=num_seeds)
  for seed, seed_key in enumerate(jax.random.split(key, num_seeds)):
    expected = jax.jit(experiment)(seed_key)
    jax.tree.map(
      lambda x, y, seed=seed: np.testing.assert_allclose(x[seed], y, rtol=1e-6), results, expected
    )
  assert jax.tree.map(lambda x: x.shape, results) == {
    "params": (num_seeds, 2),
    "losses": (num_seeds, 5),
    "number": (num_seeds,),
  }


@pytest.mark.parametrize("only", [[2, 0], [9, 9]])
def test_some_of_the_seeds_give_what_they_give_among_all(by_hand, only):
  _, results = by_hand
  some = over_seeds(jax.random.key(5), experiment, num_seeds=10, only=only)
  for row, seed in enumerate(only):
    np.testing.assert_allclose(some["losses"][row], results[seed]["losses"], rtol=1e-6)


@pytest.mark.parametrize("only", [[], [10], [-1]])
def test_seeds_that_there_are_not_are_refused(only):
  with pytest.raises(ValueError, match="only must hold some of 0 to 9, got"):
    over_seeds(jax.random.key(5), experiment, num_seeds=10, only=only)


def test_draws_without_replacement_beside_a_second_axis():
  """They partition themselves, which XLA refuses where some axes of the mesh are its own."""

  def draw(key):
    return samplers.sample_without_replacement(key, jnp.arange(5.0), num_samples=2).tokens

  mesh = make_mesh({"data": 2, "model": 1})
  tokens = over_seeds(jax.random.key(0), draw, num_seeds=2, mesh=mesh)
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_array_equal(tokens, jax.jit(jax.vmap(draw))(keys))


@pytest.mark.parametrize("axes", [{"data": 2}, {"data": 4, "model": 2}])
def test_seeds_on_a_mesh(axes, by_hand):
  _, expected = by_hand
  results = over_seeds(jax.random.key(5), experiment, num_seeds=10, mesh=make_mesh(axes))
  np.testing.assert_allclose(results["params"], [row["params"] for row in expected], rtol=1e-6)


def test_raw_keys_and_vmap_agree(by_hand):
  keys, expected = by_hand
  vmapped = jax.vmap(experiment)(keys)
  np.testing.assert_allclose(vmapped["losses"], [row["losses"] for row in expected], rtol=1e-5)
  typed = over_seeds(jax.random.key(2), experiment, num_seeds=3)
  raw = over_seeds(jax.random.PRNGKey(2), experiment, num_seeds=3)
  np.testing.assert_array_equal(typed["params"], raw["params"])


def test_one_program_serves_all_calls():
  traces = []

  def run(key):
    traces.append(key)
    return jax.random.normal(key)

  first = over_seeds(jax.random.key(0), run, num_seeds=11)
  count = len(traces)
  second = over_seeds(jax.random.key(1), run, num_seeds=11)
  assert len(traces) == count and not np.allclose(first, second)


def test_errors():
  with pytest.raises(ValueError, match="num_seeds must be at least 1, got 0"):
    over_seeds(jax.random.key(0), experiment, num_seeds=0)
  with pytest.raises(ValueError, match="needs an axis 'data'"):
    over_seeds(jax.random.key(0), experiment, num_seeds=2, mesh=make_mesh({"model": 2}))
