import numpy as np
import pytest

from jaxlab.commands import verifiers
from jaxlab.commands.rows import Row
from jaxlab.experiment import UsageError


def row(**columns):
  return Row(3, "data.jsonl, line 3", "p", (), True, columns)


@pytest.mark.parametrize(
  "pattern, response, answer, expected",
  [
    ("yes|no", "it says no", None, True),
    ("yes|no", "maybe", None, False),
    (r"is (\d+)", "4 is 4, then it is 12", 12, True),
    (r"is (\d+)", "it is 12, then 4 is 4", "12", False),
    (r"is(.*)\.", "it is 7 \n.", " 7", True),
    (r"is (\d+)", "nothing", 12, False),
    (r"a|(b)", "a", "b", False),
  ],
)
def test_patterns(pattern, response, answer, expected):
  columns = {} if answer is None else {"answer": answer}
  assert verifiers.pattern_verifier(pattern)(response, columns) is expected


@pytest.mark.parametrize(
  "pattern, response, expected",
  [
    (r"\d+", "4, then 12", "12"),
    (r"is(.*)\.", "it is 7 \n.", "7"),
    (r"is (\d+)", "nothing", None),
    (r"a|(b)", "b a", None),
  ],
)
def test_answers(pattern, response, expected):
  assert verifiers.answer_finder(pattern)(response) == expected


def test_rewards_are_numbers_or_none():
  values = iter([True, np.bool_(False), 2, 0.5, np.float32(1.5), None, float("nan")])
  rewards = verifiers.score(lambda response, columns: next(values), ["x"] * 7, [row()] * 7)
  np.testing.assert_array_equal(rewards, [1, 0, 2, 0.5, 1.5, np.nan, np.nan])
  assert rewards.dtype == np.float32


def test_the_verifier_reads_the_columns():
  verify = lambda response, columns: len(response) + columns["bonus"]  # noqa: E731
  rewards = verifiers.score(verify, ["a", "bb"], [row(bonus=1), row(bonus=10)])
  np.testing.assert_array_equal(rewards, [2, 12])


@pytest.mark.parametrize(
  "verify, message",
  [
    (lambda *_: "1", "line 3: the verifier fails on 'x': TypeError: a reward must be a number"),
    (lambda *_: 1 / 0, "line 3: the verifier fails on 'x': ZeroDivisionError: division by zero"),
    (verifiers.pattern_verifier("(x)"), "ValueError: column 'answer' is missing"),
  ],
)
def test_what_fails_is_named(verify, message):
  with pytest.raises(UsageError, match=message):
    verifiers.score(verify, ["x"], [row()])


def test_a_function_of_the_current_directory(tmp_path, monkeypatch):
  (tmp_path / "my_checks.py").write_text("def right(response, columns):\n  return 1.0\n")
  (tmp_path / "my_fault.py").write_text("1 / 0\n")
  monkeypatch.chdir(tmp_path)
  assert verifiers.function_verifier("my_checks.right")("", {}) == 1.0
  with pytest.raises(UsageError, match="--verifier=my_fault.f: ZeroDivisionError"):
    verifiers.function_verifier("my_fault.f")
