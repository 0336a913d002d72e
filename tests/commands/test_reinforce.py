import contextlib
import dataclasses
import io
import json
import os
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxlab.commands import examples, program, reinforce, verifiers
from jaxlab.models import load_adapter, load_pretrained
from jaxlab.weights.low_rank import merge_low_rank

PROMPTS = [{"prompt": f"{i}+{i}=", "answer": 2 * i} for i in range(10)]
CHATS = [{"prompt": [{"role": "user", "content": f"{i}+{i}"}]} for i in range(10)]
LETTER = "--pattern=[a-m]"  # Of bytes at random, a quarter of the responses.


def execute(*arguments):
  """Exit status, what was printed, and what was said of errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = program.execute(reinforce, ["reinforce", *map(str, arguments)])
  return status, out.getvalue(), err.getvalue()


def train(directory, checkpoint, *arguments, rows=PROMPTS, steps=2, devices=1, name="out"):
  data = directory / "data.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return execute(
    f"--checkpoint={checkpoint}", f"--data={data}", f"--output={directory / name}",
    f"--steps={steps}", "--batch_size=4", "--num_samples=4", "--max_new_tokens=4", "--log_every=1",
    "--eval_share=0.2", f"--data_parallel={devices}", *arguments,
  )  # fmt: skip


def rows_of(directory, name="out"):
  lines = (directory / f"{name}.run" / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def weights(directory):
  return safetensors.numpy.load_file(directory / "model.safetensors")


@pytest.mark.parametrize(
  "objective, rows, more",
  [("rloo", PROMPTS, "--num_updates=2"), ("grpo", CHATS, "--bfloat16"),
   ("online_dpo", PROMPTS, "--clip=0.1")],
)  # fmt: skip
def test_objectives_train_and_save(tmp_path, checkpoint, objective, rows, more):
  options = (LETTER, f"--objective={objective}", "--eval_every=1", more)
  status, out, err = train(tmp_path, checkpoint, *options, rows=rows)
  assert (status, err) == (0, "")
  assert "8 prompts to train on, 2 held out" in out and f"saved {tmp_path / 'out'}" in out
  first, last = rows_of(tmp_path)
  shares = ("constant", "unused", "unscorable", "empty", "reward", "eval/reward")
  assert all(0 <= last[name] <= 1 for name in shares) and 1 <= last["length"] <= 4
  # Before the first update the policy is the reference.
  np.testing.assert_allclose(first["kl"], 0, atol=1e-4)
  loaded, start = load_pretrained(tmp_path / "out"), load_pretrained(checkpoint)
  adapter = load_adapter(tmp_path / "out" / "adapter", loaded.config)
  merged = merge_low_rank(start.params, adapter.adapters, adapter.config)
  jax.tree.map(np.testing.assert_array_equal, merged, loaded.params)


FULL = (
  "--lora_rank=0", "--learning_rate=0.05", "--objective=rloo", "--beta=0.001", "--remat",
  "--chunk_size=4", "--accumulate=2", "--save_every=2", "--warmup_share=0", LETTER,
)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, checkpoint):
  directory = tmp_path_factory.mktemp("unbroken")
  status, _, err = train(directory, checkpoint, *FULL, steps=30)
  assert (status, err) == (0, "")
  return directory


def test_the_reward_rises(unbroken):
  rows = rows_of(unbroken)
  rewards = [row["reward"] for row in rows]
  assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.4
  assert rows[-1]["kl"] > 0.1
  assert not (unbroken / "out" / "adapter").exists()


def test_a_run_that_was_stopped_goes_on_to_the_same_parameters(
  tmp_path, checkpoint, unbroken, monkeypatch
):
  serve = examples.Batches.__next__

  def stopping(batches):
    if batches.get_state()["step"] == 5:
      os.kill(os.getpid(), signal.SIGTERM)
    return serve(batches)

  with monkeypatch.context() as patched:
    patched.setattr(examples.Batches, "__next__", stopping)
    status, _, err = train(tmp_path, checkpoint, *FULL, steps=30)
  assert status == 128 + signal.SIGTERM and not (tmp_path / "out").exists()
  assert err == "stopped by SIGTERM after step 6; the same command goes on.\n"
  status, out, _ = train(tmp_path, checkpoint, *FULL, steps=30)
  assert status == 0 and "from step 6 on" in out
  actual, expected = weights(tmp_path / "out"), weights(unbroken / "out")
  for name in expected:
    np.testing.assert_array_equal(actual[name], expected[name])
  status, _, err = train(
    tmp_path, checkpoint, *FULL[:-1], "--pattern=b", f"--workdir={unbroken / 'out.run'}",
    steps=30, name="other",
  )  # fmt: skip
  assert status == 2 and "holds a run with pattern = '[a-m]', this command asks for 'b'" in err


def test_sharding_changes_no_number(tmp_path, checkpoint):
  options = (LETTER, "--objective=grpo", "--learning_rate=0.01", "--lora_rank=2")
  actual = {}
  for data, model in ((1, 1), (2, 2)):
    name = f"{data}_{model}"
    status, _, err = train(
      tmp_path, checkpoint, *options, f"--model_parallel={model}", devices=data, name=name
    )
    assert (status, err) == (0, "")
    actual[name] = weights(tmp_path / name)
  for name, expected in actual["1_1"].items():
    np.testing.assert_allclose(actual["2_2"][name], expected, atol=1e-5)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([LETTER, "--data="], "--data must be given: JSONL file of prompts."),
    ([], "--verifier or --pattern must be given."),
    ([LETTER, "--verifier=os.getcwd"], "verifier os.getcwd and pattern [a-m] are given, one is"),
    (["--pattern=("], "--pattern=( is no regular expression: missing ), unterminated subpattern"),
    (["--verifier=nothing.here"], "--verifier=nothing.here: ModuleNotFoundError"),
    (["--verifier=os.nothing"], "--verifier=os.nothing: os has no function 'nothing'"),
    (["--verifier=getcwd"], "--verifier=getcwd must be module.function"),
    (["--verifier=os.path.join"], "line 1: the verifier fails on '': TypeError: "),
    ([LETTER, "--objective=dpo"], "allowed: one of rloo, grpo, online_dpo, best_of_n, rejection"),
    ([LETTER, "--num_samples=1"], "num_samples must be at least 2, got 1"),
    ([LETTER, "--max_new_tokens=0"], "max_new_tokens must be at least 1, got 0"),
    ([LETTER, "--max_new_tokens=64"], "--max_new_tokens=64 leaves no room for a prompt"),
    ([LETTER, "--max_new_tokens=61"], "line 1: the prompt has 4 tokens; it must have 1 to 3"),
    ([LETTER, "--beta=0"], "beta must lie in (0, inf), got 0.0"),
    ([LETTER, "--objective=best_of_n", "--beta=1"], "beta 1.0 is of a divergence"),
    ([LETTER, "--clip=-1"], "clip must lie in [0, inf), got -1.0"),
    ([LETTER, "--batch_size=32"], "--batch_size=32 exceeds the 8 examples to train on"),
  ],
)  # fmt: skip
def test_flags_that_cannot_be_obeyed(tmp_path, checkpoint, arguments, message):
  status, _, err = train(tmp_path, checkpoint, *arguments)
  assert status == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
  assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_a_verifier_that_fails_on_the_way_is_named(tmp_path, checkpoint, monkeypatch):
  calls = []

  def verify(response, columns):
    calls.append(columns["answer"])
    if len(calls) > 40:
      raise KeyError("nothing")

  monkeypatch.setattr(verifiers, "function_verifier", lambda name: verify)
  status, _, err = train(tmp_path, checkpoint, "--verifier=some.function", "--objective=rejection")
  assert status == 2 and "the verifier fails on " in err and "KeyError: 'nothing'" in err
  assert "data.jsonl, line" in err and set(calls) <= set(range(0, 20, 2))


def test_rewards_that_are_not_there_teach_nothing(tmp_path, checkpoint, monkeypatch):
  monkeypatch.setattr(verifiers, "function_verifier", lambda name: lambda *_: None)
  options = ("--verifier=some.function", "--objective=best_of_n", "--lora_rank=0", "--eval_share=0")
  status, _, err = train(tmp_path, checkpoint, *options)
  assert (status, err) == (0, "")
  last = rows_of(tmp_path)[-1]
  assert (last["unscorable"], last["unused"], last["constant"]) == (1, 1, 1)
  actual, start = weights(tmp_path / "out"), weights(checkpoint)
  for name in start:
    np.testing.assert_array_equal(actual[name], start[name])


def test_help_lists_every_flag():
  status, out, _ = execute("--help")
  assert status == 0 and out.startswith("Trains a language model")
  for field in dataclasses.fields(reinforce.Config):
    assert f"\n  --{field.name}: " in out
