import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxlab.commands import examples, finetune, program
from jaxlab.models import load_adapter, load_pretrained
from jaxlab.weights.low_rank import merge_low_rank

USER, BOT = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}
SUPERVISED = [{"prompt": f"{i}+{i}=", "response": str(2 * i)} for i in range(5)]
PAIRS = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": "?"} for i in range(5)]
CHATS = [{"messages": [USER, BOT]}] * 5


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def execute(*arguments):
  """Exit status, what was printed, and what was said of errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = program.execute(finetune, ["finetune", *map(str, arguments)])
  return status, out.getvalue(), err.getvalue()


def train(directory, checkpoint, rows, *arguments, steps=2, devices=1, name="out"):
  data = written(directory / "data.jsonl", rows)
  return execute(
    f"--checkpoint={checkpoint}", f"--data={data}", f"--output={directory / name}",
    f"--steps={steps}", "--batch_size=2", "--log_every=1", "--eval_share=0.2",
    "--max_length=16", f"--data_parallel={devices}", *arguments,
  )  # fmt: skip


def rows_of(directory, name="out"):
  lines = (directory / f"{name}.run" / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def weights(directory):
  return safetensors.numpy.load_file(directory / "model.safetensors")


@pytest.mark.parametrize(
  "objective, rows, eval_share",
  [("dpo", PAIRS, 0.2), ("ipo", PAIRS, 0.0), ("kto", PAIRS, 0.2), ("simpo", PAIRS, 0.0),
   ("orpo", PAIRS, 0.0), ("pass_at_n", SUPERVISED, 0.0), ("sft", CHATS, 0.0),
   ("rpo", PAIRS, 0.0), ("masked_thought", SUPERVISED, 0.2)],
)  # fmt: skip
def test_every_objective_trains_and_saves(tmp_path, checkpoint, objective, rows, eval_share):
  options = (f"--objective={objective}", f"--eval_share={eval_share}")
  status, out, err = train(tmp_path, checkpoint, rows, *options)
  assert (status, err) == (0, "")
  assert f"saved {tmp_path / 'out'}" in out and "held out" in out
  first, last = rows_of(tmp_path)
  assert np.isfinite(first["loss"])
  if eval_share:
    assert np.isfinite(last["eval/loss"])
  loaded, start = load_pretrained(tmp_path / "out"), load_pretrained(checkpoint)
  assert loaded.config == start.config
  changed = [
    not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (loaded.params, start.params)))
  ]
  assert sum(changed) == 2  # The kernels of q and v.
  if objective in ("dpo", "ipo", "kto"):
    # Before the first update the policy is the reference.
    start_loss = {"dpo": np.log(2), "ipo": 25.0, "kto": 0.5}[objective]
    np.testing.assert_allclose(first["loss"], start_loss, rtol=1e-4)
  if rows is PAIRS:
    assert "reward_margin" in out and 0 <= last["reward_accuracy"] <= 1
  rate = json.loads((tmp_path / "out.run" / "config.json").read_text())["learning_rate"]
  assert rate == (1e-4 if rows is not PAIRS else 1e-5)
  adapter = load_adapter(tmp_path / "out" / "adapter", loaded.config)
  merged = merge_low_rank(start.params, adapter.adapters, adapter.config)
  jax.tree.map(np.testing.assert_array_equal, merged, loaded.params)
  assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
    checkpoint / "tokenizer.json"
  ).read_bytes()


FULL = ("--lora_rank=0", "--learning_rate=0.05", "--remat", "--chunk_size=4", "--save_every=2")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, checkpoint):
  directory = tmp_path_factory.mktemp("unbroken")
  status, out, err = train(directory, checkpoint, SUPERVISED, *FULL, steps=12)
  assert (status, err) == (0, "")
  return directory


def test_the_loss_falls(unbroken):
  rows = rows_of(unbroken)
  assert [row["step"] for row in rows] == list(range(1, 13))
  assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
  assert not (unbroken / "out" / "adapter").exists()


class Stop(Exception):
  pass


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_run_that_was_stopped_goes_on_to_the_same_parameters(
  tmp_path, checkpoint, unbroken, monkeypatch, by_signal
):
  serve = examples.Batches.__next__

  def stopping(batches):
    if batches.get_state()["step"] == 5:
      if not by_signal:
        raise Stop
      os.kill(os.getpid(), signal.SIGTERM)
    return serve(batches)

  with monkeypatch.context() as patched:
    patched.setattr(examples.Batches, "__next__", stopping)
    with contextlib.nullcontext() if by_signal else pytest.raises(Stop):
      status, _, err = train(tmp_path, checkpoint, SUPERVISED, *FULL, steps=12)
      assert status == 128 + signal.SIGTERM
      assert err == "stopped by SIGTERM after step 6; the same command goes on.\n"
  assert not (tmp_path / "out").exists()
  status, out, _ = train(tmp_path, checkpoint, SUPERVISED, *FULL, steps=12)
  assert status == 0 and f"from step {6 if by_signal else 4} on" in out
  actual, expected = weights(tmp_path / "out"), weights(unbroken / "out")
  assert actual.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(actual[name], expected[name])
  losses = [[row["loss"] for row in rows_of(d)] for d in (tmp_path, unbroken)]
  assert losses[0] == losses[1]


def test_sharding_changes_no_number(tmp_path, checkpoint):
  options = ("--objective=kto", "--lora_rank=2", "--lora_targets=attention/q,down_proj")
  actual = {}
  for data, model in ((1, 1), (1, 2), (2, 2)):
    name = f"{data}_{model}"
    status, _, err = train(
      tmp_path, checkpoint, PAIRS, *options, f"--model_parallel={model}", devices=data, name=name
    )
    assert (status, err) == (0, "")
    actual[name] = weights(tmp_path / name)
  for name, expected in actual["1_1"].items():
    np.testing.assert_allclose(actual["1_2"][name], expected, atol=1e-5)
    np.testing.assert_allclose(actual["2_2"][name], expected, atol=1e-5)


def refused(directory, *arguments, checkpoint, rows=SUPERVISED):
  """The error of a command that cannot be obeyed, which leaves nothing behind."""
  before = sorted(directory.iterdir())
  data = written(directory / "refused.jsonl", rows)
  status, _, err = execute(
    f"--checkpoint={checkpoint}", f"--data={data}", f"--output={directory / 'new'}",
    "--data_parallel=1", "--batch_size=2", *arguments,
  )  # fmt: skip
  data.unlink()
  assert status == 2 and err.startswith("error: ") and sorted(directory.iterdir()) == before
  return err


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--data="], "--data must be given: JSONL file."),
    (["--objective=ppo"], "allowed: one of sft, dpo, rpo, ipo, kto, simpo, orpo, pass_at_n, m"),
    (["--objective=masked_thought", "--mask_rate=1.5"], "mask_rate must lie in [0, 1], got 1.5"),
    (["--objective=rpo", "--sft_weight=-1"], "sft_weight must lie in [0, inf), got -1.0"),
    (["--objective=pass_at_n", "--num_samples=0"], "num_samples must be at least 1, got 0"),
    (["--objective=dpo", "--beta=0"], "beta must lie in (0, inf), got 0.0"),
    (["--beta=0.1"], "beta 0.1 is of preferences, sft has none"),
    (["--objective=dpo"], "line 1: column 'chosen' is missing; there are prompt, response"),
    (["--max_length=65"], "--max_length=65 exceeds the model's context of 64 tokens"),
    (["--max_length=4"], "line 1: the prompt has 4 tokens; a context of max_length 4 leaves"),
    (["--lora_targets=attention/z"], "--lora_targets: target 'attention/z' matches none of"),
    (["--batch_size=3", "--accumulate=2"], "--batch_size=3 does not divide by 2"),
    (["--model_parallel=3"], "--model_parallel=3 does not divide the model's hidden_size, 16"),
    (["--data_parallel=9"], "--data_parallel, --model_parallel: "),
    (["--lora_rank=-1"], "lora_rank must be at least 0, got -1"),
    (["--learning_rate=0"], "learning_rate must lie in (0, inf), got 0.0"),
    (["--steps=-1"], "steps must be at least 1, got -1"),
    (["--batch_size=0"], "batch_size must be at least 1, got 0"),
    (["--batch_size=5"], "--batch_size=5 exceeds the 4 examples to train on"),
    (["--save_every=0"], "save_every must be at least 1, got 0"),
    ([f"--steps={10**20}"], "steps must lie in [-2147483648, 4294967295], got 1" + "0" * 20),
    (["--output=/proc/new/model"], "--output=/proc/new/model cannot be made: "),
    (["--output=/dev/null/model"], "--output=/dev/null/model cannot be made: Not a directory"),
    ([f"--output={'n' * 300}"], "cannot be made: File name too long"),
    (["--workdir=/proc/new"], "--workdir=/proc/new cannot be made: "),
    (["--output=/tmp/new", "--workdir=/tmp/new"], "--output=/tmp/new would hold --workdir=/tmp/n"),
    (["--output=/tmp/new", "--workdir=/tmp/new/run"], "--output=/tmp/new would hold --workdir="),
  ],
)
def test_flags_that_cannot_be_obeyed(tmp_path, checkpoint, arguments, message):
  assert message in refused(tmp_path, *arguments, checkpoint=checkpoint)


def test_checkpoints_that_cannot_be_used(tmp_path, make_checkpoint):
  def broken(name, change, message, rows=SUPERVISED, **options):
    directory = make_checkpoint(tmp_path / name, **options)
    change(directory)
    err = refused(tmp_path, checkpoint=directory, rows=rows)
    assert message in err and (str(directory) in err or "refused.jsonl" in err)

  def shorten(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

  def rename(directory):
    path = directory / "config.json"
    path.write_text(path.read_text().replace('"llama"', '"mamba"'))

  broken("short", shorten, "is not a safetensors file")
  broken("other", rename, "mamba")
  broken("plain", lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json does not exist")
  broken("none", lambda d: (d / "config.json").unlink(), "config.json")
  outside = "{{ messages.__class__.__mro__ }}"
  broken("outside", lambda d: None, "line 1: template fails", CHATS, template=outside)
  broken(
    "mute", lambda d: None, "line 1: tokenizer must have a chat_template", CHATS, template=None
  )


def test_nothing_is_overwritten(unbroken, checkpoint, tmp_path):
  status, _, err = train(unbroken, checkpoint, SUPERVISED, *FULL, steps=12)
  assert status == 2 and "out is there already; nothing is overwritten" in err
  status, _, err = train(
    unbroken,
    checkpoint,
    SUPERVISED,
    *FULL,
    f"--workdir={unbroken / 'out.run'}",
    "--seed=1",
    steps=12,
    name="other",
  )
  assert status == 2 and "holds a run with seed = 0, this command asks for 1" in err
  status, _, err = train(
    tmp_path, checkpoint, SUPERVISED[:4], *FULL, f"--workdir={unbroken / 'out.run'}", steps=12
  )
  assert status == 2 and "holds a run with data_sha256 = " in err
  for name, change in (
    ("tokenizer", {"bos_token": "<|user|>"}),
    ("chat_template", {"chat_template": "{{ messages }}"}),
  ):
    other = tmp_path / name
    shutil.copytree(checkpoint, other)
    path = other / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    status, _, err = train(
      tmp_path, other, SUPERVISED, *FULL, f"--workdir={unbroken / 'out.run'}", steps=12
    )
    assert status == 2 and f"holds a run with {name} = " in err and err.count("\n") == 1
  assert not (unbroken / "other").exists() and not (tmp_path / "out").exists()


def test_help_lists_every_flag():
  status, out, _ = execute("--help")
  assert status == 0 and out.startswith("Fine-tunes a language model")
  for field in dataclasses.fields(finetune.Config):
    assert f"\n  --{field.name}: " in out
  assert "--checkpoint: text [required]\n      Directory of the model" in out
  status, _, err = execute("--bata=1")
  assert status == 2 and "--bata=1 is no flag" in err and "--beta" in err
