import contextlib
import dataclasses
import io
import json
import os
import signal

import numpy as np
import pytest

from jaxlab.commands import program, sample, sample_files, verifiers
from jaxlab.models import load_pretrained
from jaxlab.training.state import num_params

PROMPTS = [{"prompt": f"{i}+{i}=", "answer": "a", "id": i} for i in range(4)]
CHAT = {"prompt": [{"role": "user", "content": "hi"}]}
LETTER = "--pattern=[a-m]"


def execute(*arguments):
  """Exit status, what was printed, and what was said of errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = program.execute(sample, ["sample", *map(str, arguments)])
  return status, out.getvalue(), err.getvalue()


def draw(directory, checkpoint, *arguments, rows=(*PROMPTS, CHAT), name="out"):
  prompts = directory / "prompts.jsonl"
  texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
  prompts.write_text("".join(text + "\n" for text in texts))
  return execute(
    f"--checkpoint={checkpoint}", f"--prompts={prompts}", f"--out={directory / name}.jsonl",
    "--max_new_tokens=5", "--num_samples=4", "--batch_size=2", "--data_parallel=1", *arguments,
  )  # fmt: skip


def lines_of(directory, name="out"):
  return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]


def report_of(directory, name="out"):
  return json.loads((directory / f"{name}.jsonl.run" / "results.json").read_text())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, checkpoint):
  directory = tmp_path_factory.mktemp("unbroken")
  status, out, err = draw(directory, checkpoint, "--method=majority", LETTER)
  assert (status, err) == (0, "")
  assert "5 of 5 prompts, " in out and f"saved {directory / 'out.jsonl'}\n" in out
  return directory


def test_lines_say_what_was_drawn(unbroken, checkpoint):
  lines = lines_of(unbroken)
  assert [line["line"] for line in lines] == [1, 2, 3, 4, 5]
  assert [line.get("id") for line in lines] == [0, 1, 2, 3, None]
  assert lines[4]["prompt"] == CHAT["prompt"] and "correct" not in lines[4]
  size = num_params(load_pretrained(checkpoint).params)
  for line in lines:
    assert all(len(line[name]) == 4 for name in ("samples", "votes", "log_probs", "num_tokens"))
    assert all(x < 0 for x in line["log_probs"])
    for answer, text in zip(line["answers"], line["samples"]):
      assert (answer is None) or (answer in text and "a" <= answer <= "m")
    tokens = line["cost"]["prompt_tokens"] + sum(line["num_tokens"])
    assert line["cost"]["flops"] == 2 * size * tokens
  report = report_of(unbroken)
  assert (report["prompts"], report["samples"], report["prompts left out"]) == (5, 20, 0)
  assert report["flops"] == sum(line["cost"]["flops"] for line in lines)
  right = np.mean([line["correct"] for line in lines[:4]])
  assert report["right samples"] == pytest.approx(right)


def test_a_run_that_was_stopped_goes_on_to_the_same_file(
  tmp_path, checkpoint, unbroken, monkeypatch
):
  write, options = sample_files.append_lines, ("--method=majority", LETTER)

  def stopping(path, lines):
    write(path, lines)
    if len(lines):
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patched:
    patched.setattr(sample_files, "append_lines", stopping)
    status, _, err = draw(tmp_path, checkpoint, *options)
  assert (status, err) == (143, "stopped by SIGTERM; the same command goes on.\n")
  out, expected = tmp_path / "out.jsonl", (unbroken / "out.jsonl").read_bytes()
  whole = out.read_bytes().splitlines(keepends=True)
  assert len(whole) == 2
  # One line of a batch, and a part of the next.
  out.write_bytes(whole[0] + whole[1][:30])
  status, told, _ = draw(tmp_path, checkpoint, *options)
  assert status == 0 and "goes on after 1 of 5 prompts" in told
  assert out.read_bytes() == expected
  status, told, _ = draw(tmp_path, checkpoint, *options)
  assert status == 0 and "goes on after 5 of 5 prompts" in told
  assert out.read_bytes() == expected


@pytest.mark.parametrize(
  "changes, rows, message",
  [
    (
      ["--method=rpc"],
      PROMPTS,
      "holds a run with method = 'majority', this command asks for 'rpc'",
    ),
    (["--method=majority", "--seed=1"], PROMPTS, "holds a run with seed = 0, this command asks"),
    (["--method=majority"], PROMPTS[:2], "holds a run with prompts_sha256 = "),
  ],
)
def test_another_configuration_is_refused(unbroken, checkpoint, changes, rows, message):
  before = (unbroken / "out.jsonl").read_bytes()
  prompts = (unbroken / "prompts.jsonl").read_bytes()
  if rows is PROMPTS:
    rows = (*PROMPTS, CHAT)
  status, _, err = draw(unbroken, checkpoint, LETTER, *changes, rows=rows)
  (unbroken / "prompts.jsonl").write_bytes(prompts)
  assert status == 2 and message in err and err.count("\n") == 1
  assert (unbroken / "out.jsonl").read_bytes() == before


def test_broken_lines_are_named_and_the_rest_goes_on(tmp_path, checkpoint):
  rows = (PROMPTS[0], '{"prompt": ', {"question": "q"}, {"prompt": "x" * 60}, PROMPTS[1])
  status, out, _ = draw(tmp_path, checkpoint, "--temperature=0", rows=rows)
  assert status == 0 and "rows left out: 3\n" in out and "\nprompts left out: 3\n" in out
  assert [line["line"] for line in lines_of(tmp_path)] == [1, 5]
  faults = report_of(tmp_path)["faults"]
  assert [fault.split(", ")[-1].split(":")[0] for fault in faults[1:]] == ["line 3", "line 4"]
  assert "line 2 is not valid JSON" in faults[0]
  assert faults[2].endswith("the prompt has 60 tokens; it must have 1 to 59.")
  # At temperature 0 all samples are alike.
  assert "\nprompts whose samples are alike: 2\n" in out


def save_others(make_checkpoint, directory):
  """A model whose vocabulary has two letters in each other's place."""
  make_checkpoint(directory)
  path = directory / "tokenizer.json"
  content = json.loads(path.read_text())
  vocabulary = content["model"]["vocab"]
  vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
  path.write_text(json.dumps(content))
  return directory


def test_models_of_other_vocabularies(tmp_path, checkpoint, make_checkpoint):
  small = save_others(make_checkpoint, tmp_path / "small")
  for method in ("adaptive", "speculative"):
    status, _, err = draw(tmp_path, checkpoint, f"--method={method}", f"--small={small}")
    assert status == 2 and f"--method={method} needs models of one vocabulary: token 'a'" in err
    assert f"in --checkpoint={checkpoint}" in err and f"in --small={small}" in err
  assert not (tmp_path / "out.jsonl.run").exists()
  status, out, err = draw(
    tmp_path, checkpoint, "--method=nudging", f"--small={small}", "--num_samples=1",
    "--look_ahead=4", "--top_prob_threshold=0.02", rows=[*PROMPTS[:1], CHAT],
  )  # fmt: skip
  assert (status, err) == (0, "") and "the models share the text: token 'a'" in out
  for line in lines_of(tmp_path):
    [text], [share], [score] = line["samples"], line["nudged_share"], line["log_probs"]
    assert text and 0 < share <= 1 and score < 0
    assert line["cost"]["generated_tokens"] == line["num_tokens"][0]


@pytest.mark.parametrize("method", ["nudging", "adaptive", "speculative"])
def test_two_models_of_one_vocabulary(tmp_path, checkpoint, make_checkpoint, method):
  architecture = dataclasses.replace(load_pretrained(checkpoint).config, vocab_size=264)
  small = make_checkpoint(tmp_path / "small", architecture=architecture)  # Padded to another size.
  num_samples = f"--num_samples={1 if method == 'nudging' else 2}"
  options = (f"--method={method}", f"--small={small}", num_samples, "--data_parallel=2")
  status, _, err = draw(tmp_path, checkpoint, *options, rows=[CHAT] * 2)
  assert (status, err) == (0, "")
  share = {"nudging": "nudged_share", "adaptive": "large_share", "speculative": "acceptance_rate"}
  for line in lines_of(tmp_path):
    assert all(0 <= x <= 1 for x in line[share[method]]) and all(x < 0 for x in line["log_probs"])


def test_a_judge_that_cannot_tell_counts_as_a_half(tmp_path, checkpoint, monkeypatch):
  def judge(response, columns):
    return float("nan") if columns["id"] == 0 else "e" in response

  monkeypatch.setattr(verifiers, "function_verifier", lambda name: judge)
  status, out, err = draw(
    tmp_path, checkpoint, "--method=rain", "--verifier=some.function", "--num_samples=1",
    "--max_iterations=2", "--num_candidates=2", rows=PROMPTS[:2],
  )  # fmt: skip
  assert (status, err) == (0, "")
  first, second = lines_of(tmp_path)
  assert first["unscored"] > 0 and second["unscored"] == 0
  assert first["verdict"] == [None] and second["verdict"][0] in (0, 1)
  assert f"\ntexts without a verdict: {first['unscored'] + 1}\n" in out
  assert first["visits"][0] >= 1 and len(first["samples"]) == 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--prompts="], "--prompts must be given"),
    (["--prompts=nothing"], "--prompts=nothing cannot be read"),
    (["--checkpoint=nothing"], "--checkpoint=nothing: there is no directory"),
    (["--method=beam"], "allowed: one of sample, majority, rpc, rain, nudging, adaptive, specul"),
    (["--num_samples=0"], "num_samples must lie in [1, inf), got 0"),
    (["--max_new_tokens=64"], "--max_new_tokens=64 leaves no room for a prompt in the context"),
    (["--window=3"], "window 3 is of adaptive; sample has none"),
    (["--method=nudging", "--small=x", "--top_k=2"], "top_k 2 is of sample, majority, rpc, adapt"),
    (["--method=nudging", "--small=x"], "nudging draws nothing: num_samples must be 1, got 4"),
    (["--method=speculative"], "small is None, and speculative needs the directory"),
    (["--small=x"], "small is x, and sample has no small model"),
    (["--method=adaptive", "--small=nothing"], "--small=nothing: there is no directory"),
    (["--method=rain"], "rain needs a judge: verifier or pattern"),
    (["--method=rain", LETTER, "--data_parallel=2"], "rain, which asks a Python function on its"),
    (["--method=rain", LETTER, "--temperature=0"], "temperature must lie in (0, inf) for rain"),
    (["--method=rain", "--verifier=math.hypot"], "line 1: the verifier fails on '': TypeError: "),
    (["--pattern=("], "--pattern=( is no regular expression"),
    (["--verifier=os.nothing"], "--verifier=os.nothing: os has no function 'nothing'"),
    (["--verifier=math.hypot"], "line 1: the verifier fails on '': TypeError: "),
    (["--data_parallel=4"], "--batch_size=2 does not divide by the 4 devices of --data_parallel"),
    (["--model_parallel=99"], "--data_parallel, --model_parallel: "),
    (["--adapter=nothing"], "--adapter=nothing: "),
  ],
)  # fmt: skip
def test_flags_that_cannot_be_obeyed(tmp_path, checkpoint, arguments, message):
  status, _, err = draw(tmp_path, checkpoint, *arguments)
  assert status == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_file_that_is_there_is_not_overwritten(tmp_path, checkpoint):
  (tmp_path / "out.jsonl").write_text("mine\n")
  status, _, err = draw(tmp_path, checkpoint)
  assert status == 2 and "out.jsonl is there already; nothing is overwritten." in err


def test_help_lists_every_flag():
  status, out, _ = execute("--help")
  assert status == 0 and out.startswith("Samples from a language model")
  for field in dataclasses.fields(sample.Config):
    assert f"\n  --{field.name}: " in out
