"""The loop: rows, evaluation, checkpoints, and all kinds of interruption."""

import functools
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.training import loop
from jaxlab.training.checkpoint import Checkpointer
from jaxlab.training.loop import Interrupted, NonFiniteLossError, fit, resume
from jaxlab.training.state import TrainState, init_state
from jaxlab.training.update import LossOutput, build_update
from jaxlab.training.writers import JsonlWriter, read_jsonl

_STEPS = 24


class Batches:
  """An endless, resumable stream of random batches; `hook(index)` runs before each."""

  def __init__(self, hook=lambda index: None):
    self.index = 0
    self._hook = hook

  def __iter__(self):
    return self

  def __next__(self):
    self._hook(self.index)
    rng = np.random.default_rng(self.index)
    self.index += 1
    x = rng.normal(size=(8, 5)).astype(np.float32)
    return {"x": x, "y": x.sum(-1)}

  def get_state(self):
    return {"index": self.index}

  def set_state(self, state):
    self.index = state["index"]


class _Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(16)(x))
    x = nn.Dropout(0.3, deterministic=False)(x)
    return nn.Dense(1)(x)[..., 0]


@functools.cache
def _build():
  net, optimizer = _Net(), optax.adam(1e-2)

  def loss_fn(params, model_state, batch, key):
    prediction = net.apply(params, batch["x"], rngs={"dropout": key})
    return LossOutput((prediction - batch["y"]) ** 2)

  keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  params = jax.jit(net.init)(keys, jnp.zeros((1, 5)))
  return params, optimizer, build_update(loss_fn, optimizer)


def make_run():
  """A small network with dropout, whose numbers depend on the key of every step."""
  params, optimizer, update = _build()
  return init_state(jax.random.key(2), params, optimizer), update


def run_to_the_end(directory, hook=lambda index: None):
  """A program that resumes if it was killed before."""
  state, update = make_run()
  batches = Batches(hook)
  with Checkpointer(directory) as checkpointer:
    state = resume(checkpointer, state, batches)
    result = fit(state, update, batches, num_steps=_STEPS, save_every=1, checkpointer=checkpointer)
  return result.state, next(batches)


@pytest.fixture(scope="module")
def unbroken():
  state, update = make_run()
  batches = Batches()
  state = fit(state, update, batches, num_steps=_STEPS).state
  return state, next(batches)


def _assert_same_run(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def counting_state(step=0):
  return TrainState(jnp.int32(step), {"w": jnp.zeros(())}, (), None, jax.random.key(0))


def counting_update(state, batch):
  """Adds the batch to the parameter; the loss is the batch, for one step or several."""
  batch = jnp.asarray(batch, jnp.float32)
  params = {"w": state.params["w"] + jnp.sum(batch)}
  state = state._replace(step=state.step + batch.size, params=params)
  return state, {"loss": batch, "grad_norm": 2 * batch}


# Rows, evaluation, checkpoints.


class _Recorder:
  def __init__(self):
    self.rows = []

  def write(self, step, metrics):
    self.rows.append({"step": step, **metrics})

  def close(self):
    raise AssertionError("the caller closes writers")


def test_rows_are_means_over_their_window():
  recorder = _Recorder()
  seen = []

  def evaluate(state):
    seen.append(int(state.step))
    return {"total": state.params["w"]}

  result = fit(
    counting_state(),
    counting_update,
    iter(range(1, 11)),
    num_steps=10,
    log_every=4,
    eval_every=3,
    evaluate=evaluate,
    writers=[recorder],
  )
  assert result.history == recorder.rows
  assert result.history == [
    {"step": 3, "eval/total": 6.0},
    {"step": 4, "loss": 2.5, "grad_norm": 5.0},
    {"step": 6, "eval/total": 21.0},
    {"step": 8, "loss": 6.5, "grad_norm": 13.0},
    {"step": 9, "eval/total": 45.0},
    {"step": 10, "loss": 9.5, "grad_norm": 19.0, "eval/total": 55.0},
  ]
  assert seen == [3, 6, 9, 10]
  assert int(result.state.step) == 10 and float(result.state.params["w"]) == 55.0


def test_num_steps_is_a_total_and_a_finished_run_does_nothing():
  result = fit(counting_state(6), counting_update, iter(range(7, 99)), num_steps=8, log_every=50)
  assert result.history == [{"step": 8, "loss": 7.5, "grad_norm": 15.0}]
  for step in (8, 9):
    state = counting_state(step)
    done = fit(state, None, None, num_steps=8, evaluate=lambda state: 1 / 0)
    assert done.state is state and done.history == []


def test_several_steps_per_call(tmp_path):
  batches = np.arange(12.0).reshape(4, 3)
  with Checkpointer(tmp_path) as checkpointer:
    result = fit(
      counting_state(),
      counting_update,
      batches,
      num_steps=12,
      steps_per_call=3,
      log_every=4,
      save_every=5,
      checkpointer=checkpointer,
    )
  # Steps 4, 8 and 12 are reached in the calls that end at 6, 9 and 12.
  assert [(row["step"], row["loss"]) for row in result.history] == [(6, 2.5), (9, 7.0), (12, 10.0)]
  assert sorted(int(path.name) for path in tmp_path.iterdir()) == [6, 12]


def test_metrics_may_lack_the_gradient_norm():
  def update(state, batch):
    state, metrics = counting_update(state, batch)
    return state, {"loss": metrics["loss"]}

  assert fit(counting_state(), update, [1, 2], num_steps=2).history == [{"step": 2, "loss": 1.5}]


def test_every_checkpoint_holds_the_data_state_of_its_step(tmp_path):
  with Checkpointer(tmp_path, max_to_keep=None) as checkpointer:
    state, update = make_run()
    fit(state, update, Batches(), num_steps=7, save_every=3, checkpointer=checkpointer)
    assert checkpointer.latest_step() == 7
    for step in (3, 6, 7):
      restored, data_state = checkpointer.restore(make_run()[0], step=step)
      assert (int(restored.step), data_state) == (step, {"index": step})


def test_metrics_stay_on_the_device_between_rows(monkeypatch):
  fetches = []
  real = jax.device_get
  monkeypatch.setattr(jax, "device_get", lambda x: fetches.append(len(x)) or real(x))
  fit(counting_state(), counting_update, iter(range(100)), num_steps=100, log_every=40)
  assert fetches == [40, 40, 20]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"log_every": 0}, "log_every must be at least 1, got 0"),
    ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
    ({"steps_per_call": 3}, r"num_steps=10 - state.step=2, are not a multiple of steps_per_call=3"),
    ({"eval_every": 2}, "eval_every=2 needs evaluate"),
    ({"save_every": 2}, "save_every=2 needs a checkpointer"),
    ({"steps_per_call": 2}, r"metric 'loss' has shape \(\); steps_per_call=2 gives \(2,\)"),
    ({"num_steps": 20}, r"batches ended at step 12, before num_steps=20"),
  ],
)
def test_errors_name_what_is_wrong(changes, message):
  with pytest.raises(ValueError, match=message):
    fit(counting_state(2), counting_update, iter(range(10)), **({"num_steps": 10} | changes))


# Non-finite numbers.


@pytest.mark.parametrize("steps_per_call", [1, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_loss_raises_with_its_exact_step(tmp_path, steps_per_call, value):
  losses = np.ones(100, np.float32)
  losses[37] = value
  batches = losses if steps_per_call == 1 else losses.reshape(25, 4)
  with Checkpointer(tmp_path) as checkpointer:
    with pytest.raises(NonFiniteLossError, match=r"loss is (nan|inf) at step 37") as error:
      fit(
        counting_state(),
        counting_update,
        batches,
        num_steps=100,
        steps_per_call=steps_per_call,
        log_every=50,
        save_every=36,
        checkpointer=checkpointer,
      )
    assert (error.value.step, error.value.metric) == (37, "loss")
    np.testing.assert_equal(error.value.value, float(value))
    assert checkpointer.latest_step() == 36
    assert float(checkpointer.restore(counting_state()).state.params["w"]) == 36.0


def test_non_finite_gradient_norm_raises(tmp_path):
  def update(state, batch):
    state, metrics = counting_update(state, batch)
    return state, metrics | {"grad_norm": jnp.where(batch == 3, -jnp.inf, 1.0)}

  with pytest.raises(NonFiniteLossError) as error:
    fit(counting_state(), update, range(10), num_steps=10)
  assert (error.value.step, error.value.metric, error.value.value) == (3, "grad_norm", -np.inf)


def test_parameters_that_overflowed_are_never_saved(tmp_path):
  def update(state, batch):
    state, metrics = counting_update(state, 1.0)
    return state._replace(params={"w": jnp.where(batch == 7, jnp.inf, 1.0)}), metrics

  with Checkpointer(tmp_path) as checkpointer:
    with pytest.raises(NonFiniteLossError, match="params is nan at step 7"):
      fit(counting_state(), update, range(8), num_steps=8, save_every=4, checkpointer=checkpointer)
    assert checkpointer.latest_step() == 4


# Signals and kills.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_raises_and_the_run_goes_on_bitwise(tmp_path, unbroken, signum):
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(Interrupted, match=f"{signum.name} after step 14") as error:
    run_to_the_end(tmp_path, lambda index: index == 13 and os.kill(os.getpid(), signum))
  assert (error.value.step, error.value.signum) == (14, signum)
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
  with Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.latest_step() == 14
  _assert_same_run(run_to_the_end(tmp_path), unbroken)


def test_signal_between_checkpoints_saves_the_current_step(tmp_path):
  state, update = make_run()
  batches = Batches(lambda index: index == 4 and os.kill(os.getpid(), signal.SIGTERM))
  with Checkpointer(tmp_path) as checkpointer:
    with pytest.raises(Interrupted):
      fit(state, update, batches, num_steps=9, checkpointer=checkpointer)
    restored, data_state = checkpointer.restore(make_run()[0])
  assert (int(restored.step), data_state) == (5, {"index": 5})


def test_second_signal_has_its_previous_effect():
  def batches():
    yield 1.0
    # Two signals sent to the process may arrive as one.
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    yield 2.0

  # A shell starts what it puts into the background with this signal ignored.
  inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      fit(counting_state(), counting_update, batches(), num_steps=2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, inherited)


def test_runs_outside_the_main_thread():
  results = []
  thread = threading.Thread(
    target=lambda: results.append(
      fit(counting_state(), counting_update, iter(range(3)), num_steps=3)
    )
  )
  thread.start()
  thread.join()
  assert float(results[0].state.params["w"]) == 3.0


@pytest.mark.processes
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_a_random_moment_the_run_goes_on_bitwise(tmp_path, unbroken, signum):
  here = pathlib.Path(__file__).parent
  program = f"""
    import sys, time
    sys.path[:0] = [{str(here.parent)!r}, {str(here)!r}]
    import conftest
    from test_loop import run_to_the_end
    def hook(index):
      print(index, flush=True)
      time.sleep(0.02)
    run_to_the_end({str(tmp_path)!r}, hook)
  """
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(program)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=here.parents[1],
  )
  guard = threading.Timer(600, process.kill)
  guard.start()
  for line in process.stdout:
    if int(line) == 7:
      break
  time.sleep(random.uniform(0.0, 0.3))
  process.send_signal(signum)
  errors = process.communicate()[1]
  guard.cancel()
  assert process.returncode == (-signum if signum == signal.SIGKILL else 1), errors
  assert signum == signal.SIGKILL or "Interrupted: stopped by SIGTERM after step" in errors
  with Checkpointer(tmp_path) as checkpointer:
    step = checkpointer.latest_step()
    assert step is not None and 5 <= step < _STEPS, errors
  _assert_same_run(run_to_the_end(tmp_path), unbroken)


# Resuming.


def test_resume_without_a_checkpoint_starts_afresh(tmp_path):
  state = counting_state()
  with Checkpointer(tmp_path) as checkpointer:
    assert resume(checkpointer, state, Batches()) is state


def test_resume_needs_the_data_state_that_was_saved(tmp_path):
  with Checkpointer(tmp_path / "a") as with_data, Checkpointer(tmp_path / "b") as without_data:
    with_data.save(3, counting_state(3), {"index": 3})
    without_data.save(3, counting_state(3))
    with pytest.raises(ValueError, match=r"at step 3: .*'index': 3.*range has no set_state"):
      resume(with_data, counting_state(), range(3))
    with pytest.raises(ValueError, match=r"data state is None, and Batches has a set_state"):
      resume(without_data, counting_state(), Batches())
    assert int(resume(with_data, counting_state()).step) == 3
    assert int(resume(without_data, counting_state(), range(3)).step) == 3


def test_grain_pipeline_resumes_at_the_next_batch(tmp_path):
  grain = pytest.importorskip("grain")

  def batches():
    source = grain.MapDataset.range(24).seed(3).shuffle().repeat().batch(4)
    return iter(source.to_iter_dataset())

  def update(state, batch):
    return counting_update(state, np.float32(batch.sum()))

  unbroken = batches()
  expected = fit(counting_state(), update, unbroken, num_steps=10, log_every=1)
  with Checkpointer(tmp_path) as checkpointer:
    first = fit(counting_state(), update, batches(), num_steps=7, checkpointer=checkpointer)
    assert int(first.state.step) == 7
    again = batches()
    state = resume(checkpointer, counting_state(), again)
    rest = fit(state, update, again, num_steps=10, log_every=1)
  assert rest.history == expected.history[7:]
  np.testing.assert_array_equal(next(again), next(unbroken))


def test_resumed_run_writes_the_rows_of_an_uninterrupted_one(tmp_path):
  def run(name, stop_at=None):
    def hook(index):
      if index == stop_at:
        raise RuntimeError("power cut")

    state, update = make_run()
    batches, writer = Batches(hook), JsonlWriter(tmp_path / name / "metrics.jsonl")
    with Checkpointer(tmp_path / name / "checkpoints") as checkpointer:
      state = resume(checkpointer, state, batches, writers=[writer])
      fit(
        state,
        update,
        batches,
        num_steps=12,
        log_every=2,
        save_every=4,
        checkpointer=checkpointer,
        writers=[writer],
      )

  run("unbroken")
  with pytest.raises(RuntimeError, match="power cut"):
    run("broken", stop_at=7)
  with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "lo')
  assert [row["step"] for row in read_jsonl(tmp_path / "broken" / "metrics.jsonl")] == [2, 4, 6]
  run("broken")
  rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("unbroken", "broken")]
  assert [row["step"] for row in rows[0]] == [2, 4, 6, 8, 10, 12]
  assert rows[0] == rows[1]


def test_the_host_runs_ahead_by_a_bounded_number_of_calls(monkeypatch):
  waits = []
  real = jax.block_until_ready
  monkeypatch.setattr(jax, "block_until_ready", lambda x: waits.append(float(x["loss"])) or real(x))
  count = loop._CALLS_IN_FLIGHT + 5
  fit(counting_state(), counting_update, iter(range(count)), num_steps=count, log_every=count)
  assert waits == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
  "error, failed",
  [
    (jax.errors.JaxRuntimeError("INTERNAL: x"), True),
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
    (ValueError("rate is UNKNOWN: x"), False),
    (RuntimeError("UNKNOWN: x"), False),
  ],
)
def test_a_failed_runtime_is_told_from_a_fault_of_ours(error, failed):
  assert loop.runtime_failed(error) is failed
