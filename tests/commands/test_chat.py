import contextlib
import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.commands import chat, program
from jaxlab.data.tokenizers import load_tokenizer
from jaxlab.models import load_pretrained, save_adapter
from jaxlab.weights.low_rank import LowRankConfig, init_low_rank, merge_low_rank

PACE = re.compile(r"(\d+) tokens in [\d.]+ s, [\d.]+ tokens/s\n")


def execute(checkpoint, *arguments, lines=None, monkeypatch=None):
  """Exit status, what was printed, and what was said of errors and pace."""
  out, err = io.StringIO(), io.StringIO()
  if lines is not None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
  arguments = (f"--checkpoint={checkpoint}", "--max_new_tokens=6", *arguments)
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = program.execute(chat, ["chat", *arguments])
  return status, out.getvalue(), err.getvalue()


def greedy(checkpoint, text, *, adapter=None):
  """The most probable continuation, the whole sequence read anew for each token."""
  tokenizer, (model, params, _) = load_tokenizer(checkpoint), load_pretrained(checkpoint)
  if adapter is not None:
    params = merge_low_rank(params, *adapter)
  start = tokens = tokenizer.encode(text, add_special_tokens=False)
  apply = jax.jit(lambda row: model.apply({"params": params}, row).logits)
  for _ in range(6):
    row = np.zeros((1, 64), np.int32)
    row[0, : len(tokens)] = tokens
    tokens = [*tokens, int(apply(row)[0, len(tokens) - 1].argmax())]
    if tokens[-1] == tokenizer.eos_token_id:
      break
  return tokenizer.decode(tokens[len(start) :], skip_special_tokens=True)


def test_a_prompt_is_answered_greedily(checkpoint):
  for arguments, text in (
    (["--prompt=ab"], "<|user|>ab</s><|bot|>"),
    (["--prompt=ab", "--raw"], "ab"),
  ):
    status, out, err = execute(checkpoint, "--temperature=0", *arguments)
    assert status == 0 and out == greedy(checkpoint, text) + "\n"
    assert 1 <= int(PACE.fullmatch(err)[1]) <= 6


def test_a_conversation_keeps_its_turns_until_reset(checkpoint, monkeypatch):
  lines = ["ab", "c", "/reset", "ab", "", "x" * 60]
  status, out, err = execute(checkpoint, "--temperature=0", lines=lines, monkeypatch=monkeypatch)
  first = greedy(checkpoint, "<|user|>ab</s><|bot|>")
  second = greedy(checkpoint, f"<|user|>ab</s><|bot|>{first}</s><|user|>c</s><|bot|>")
  assert status == 0 and out == f"{first}\n{second}\n{first}\n"
  errors = err.splitlines()
  assert errors[0] == "error: the prompt is empty."
  assert "exceed the context of 64 tokens" in errors[1] and "/reset" in errors[1]
  assert PACE.fullmatch(errors[2] + "\n") and len(errors) == 3


def test_samples_differ_and_come_again(checkpoint):
  arguments = ("--prompt=ab", "--num_samples=3", "--top_k=50", "--top_p=0.9", "--bfloat16")
  outputs = [execute(checkpoint, *arguments, f"--seed={seed}")[1] for seed in (0, 0, 1)]
  assert outputs[0] == outputs[1] != outputs[2]
  answers = re.findall(r"^\[\d\] (.*?)(?=\n\[\d\] |\n\Z)", outputs[0], re.DOTALL | re.MULTILINE)
  assert len(answers) == 3 and len(set(answers)) > 1


def test_adapters_and_shards(checkpoint, tmp_path):
  _, params, architecture = load_pretrained(checkpoint)
  config = LowRankConfig(rank=2)
  adapters = init_low_rank(jax.random.key(0), params, config)
  adapters = jax.tree.map(lambda x: x + 0.5 * jnp.ones_like(x), adapters)
  save_adapter(tmp_path / "adapter", adapters, config, architecture)
  want = greedy(checkpoint, "<|user|>ab</s><|bot|>", adapter=(adapters, config))
  for extra in ([], ["--model_parallel=2"]):
    status, out, _ = execute(
      checkpoint, "--prompt=ab", "--temperature=0", f"--adapter={tmp_path / 'adapter'}", *extra
    )
    assert status == 0 and out == want + "\n"


def test_what_generation_config_ends_at(checkpoint, make_checkpoint, tmp_path):
  directory = make_checkpoint(tmp_path / "ends")
  (directory / "generation_config.json").write_text(f'{{"eos_token_id": {[*range(256), 10**30]}}}')
  status, _, err = execute(directory, "--prompt=ab", "--temperature=0")
  assert status == 0 and int(PACE.fullmatch(err)[1]) < 6


@pytest.mark.parametrize(
  "content, message",
  [
    ('{"eos_token_id": "2"}', "eos_token_id must be an integer, got '2'"),
    ('{"eos_token_id": [2, 2.5]}', "eos_token_id must be an integer, got 2.5"),
    ("", "generation_config.json is not valid JSON"),
  ],
)
def test_ends_of_other_types_are_named(make_checkpoint, tmp_path, content, message):
  directory = make_checkpoint(tmp_path / "ends")
  (directory / "generation_config.json").write_text(content)
  status, out, err = execute(directory, "--prompt=ab")
  assert (status, out) == (2, "") and message in err


def test_lines_that_are_no_text_are_left_out(checkpoint, monkeypatch):
  lines = ["a\udcff", "ab"]
  status, out, err = execute(checkpoint, "--temperature=0", lines=lines, monkeypatch=monkeypatch)
  assert status == 0 and out == greedy(checkpoint, "<|user|>ab</s><|bot|>") + "\n"
  assert err.startswith("error: the prompt is not UTF-8: ")


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--prompt="], "the prompt is empty"),
    (
      ["--prompt=" + "x" * 60],
      "a prompt of 63 tokens and max_new_tokens 6 exceed the context of 64",
    ),
    (["--prompt=a", "--max_new_tokens=64"], "--max_new_tokens=64 leaves no room for a prompt"),
    (["--prompt=a", "--max_new_tokens=0"], "max_new_tokens must be at least 1, got 0"),
    (["--prompt=a", "--temperature=-1"], "temperature must lie in [0, inf), got -1.0"),
    (["--prompt=a", "--seed=-1"], "seed must lie in [0, 4294967295], got -1"),
    (["--prompt=a", f"--seed={10**20}"], "seed must lie in [-2147483648, 4294967295], got 1"),
    (["--prompt=a", f"--top_k={10**20}"], "top_k must lie in "),
    (["--prompt=a", "--top_p=0"], "top_p must lie in (0, 1], got 0.0"),
    (["--num_samples=2"], "num_samples 2 goes with a prompt only"),
    (["--prompt=a", "--raw", "--system=s"], "--system needs a chat template"),
    (["--prompt=a", "--model_parallel=99"], "--model_parallel=99: "),
    (["--prompt=a", "--adapter=nowhere"], "--adapter=nowhere: "),
    (["--checkpoint=a/b", "--prompt=a"], "--checkpoint=a/b: there is no directory a/b; a model of"),
    (["--checkpoint="], "--checkpoint must be given"),
  ],
)
def test_what_cannot_be_answered(checkpoint, arguments, message):
  status, out, err = execute(checkpoint, *arguments)
  assert (status, out) == (2, "") and message in err


def test_checkpoints_that_cannot_be_used(checkpoint, make_checkpoint, tmp_path):
  outside = make_checkpoint(tmp_path / "outside", template="{{ messages.__class__.__mro__ }}")
  status, _, err = execute(outside, "--prompt=a")
  assert status == 2 and f"{outside}: its chat template: template fails" in err
  small = dataclasses.replace(load_pretrained(checkpoint).config, vocab_size=250)
  directory = make_checkpoint(tmp_path / "small", architecture=small)
  status, _, err = execute(directory, "--prompt=a")
  assert status == 2 and "token 259 lies outside the model's vocabulary of 250" in err


def test_help():
  status, out, _ = execute("x", "--help")
  assert status == 0 and out.startswith("Talks to a language model") and "--top_p" in out
