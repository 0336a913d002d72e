import contextlib
import io
import json

import jax
import numpy as np
import pytest

from jaxlab import metrics
from jaxlab.commands import program, score

RNG = np.random.default_rng(0)
N = 6
KS = (1, 2, 4, 6)


def execute(*arguments):
  """Exit status, what was printed, and what was said of errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = program.execute(score, ["score", *map(str, arguments)])
  return status, out.getvalue(), err.getvalue()


def line(n=N, **changes):
  correct = (RNG.random(n) < RNG.random()).tolist()
  return {
    "prompt": "p",
    "samples": [f"text {i}" for i in range(n)],
    "correct": correct,
    "answers": ["4" if right else RNG.choice(["5", "6", None]) for right in correct],
    "log_probs": (-RNG.exponential(size=n) - 2.0 * ~np.array(correct)).tolist(),
    "num_tokens": [3] * n,
    "verdict": [float(right) if RNG.random() < 0.8 else 0.7 for right in correct],
    "chosen": {"index": 1},
  } | changes


def plain(correct):
  return {"prompt": "p", "samples": ["a"] * len(correct), "correct": correct}


def scored(directory, rows, *arguments):
  path = directory / "samples.jsonl"
  texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
  path.write_text("".join(text + "\n" for text in texts))
  status, out, err = execute(path, *arguments)
  numbers = directory / "samples.scores.json"
  return status, out, err, json.loads(numbers.read_text()) if numbers.exists() else None


def test_all_columns(tmp_path):
  rows = [line() for _ in range(8)]
  status, out, err, scores = scored(tmp_path, rows)
  assert (status, err) == (0, "") and scores["ks"] == list(KS)
  correct = np.array([row["correct"] for row in rows])
  accepted = np.array([row["verdict"] for row in rows]) >= 0.5
  expected = jax.jit(lambda x: metrics.coverage_curve(x, ks=KS))(correct)
  np.testing.assert_allclose(scores["coverage"], expected, atol=1e-6)
  # All samples vote at k = n, so that chance has no part in it but for ties.
  right = np.array([np.mean(row["correct"]) for row in rows])
  assert scores["votes"]["most probable"][0] == pytest.approx(right.mean(), abs=1e-6)
  best = [row["correct"][np.argmax(row["log_probs"])] for row in rows]
  answered = [row["answers"][np.argmax(row["log_probs"])] is not None for row in rows]
  assert scores["votes"]["most probable"][-1] == pytest.approx(
    np.mean(np.logical_and(best, answered))
  )
  assert set(scores["votes"]) == {"majority", "weighted by probability", "most probable", "rpc"}
  assert all(0 <= x <= 1 for curve in scores["votes"].values() for x in curve)
  assert scores["chosen"] == np.mean(correct[:, 1])
  verifier = scores["verifier"]
  assert verifier["acceptance_rate"] == pytest.approx(accepted.mean())
  assert verifier["generalization_gap"] == pytest.approx(np.mean(accepted & ~correct))
  first = np.mean(accepted & correct) - np.mean(accepted & ~correct)
  assert verifier["reward"][0] == pytest.approx(first, abs=1e-6)
  assert verifier["best_number_of_attempts"] in (0, *KS)
  assert "law of coverage: exp(" in out and "accuracy of the choices: " in out
  assert (tmp_path / "samples.scores.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_another_sampler(tmp_path):
  rows = [plain([True, False, False, False]), plain([0, 0, 1, 1]), plain([False] * 4)]
  status, out, _, scores = scored(tmp_path, rows, f"--output={tmp_path / 'samples.scores'}")
  assert status == 0 and "there are no votes: not every line has the column 'answers'" in out
  np.testing.assert_allclose(scores["coverage"], [0.25, (1 / 2 + 5 / 6) / 3, 2 / 3], atol=1e-6)
  assert not {"votes", "verifier", "chosen"} & scores.keys()
  assert scores["coverage_law"]["b"] < 0


def test_accuracy_against_cost_of_several_files(tmp_path):
  # Choices cost all samples; where nothing is chosen, one sample is what is paid for.
  chosen = [line(cost={"flops": 600.0}, chosen={"index": i}) for i in range(3)]
  plainly = [plain([True, False]) | {"cost": {"flops": x}} for x in (100, 300)]
  for name, rows in (("other.jsonl", [*plainly, "{"]), ("free.jsonl", [plain([True, False])])):
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (tmp_path / name).write_text("\n".join(texts))
  others = f"--others={tmp_path / 'other.jsonl'}"
  status, out, err, scores = scored(tmp_path, chosen, others)
  assert (status, err) == (0, "")
  first, second = scores["by_cost"]
  right = np.mean([row["correct"][i] for i, row in enumerate(chosen)])
  assert (first["prompts"], first["flops"]) == (3, 600) and first["accuracy"] == right
  assert (second["prompts"], second["flops"], second["accuracy"]) == (2, 100, 0.5)
  assert "rows left out: 1" in out
  assert "other.jsonl: accuracy 0.5000 at 100 FLOPs per prompt, 2 prompts" in out
  status, _, err, _ = scored(tmp_path, chosen, f"--others={tmp_path / 'free.jsonl'}")
  assert (
    status == 2 and "free.jsonl, line 1 lacks the column 'cost', which --others compares" in err
  )
  status, _, err, _ = scored(tmp_path, chosen, "--others=nothing")
  assert status == 2 and "--others=nothing cannot be read" in err
  for cost in ({}, {"flops": 0}, 3):
    _, _, _, scores = scored(tmp_path, [*chosen, chosen[0] | {"cost": cost}])
    [fault] = scores["left_out"]
    assert "line 4: column 'cost' must have flops above 0, got" in fault
  assert scores["by_cost"] == []


def test_rpc_by_blocks_is_that_of_each_prompt(tmp_path, monkeypatch):
  rows = [line() for _ in range(5)]
  whole = scored(tmp_path, rows)[-1]["votes"]["rpc"]
  monkeypatch.setattr(score, "_BLOCK", 2)
  np.testing.assert_allclose(scored(tmp_path, rows)[-1]["votes"]["rpc"], whole, atol=1e-6)


def test_lines_that_cannot_be_used_are_named(tmp_path):
  good = [plain([True, False]) for _ in range(2)]
  rows = [
    good[0], "{", plain([]), plain([True, 2]), plain([True]) | {"samples": "a"},
    {"prompt": "p", "samples": ["a"]}, good[1] | {"correct": [True]},
    good[0] | {"chosen": {"index": 2}}, good[0] | {"verdict": ["x", 1]}, good[1],
  ]  # fmt: skip
  status, out, _, scores = scored(tmp_path, rows)
  assert status == 0 and scores["prompts"] == 2 and "rows left out: 8\n" in out
  path = tmp_path / "samples.jsonl"
  told = [fault.removeprefix(f"{path}, ") for fault in scores["left_out"]]
  for fault, message in zip(
    told,
    [
      "line 2 is not valid JSON",
      "line 3: column 'samples' must be a list of at least one sample.",
      "line 4: column 'correct' must hold true or false, 1 or 0, got 2.",
      "line 5: column 'samples' must be a list",
      "line 6: column 'correct' is missing; there are prompt, samples.",
      "line 7: column 'correct' must have a value for each of the 2 samples, got 1 values.",
      "line 8: column 'chosen' must have an index below 2, got {'index': 2}.",
      "line 9: column 'verdict' must hold numbers or null, got 'x'.",
    ],
    strict=True,
  ):
    assert fault.startswith(message)


def test_fewer_samples_than_are_asked_for(tmp_path):
  rows = [plain([True, False, False]), plain([False, True]), plain([True] * 4)]
  status, _, err, scores = scored(tmp_path, rows, "--ks=1,3")
  assert status == 2 and scores is None
  assert "--ks=3 exceeds the 2 samples that every line has; --num_samples leaves out lines" in err
  status, out, _, scores = scored(tmp_path, rows, "--ks=1,3", "--num_samples=3")
  assert status == 0 and (scores["prompts"], scores["longer"]) == (2, 1)
  assert scores["left_out"] == [
    f"{tmp_path}/samples.jsonl, line 2: has 2 samples, of the 3 of --num_samples."
  ]
  np.testing.assert_allclose(scores["coverage"], [2 / 3, 1], atol=1e-6)
  assert "1 of them have more samples, which do not count" in out
  status, _, err, _ = scored(tmp_path, rows, "--num_samples=5")
  assert status == 2 and "--num_samples=5 exceeds the 4 samples that a line has at most" in err


@pytest.mark.parametrize("right", [False, True])
def test_all_samples_are_alike_or_have_no_answer(tmp_path, right):
  changes = {"samples": ["a"] * N, "correct": [right] * N, "verdict": [None] * N}
  changes |= {"answers": ["4" if right else None] * N, "log_probs": [-1.0] * N}
  changes |= {"chosen": {"index": 0} if right else None}
  status, out, err, scores = scored(tmp_path, [line(**changes) for _ in range(3)])
  assert (status, err) == (0, "")
  assert scores["coverage"] == [float(right)] * len(KS) and scores["chosen"] == right
  for curve in scores["votes"].values():
    np.testing.assert_allclose(curve, right, atol=1e-6)
  assert "law of coverage: not fitted: coverage lies strictly between 0 and 1 at fewer" in out
  verifier = scores["verifier"]
  assert verifier["without_verdict"] == 3 * N and verifier["acceptance_rate"] == 0
  assert verifier["conditional_accuracy"] == "nan"


def test_a_column_that_some_lines_lack_is_not_scored(tmp_path):
  rows = [line(), {k: v for k, v in line().items() if k != "verdict"}]
  status, out, _, scores = scored(tmp_path, rows)
  assert status == 0 and scores["missing"] == {"verdict": 1} and "verifier" not in scores
  assert "column 'verdict' is missing in 1 lines, and is not scored" in out


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "--file must be given: JSONL file"),
    (["a", "b"], "'b' is no flag"),
    (["nothing"], "FILE=nothing cannot be read"),
    (["a", "--ks=0"], "ks must lie in [1, inf), got (0,)"),
    (["a", "--num_subsets=0"], "num_subsets must lie in [1, inf), got 0"),
  ],
)
def test_what_cannot_be_scored(arguments, message):
  status, out, err = execute(*arguments)
  assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_output_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  status, _, err, _ = scored(
    tmp_path, [plain([True, False])], f"--output={tmp_path / 'file' / 'x'}"
  )
  assert status == 2 and f"--output={tmp_path / 'file' / 'x'}: " in err


def test_help():
  status, out, _ = execute("--help")
  assert status == 0 and out.startswith("Scores a file of samples") and "--num_subsets" in out
