"""Metric writers: the console, the file and the event log."""

import io
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxlab.training import writers


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_write_all_hands_plain_floats_to_every_writer():
  rows = []

  class Recorder:
    def write(self, step, metrics):
      rows.append((step, metrics))

  writers.write_all([Recorder(), Recorder()], 3, {"loss": jnp.float32(0.5), "accuracy": 1})
  assert rows == [(3, {"loss": 0.5, "accuracy": 1.0})] * 2
  assert all(type(value) is float for _, row in rows for value in row.values())


def test_only_process_zero_writes(monkeypatch, tmp_path):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  writers.write_all([writers.JsonlWriter(tmp_path / "m.jsonl")], 1, {"loss": 1.0})
  assert not (tmp_path / "m.jsonl").exists()


def test_console_prints_plain_lines_when_stdout_is_no_terminal(capsys):
  console = writers.ConsoleWriter(100)
  console.write(50, {"loss": 0.25, "eval/accuracy": 0.5})
  console.write(100, {"loss": 0.125})
  console.close()
  first, second = capsys.readouterr().out.splitlines()
  assert first == "step 50/100  loss 0.25  eval/accuracy 0.5"
  assert second.startswith("step 100/100  loss 0.125  ")
  assert second.endswith("0:00:00 left") and "steps/s" in second


def test_console_rate_and_time_left(capsys, monkeypatch):
  clock = iter([100.0, 110.0])
  monkeypatch.setattr(writers.time, "perf_counter", lambda: next(clock))
  console = writers.ConsoleWriter(200)
  console.write(60, {})
  console.write(80, {})
  assert capsys.readouterr().out.splitlines()[1] == "step 80/200  2.0 steps/s  0:01:00 left"


def test_console_shows_a_bar_on_a_terminal(monkeypatch):
  terminal = _Terminal()
  monkeypatch.setattr(sys, "stdout", terminal)
  monkeypatch.setenv("COLUMNS", "120")
  monkeypatch.setenv("TERM", "xterm")
  console = writers.ConsoleWriter(100)
  console.write(50, {"loss": 0.25, "grad_norm": 2.0})
  console.write(100, {"loss": 0.125, "eval/accuracy": 0.75})
  console.close()
  shown = terminal.getvalue()
  for text in ("step 50/100", "step 100/100", "loss 0.25", "eval/accuracy 0.75", "left"):
    assert text in shown, text
  assert "grad_norm" not in shown


def test_jsonl_rows_can_be_read_while_the_writer_is_open(tmp_path):
  path = tmp_path / "new" / "metrics.jsonl"
  writer = writers.JsonlWriter(path)
  writer.write(1, {"loss": 0.1})
  writer.write(2, {"loss": float("inf")})
  assert writers.read_jsonl(path) == [
    {"step": 1, "loss": 0.1},
    {"step": 2, "loss": float("inf")},
  ]
  writer.close()
  writers.JsonlWriter(path).write(3, {"loss": 1.0})
  assert [row["step"] for row in writers.read_jsonl(path)] == [1, 2, 3]


def test_jsonl_truncate_drops_rows_past_the_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writer = writers.JsonlWriter(path)
  for step in (10, 20, 30):
    writer.write(step, {"loss": step / 10})
  writer.truncate(20)
  writer.write(30, {"loss": 7.0})
  assert [json.loads(line) for line in path.read_text().splitlines()] == [
    {"step": 10, "loss": 1.0},
    {"step": 20, "loss": 2.0},
    {"step": 30, "loss": 7.0},
  ]
  writers.JsonlWriter(tmp_path / "none.jsonl").truncate(5)
  assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b"{", b'{"step": 2, "name": "\xc3'])
def test_jsonl_drops_a_half_written_last_line(tmp_path, tail, truncate):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + tail)
  writer = writers.JsonlWriter(path)
  if truncate:
    writer.truncate(1)
  writer.write(2, {"loss": 0.25})
  assert writers.read_jsonl(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_jsonl_keeps_a_whole_last_row_without_newline(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}')
  writers.JsonlWriter(path).write(2, {})
  assert writers.read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_jsonl_names_the_line_that_is_damaged(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
    writers.read_jsonl(path)


def test_tensorboard_writes_scalars_and_hides_what_a_resumed_run_repeats(tmp_path):
  pytest.importorskip("tensorboardX")
  from tensorboardX.proto import event_pb2

  writer = writers.TensorBoardWriter(tmp_path)
  writer.truncate(20)
  writer.write(30, {"loss": 0.5, "eval/accuracy": 0.75})
  writer.close()
  data = next(tmp_path.glob("*tfevents*")).read_bytes()
  events, start = [], 0
  while start < len(data):
    size = int.from_bytes(data[start : start + 8], "little")
    events.append(event_pb2.Event.FromString(data[start + 12 : start + 12 + size]))
    start += size + 16
  values = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
  assert values == {"loss": (30, 0.5), "eval/accuracy": (30, 0.75)}
  starts = [e.step for e in events if e.session_log.status == event_pb2.SessionLog.START]
  assert starts == [21]


def test_tensorboard_missing_names_the_extra(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(ImportError, match=r"jaxlab\[tensorboard\]"):
    writers.TensorBoardWriter(tmp_path)


def test_writers_of_clu_and_of_weights_and_biases():
  rows = []

  class Clu:
    def write_scalars(self, step, scalars):
      rows.append(("clu", step, scalars))

  class Run:
    def log(self, data, step=None):
      rows.append(("wandb", step, data))

  writers.write_all([Clu(), Run()], 3, {"loss": 0.5})
  assert rows == [("clu", 3, {"loss": 0.5}), ("wandb", 3, {"loss": 0.5})]


def test_what_is_no_writer_is_named_at_the_start():
  with pytest.raises(TypeError, match=r"writers\[1\] must have write.*, got dict"):
    writers.row_writers([writers.ConsoleWriter(1), {}])
