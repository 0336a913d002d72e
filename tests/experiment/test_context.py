import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlab import experiment, training
from jaxlab.experiment import workdir
from tests.experiment import tiny_experiment as tiny


def context_at(directory, seeds=1):
  return experiment.Context(directory, jax.random.key(0), seeds)


def test_a_context_has_all_devices_unless_it_is_given_others(tmp_path):
  assert dict(context_at(tmp_path).mesh.shape) == {"data": 8}
  mesh = training.make_mesh({"data": 2})
  assert experiment.Context(tmp_path, jax.random.key(0), mesh=mesh).mesh is mesh


def test_seed_keys_are_those_of_over_seeds(tmp_path):
  context = context_at(tmp_path, 3)
  draws = training.over_seeds(context.key, jax.random.normal, num_seeds=3)
  expected = [jax.random.normal(context.seed_key(seed)) for seed in range(3)]
  np.testing.assert_array_equal(draws, expected)
  with pytest.raises(ValueError, match=r"\[0, 3\), got 3"):
    context.seed_key(3)


def test_cached_computes_once(tmp_path):
  calls = []

  def fn(a, *, b):
    calls.append((a, b))
    return {
      "tree": [np.arange(3), (jnp.ones((2, 2), jnp.bfloat16), 1.5)],
      "scalar": np.float32(0.1),
      "plain": {"text": "ü", "none": None, "flag": True, "whole": 7, "nan": math.nan},
      "empty": [np.zeros((0, 3)), {}, ()],
      "words": np.array(["a", "bcd"]),
    }

  first = context_at(tmp_path).cached("a/b c=1", fn, 1, b=2)
  second = context_at(tmp_path).cached("a/b c=1", fn, 1, b=2)
  assert calls == [(1, 2)]
  assert jax.tree.structure(first) == jax.tree.structure(second)
  for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    assert type(x) is type(y)
    np.testing.assert_array_equal(x, y)
  assert second["tree"][1][0].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(second["tree"][1][0], np.ones((2, 2)))
  assert second["scalar"] == np.float32(0.1) and second["scalar"].dtype == np.float32
  assert second["empty"][0].shape == (0, 3) and second["words"].tolist() == ["a", "bcd"]


class _AskedAt:
  """Signals that ask to stop at the nth look."""

  signum = 15

  def __init__(self, look):
    self.looks_left = look

  def requested(self, *, agree):
    self.looks_left -= agree
    return self.looks_left < 0


def test_seeds_run_in_calls_between_which_a_signal_stops(tmp_path):
  started = []

  def run(key, x):
    jax.debug.callback(lambda x: started.append(float(x)), x)
    return {"sum": x + jax.random.uniform(key), "pair": x * jnp.ones(2)}

  mesh, numbers = training.make_mesh({"data": 2}), np.arange(5.0, dtype=np.float32)

  def go(directory, signals=None):
    context = experiment.Context(directory, jax.random.key(0), 5, mesh=mesh, signals=signals)
    result = context.over_seeds("stage", run, arguments=numbers)
    jax.effects_barrier()
    return result

  whole = go(tmp_path / "whole")
  expected = training.over_seeds(jax.random.key(0), run, num_seeds=5, arguments=numbers, mesh=mesh)
  jax.tree.map(np.testing.assert_array_equal, whole, expected)
  jax.effects_barrier()
  started.clear()
  with pytest.raises(experiment.Stopped):
    go(tmp_path / "cut", _AskedAt(1))
  jax.effects_barrier()
  assert sorted(started) == [0, 1]
  started.clear()
  jax.tree.map(np.testing.assert_array_equal, go(tmp_path / "cut"), whole)
  assert sorted(started) == [0, 2, 3, 4]  # The last call is filled up with the first seed.
  started.clear()
  jax.tree.map(np.testing.assert_array_equal, go(tmp_path / "cut"), whole)
  assert not started


class _Late:
  """Signals that come while a program runs."""

  signum = 15

  def requested(self, *, agree):
    return not agree


def test_a_signal_ends_the_wait_for_a_program(tmp_path):
  @jax.jit
  def slow(x):
    return jax.lax.fori_loop(0, 5000, lambda _, x: jnp.cos(x @ x), x)

  context = experiment.Context(tmp_path, jax.random.key(0), signals=_Late())
  with pytest.raises(experiment.Stopped) as stopped:
    context.cached("stage", lambda: {"x": slow(jnp.ones((200, 200)))})
  assert stopped.value.abandons and not list(tmp_path.rglob("*.npz"))
  assert context.cached("other", lambda: {"x": 1.0, "y": np.ones(2)})["x"] == 1.0


def test_cached_refuses_what_it_cannot_store(tmp_path):
  for value, where in (
    ({"a": [object()]}, r"result\['a'\]\[0\] is a object"),
    ({1: 2.0}, "keys that are not text"),
    ([jax.random.key(0)], r"result\[0\] is a"),
    (experiment.quantity([1.0, 2.0]), "result is a Quantity"),
    (np.array([None]), "result is a ndarray"),
  ):
    with pytest.raises(TypeError, match=where):
      context_at(tmp_path).cached("x", lambda value=value: value)
  assert not list(tmp_path.rglob("*.npz"))


def test_stage_names(tmp_path):
  context = context_at(tmp_path)
  context.cached("a/b", int)
  for clash in ("a/b", "a", "a/b/c"):
    with pytest.raises(ValueError, match="clashes with 'a/b'"):
      context.cached(clash, int)
  context.cached("a/bc", int)
  for wrong in ("", "../x", "/x", "a//b", "a/", ".x", "a/../b"):
    with pytest.raises(ValueError, match="words between slashes"):
      context.cached(wrong, int)


def test_fit_takes_a_finished_stage_from_the_workdir(tmp_path):
  config = tiny.Config(steps=6)
  init, update = tiny.build(config, None)

  def train(num_steps, batches):
    state = init(jax.random.key(1))
    return context_at(tmp_path).fit("s", state, update, batches, num_steps=num_steps, log_every=2)

  whole = train(6, tiny.Batches(0, config))
  again = train(6, tiny.Batches(0, dataclasses.replace(config, break_at=0)))  # Would fail.
  np.testing.assert_array_equal(whole.state.params, again.state.params)
  assert whole.history == again.history and [row["step"] for row in again.history] == [2, 4, 6]
  longer = train(8, tiny.Batches(0, config))
  assert longer.history[:3] == whole.history and longer.history[3]["step"] == 8
  with pytest.raises(ValueError, match="is at step 8 already, past num_steps=4"):
    train(4, tiny.Batches(0, config))


def test_stages_of_another_origin_are_refused(tmp_path):
  config = tiny.Config(steps=2)
  init, update = tiny.build(config, None)

  def stages(**made_by):
    context = experiment.Context(tmp_path, jax.random.key(0), made_by=made_by)
    batches = tiny.Batches(0, config)
    context.fit("s", init(jax.random.key(1)), update, batches, num_steps=2, log_every=2)
    return context.cached("c", int)

  stages(template="a")
  assert stages(template="a") == 0
  refused = r"checkpoints/s/2 differs: config/template is \"a\" in the checkpoint, \"b\" here"
  with pytest.raises(training.MismatchError, match=refused):
    stages(template="b")
  with pytest.raises(training.MismatchError, match=r"c\.npz differs: config/template is \"a\""):
    experiment.Context(tmp_path, jax.random.key(0), made_by={"template": "b"}).cached("c", int)


@pytest.mark.parametrize("content", [None, "", '{"step": 2}\n', "{}\n", "cut\n{}\n"])
def test_rows_that_are_gone_are_missed(tmp_path, content):
  config = tiny.Config(steps=2)
  init, update = tiny.build(config, None)

  def train():
    state, batches = init(jax.random.key(1)), tiny.Batches(0, config)
    return context_at(tmp_path).fit("s", state, update, batches, num_steps=2, log_every=2)

  train()
  path = tmp_path / "metrics.jsonl"
  path.unlink() if content is None else path.write_text(content)
  with pytest.raises(workdir.DamagedFileError, match=str(path)):
    train()


@pytest.mark.parametrize("batches", [[1.0], iter([1.0]), (x for x in [1.0]), np.ones((3, 2))])
def test_batches_that_would_begin_anew_after_a_kill_are_refused(tmp_path, batches):
  name = type(batches).__name__
  with pytest.raises(TypeError, match=f"'s' must have get_state and set_state, which {name} lacks"):
    context_at(tmp_path).fit("s", None, None, batches, num_steps=3)
  assert list(tmp_path.iterdir()) == []
