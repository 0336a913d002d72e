import dataclasses
import signal
import types

import numpy as np
import pytest

from jaxlab.commands import program
from jaxlab.data.tokenizers import Tokenizer
from jaxlab.experiment import Stopped, UsageError
from jaxlab.training import Interrupted, NonFiniteLossError


@dataclasses.dataclass(frozen=True)
class Config:
  path: str = ""  # Where it is.
  count: int = 2  # How many.

  def __post_init__(self):
    if self.count < 1:
      raise ValueError(f"count must be at least 1, got {self.count}.")


def execute(*arguments, run=lambda config: 0):
  module = types.SimpleNamespace(__doc__="Does it.", Config=Config, REQUIRED=("path",), run=run)
  return program.execute(module, ["it", *arguments])


def test_flags_become_the_config(capsys):
  seen = []
  assert execute("--path=a", "--count=3", run=lambda config: seen.append(config) or 7) == 7
  assert seen == [Config("a", 3)]
  assert execute("-h") == 0
  assert capsys.readouterr().out == (
    "Does it.\n\nFlags:\n  --path: text [required]\n      Where it is.\n"
    "  --count: an integer [2]\n      How many.\n"
    "  --debug: true or false\n      Show the traceback of whatever ends the command.\n"
    "  --help: true or false\n      Show this and stop.\n"
  )


def test_paths_may_begin_at_home(monkeypatch, tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Config:
    data: str = ""
    prompt: str = "~/a"

  seen = []
  module = types.SimpleNamespace(__doc__="", Config=Config, REQUIRED=(), run=seen.append)
  monkeypatch.setenv("HOME", str(tmp_path))
  program.execute(module, ["it", "--data=~/x"])
  assert seen == [Config(f"{tmp_path}/x", "~/a")]


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "--path must be given: Where it is."),
    (["--path=a", "--count=0"], "count must be at least 1, got 0."),
    (["--path=a", "--count=x"], "allowed: an integer"),
    (["--path=a", "--cuont=1"], "--cuont=1 is no flag"),
    (["--path=a", "b"], "'b' is no flag"),
  ],
)
def test_what_cannot_be_obeyed(capsys, arguments, message):
  assert execute(*arguments) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("error: ") and message in err


@pytest.mark.parametrize(
  "error, status, message",
  [
    (UsageError("bad file"), 2, "error: bad file\n"),
    (NonFiniteLossError(3, "loss", np.nan), 1, "error: loss is nan at step 3; nothing was saved."),
    (Interrupted(4, signal.SIGTERM), 143, "stopped by SIGTERM after step 4.\n"),
    (Stopped(signal.SIGINT), 130, "stopped by SIGINT.\n"),
  ],
)
def test_how_a_run_ends_is_its_status(capsys, error, status, message):
  def run(config):
    raise error

  assert execute("--path=a", run=run) == status
  assert capsys.readouterr().err.startswith(message)


def test_errors_say_of_what():
  for error in (ImportError("x"), FileNotFoundError("x"), ValueError("x")):
    with (
      pytest.raises(UsageError, match="^--checkpoint=d: x$"),
      program.usage_errors("--checkpoint=d"),
    ):
      raise error
  with pytest.raises(KeyError), program.usage_errors("--checkpoint=d"):
    raise KeyError("x")


def test_few_widths_serve_all_lengths():
  for most in (10, 16, 100, 128):
    widths = [program.bucket_length(n, most=most) for n in range(1, most + 1)]
    assert all(n <= width <= most for n, width in enumerate(widths, 1))
    assert widths == sorted(widths) and len(set(widths)) <= 4
  assert [program.bucket_length(n, most=100) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 100]


def test_tokens_of_prompts():
  def tokenizer(ids):
    return Tokenizer(lambda text: ids, None, 9, eos_token_id=2)

  assert program.encode_prompt(tokenizer([1, 5, 2]), "") == [1, 5]
  assert program.encode_prompt(tokenizer([1, 5]), "") == [1, 5]
  assert program.encode_prompt(tokenizer([]), "") == []
  program.check_vocabulary([0, 8], 9)
  with pytest.raises(ValueError, match="token 9 lies outside the model's vocabulary of 9"):
    program.check_vocabulary(np.array([0, 9]), 9)
