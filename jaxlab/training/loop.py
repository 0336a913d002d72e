"""The training loop: runs to a number of steps, may be killed at any moment, and resumes."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_at_least
from jaxlab.training.checkpoint import Checkpointer
from jaxlab.training.signals import StopSignals
from jaxlab.training.state import TrainState
from jaxlab.training.writers import Writer, row_writers, write_all

# Metrics that must be finite for training to continue.
_WATCHED = ("loss", "grad_norm")
# Calls that the host may queue ahead: their batches take memory, and the device needs few.
_CALLS_IN_FLIGHT = 32


class FitResult(NamedTuple):
  """What `fit` returns.

  Attributes:
    state: the state after `num_steps` updates.
    history: the rows logged by this call, each `{"step": updates done, name: float, ...}`.
  """

  state: TrainState
  history: list[dict[str, float]]


class NonFiniteLossError(FloatingPointError):
  """Training met a loss, gradient norm or parameter that is not finite.

  Attributes:
    step: `state.step` as the failing update saw it, which is also the number of good updates
      before it.
    metric: name of the metric, or "params".
    value: its value.
  """

  def __init__(self, step: int, metric: str, value: float):
    super().__init__(step, metric, value)
    self.step, self.metric, self.value = step, metric, value

  def __str__(self) -> str:
    return f"{self.metric} is {self.value} at step {self.step}"


class Interrupted(Exception):
  """A signal ended training early, after `step` updates; they are saved if there is a checkpointer.

  Attributes:
    step: number of updates done.
    signum: number of the signal (exit status by convention: 128 + signum), or None.
  """

  def __init__(self, step: int, signum: int | None = None):
    super().__init__(step, signum)
    self.step, self.signum = step, signum

  def __str__(self) -> str:
    name = signal.Signals(self.signum).name if self.signum else "a request"
    return f"stopped by {name} after step {self.step}"


def fit(
  state: TrainState,
  update: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
  batches: Iterable[Any],
  *,
  num_steps: int,
  steps_per_call: int = 1,
  log_every: int = 50,
  eval_every: int | None = None,
  evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
  save_every: int | None = None,
  checkpointer: Checkpointer | None = None,
  writers: Sequence[Writer] = (),
) -> FitResult:
  """Trains until `state.step` is `num_steps`.

  Metrics stay on the device until they are read (for a row, an evaluation or a checkpoint), and the
  host runs ahead in between. A row holds the mean of every metric over the steps since the last
  row, and evaluations under `eval/<name>`; the last step always writes a row. With several steps
  per call, what is due within a call happens at its end.

  `fit` saves but does not restore: see `resume`. A resumed run is bitwise equal to an uninterrupted
  one. So are its rows if `save_every` is a multiple of `log_every`; else the first row averages
  fewer steps.

  The first SIGTERM or SIGINT lets the current call finish, saves and raises `Interrupted`; a second
  one has its previous effect. Signals reach `fit` in the main thread only. Several processes stop
  together, at the first row after any of them got the signal.

  Args:
    state: where to start; its buffers are donated to `update` if that donates.
    update: `(state, batch) -> (state, metrics)`, each call adding `steps_per_call` to `state.step`.
    batches: yields one batch per call, with a leading axis `steps_per_call` if that is above 1. If
      its iterator has `get_state`, that is saved with every checkpoint. NumPy arrays must not be
      written to once they are yielded: on CPU the device may read them in place, later.
    num_steps: total number of updates, including those before `state`; a state already at
      `num_steps` is returned unchanged.
    steps_per_call: updates that one call of `update` makes; metrics then have this leading axis.
    log_every: steps between rows.
    eval_every: steps between evaluations; None evaluates at the end only.
    evaluate: `state -> {name: float}`.
    save_every: steps between checkpoints; None saves at the end only.
    checkpointer: where to save; None saves nothing. It is not closed.
    writers: get every row, on process 0; they are not closed. Those of clu and Weights & Biases
      will do.

  Returns:
    The final state and the rows logged.

  Raises:
    ValueError: for a non-positive count, a number of steps left that `steps_per_call` does not
      divide, `eval_every` without `evaluate`, `save_every` without `checkpointer`, metrics of the
      wrong shape, or batches that end early.
    TypeError: if a writer cannot take a row.
    NonFiniteLossError: at the first update whose loss or gradient norm is not finite; every
      checkpoint is from before it.
    Interrupted: on SIGTERM or SIGINT.
  """
  step = int(state.step)
  _check_arguments(
    step, num_steps, steps_per_call, log_every, eval_every, evaluate, save_every, checkpointer
  )
  row_writers(writers)  # Wrong ones should not be found after the first steps.
  history: list[dict[str, float]] = []
  if step >= num_steps:
    return FitResult(state, history)

  def due(every: int | None) -> bool:
    return step == num_steps or (every is not None and step % every < steps_per_call)

  iterator = iter(batches)
  window = _Window(steps_per_call)
  with StopSignals() as stop, _notes_step(lambda: step):
    while step < num_steps:
      try:
        batch = next(iterator)
      except StopIteration:
        raise ValueError(f"batches ended at step {step}, before num_steps={num_steps}") from None
      state, metrics = update(state, batch)
      step += steps_per_call
      window.add(metrics)

      log = due(log_every)
      stopping = stop.requested(agree=log)
      evaluating = evaluate is not None and due(eval_every)
      saving = checkpointer is not None and (due(save_every) or stopping)
      if log or evaluating or saving:
        window.fetch(step)
      row = window.means() if log else {}
      if evaluating:
        row |= {f"eval/{name}": float(value) for name, value in evaluate(state).items()}
      if row:
        history.append({"step": step, **row})
        write_all(writers, step, row)
      if saving:
        _save(checkpointer, step, state, iterator)
      if stopping:
        break
    if checkpointer is not None:
      checkpointer.wait()
  if stop.requested(agree=True):
    raise Interrupted(step, stop.signum)
  return FitResult(state, history)


def resume(
  checkpointer: Checkpointer,
  state: TrainState,
  batches: Any = None,
  *,
  writers: Sequence[Writer] = (),
) -> TrainState:
  """Restores state, data iterator and writers from the newest checkpoint.

  Without a checkpoint it returns the state unchanged, so a program can always call it at its start.

  Args:
    checkpointer: where checkpoints are.
    state: an initial state, which gives structure, shapes and shardings.
    batches: the data iterator that `fit` will get; its `set_state` is called with what was saved.
      None leaves the data alone.
    writers: those that have `truncate` drop their rows past the state's step.

  Returns:
    The state to continue from.

  Raises:
    ValueError: if only one of iterator and checkpoint has a data state, and what `restore` raises.
  """
  if checkpointer.latest_step() is not None:
    state, data_state = checkpointer.restore(state)
    if batches is not None:
      if hasattr(batches, "set_state") != (data_state is not None):
        raise ValueError(
          f"cannot resume the data at step {int(state.step)}: the checkpoint's data state is"
          f" {data_state!r}, and {type(batches).__name__} has"
          f" {'a' if hasattr(batches, 'set_state') else 'no'} set_state"
        )
      if data_state is not None:
        batches.set_state(data_state)
  if jax.process_index() == 0:
    for writer in writers:
      if hasattr(writer, "truncate"):
        writer.truncate(int(state.step))
  return state


def _check_arguments(
  step, num_steps, steps_per_call, log_every, eval_every, evaluate, save_every, checkpointer
):
  check_at_least(0, num_steps=num_steps)
  check_at_least(1, steps_per_call=steps_per_call, log_every=log_every)
  check_at_least(1, eval_every=eval_every, save_every=save_every)
  if step < num_steps and (num_steps - step) % steps_per_call:
    raise ValueError(
      f"the steps left, num_steps={num_steps} - state.step={step}, are not a multiple of"
      f" steps_per_call={steps_per_call}"
    )
  if eval_every is not None and evaluate is None:
    raise ValueError(f"eval_every={eval_every} needs evaluate")
  if save_every is not None and checkpointer is None:
    raise ValueError(f"save_every={save_every} needs a checkpointer")


@contextlib.contextmanager
def _notes_step(step: Callable[[], int]) -> Iterator[None]:
  """Says at which step the runtime failed: out of memory, or another process is gone."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    if runtime_failed(error):
      error.add_note(f"at step {step()}")
    raise


def runtime_failed(error: BaseException) -> bool:
  """Whether XLA's runtime failed: out of memory, or a collective whose other process is gone.

  Args:
    error: what was raised. JAX gives the failure of a collective as a ValueError, which begins with
      the runtime's status, if the results of the collective go into another program at once.
  """
  status = ("ABORTED: ", "CANCELLED: ", "INTERNAL: ", "UNAVAILABLE: ", "UNKNOWN: ")
  return isinstance(error, jax.errors.JaxRuntimeError) or (
    isinstance(error, ValueError) and str(error).startswith(status)
  )


def _save(checkpointer: Checkpointer, step: int, state: TrainState, iterator: Any) -> None:
  # Finite losses do not imply finite parameters: the last optimizer step may have overflowed.
  if not _all_finite(state.params):
    raise NonFiniteLossError(step - 1, "params", math.nan)
  data_state = iterator.get_state() if hasattr(iterator, "get_state") else None
  checkpointer.save(step, state, data_state)


@jax.jit
def _all_finite(tree: chex.ArrayTree) -> jax.Array:
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


class _Window:
  """The metrics since the last row, on the device until they are fetched."""

  def __init__(self, steps_per_call: int):
    self._steps_per_call = steps_per_call
    self._shape = () if steps_per_call == 1 else (steps_per_call,)
    self._device: list[Mapping[str, jax.Array]] = []
    self._host: list[dict[str, np.ndarray]] = []

  def add(self, metrics: Mapping[str, jax.Array]) -> None:
    for name, value in metrics.items():
      if np.shape(value) != self._shape:
        raise ValueError(
          f"metric {name!r} has shape {np.shape(value)}; steps_per_call={self._steps_per_call}"
          f" gives {self._shape}"
        )
    self._device.append(metrics)
    if len(self._device) > _CALLS_IN_FLIGHT:
      jax.block_until_ready(self._device[-_CALLS_IN_FLIGHT - 1])

  def fetch(self, step: int) -> None:
    """Moves new metrics to the host and checks them; `step` is the number of updates done."""
    if not self._device:
      return
    fetched = jax.device_get(self._device)
    first = step - self._steps_per_call * len(fetched)
    problems = []
    for name in _WATCHED:
      if name not in fetched[0]:
        continue
      values = np.concatenate([np.ravel(metrics[name]) for metrics in fetched])
      bad = np.flatnonzero(~np.isfinite(values))
      if bad.size:
        problems.append((int(bad[0]), name, float(values[bad[0]])))
    if problems:
      offset, name, value = min(problems, key=lambda problem: problem[0])
      raise NonFiniteLossError(first + offset, name, value)
    self._device = []
    self._host.extend(fetched)

  def means(self) -> dict[str, float]:
    rows, self._host = self._host, []
    return {
      name: float(np.mean([np.mean(row[name], dtype=np.float64) for row in rows]))
      for name in rows[0]
    }
