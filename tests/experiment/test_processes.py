"""Two processes of one run: they agree before they start, and end together."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxlab.experiment import UsageError, processes, workdir
from tests.experiment import tiny_experiment as tiny

ROOT = pathlib.Path(__file__).parents[2]


def exchange(monkeypatch, *texts):
  monkeypatch.setattr(processes, "texts_of_processes", lambda text: list(texts))


def test_processes_that_were_asked_for_other_things_refuse(monkeypatch):
  processes.check_agreement({"config": {"rate": 0.1}})
  exchange(monkeypatch, '{"config": {"rate": 0.1}}', '{"config": {"rate": 0.2}}')
  with pytest.raises(UsageError, match=r"process 1 was .* config.rate = 0.2, process 0 with 0.1"):
    processes.check_agreement({})


def test_what_process_0_refuses_all_refuse(monkeypatch):
  def refuse():
    raise UsageError("in use")

  assert processes.on_process_0(lambda: True) is True
  with pytest.raises(UsageError, match="^in use"):
    processes.on_process_0(refuse)
  monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
  exchange(monkeypatch, '{"value": true, "refused": null}', "{}")
  assert processes.on_process_0(lambda: True) is True
  exchange(monkeypatch, '{"value": null, "refused": "in use"}', "{}")
  with pytest.raises(UsageError, match="^in use"):
    processes.on_process_0(refuse)
  monkeypatch.setattr(processes.jax, "process_index", lambda: 1)
  with pytest.raises(UsageError, match="^process 0 refused: in use"):
    processes.on_process_0(pytest.fail)


def start(directory, *arguments):
  """Both processes of a run; `arguments` are those of each."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "4", "PYTHONPATH": str(ROOT)}
  environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  command = [sys.executable, tiny.__file__, "--preset=smoke", "--multihost", "--host_devices=1"]
  return [
    subprocess.Popen(
      [*command, f"--workdir={directory}", *own],
      env=environment | {"JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, own in enumerate(arguments)
  ]


def ends(running, seconds=180):
  try:
    return [(p.communicate(timeout=seconds)[1].splitlines(), p.returncode) for p in running]
  finally:
    for process in running:
      process.kill()


@pytest.mark.processes
def test_different_commands_end_both(tmp_path):
  for errors, status in ends(start(tmp_path / "run", ["--rate=0.1"], ["--rate=0.2"])):
    assert status == 2
    assert [line for line in errors if "config.rate = 0.2, process 0 with 0.1" in line]
  assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_a_workdir_in_use_ends_both(tmp_path):
  with workdir.lock(tmp_path):
    for errors, status in ends(start(tmp_path, [], [])):
      assert status == 2
      assert [line for line in errors if "in use by another run" in line]


@pytest.mark.processes
def test_a_process_that_dies_ends_the_other_in_a_line(tmp_path):
  arguments = ["--steps=10000", "--delay=0.01"]
  running = start(tmp_path, arguments, arguments)
  end = time.monotonic() + 90
  while not (tmp_path / "metrics.jsonl").exists():
    assert time.monotonic() < end and running[0].poll() is None, ends(running)
    time.sleep(0.05)
  running[1].send_signal(signal.SIGKILL)
  (errors, status), (_, killed) = ends(running)
  assert (status, killed) == (1, -signal.SIGKILL), errors
  lines = [line for line in errors if "process 0 cannot reach another one at step" in line]
  assert len(lines) == 1 and errors[-1].endswith("--delay=0.01"), errors
  assert len(errors) < 8, errors
