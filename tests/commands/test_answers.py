import math

import jax
import numpy as np
import pytest

from jaxlab import metrics, samplers
from jaxlab.commands import answers, verifiers
from jaxlab.commands.answers import Sampled
from jaxlab.commands.rows import Row

TEXTS = ["is 4", "is 5", "so is 4", "nothing"]
LOG_PROBS = [-1.0, -0.2, -2.0, -0.1]


def lines(texts=TEXTS, log_probs=LOG_PROBS, *, method="majority", columns=None, **changes):
  columns = {"prompt": "p", "answer": 4} if columns is None else columns
  item = Sampled(
    texts, [2] * len(texts), log_probs, [True] * len(texts), (10, 20), {"large_share": [0.5]}
  )
  options = {"find": verifiers.answer_finder(r"is (\d+)"), "verifier": None} | changes
  return answers.output_lines(
    [Row(3, "line 3", "p", (), True, columns)], [item],
    method=method, num_params=[100, 7], prompt_tokens=[6], **options,
  )  # fmt: skip


def test_a_line_of_votes():
  verifier = lambda text, columns: None if text == "nothing" else len(text)  # noqa: E731
  [line] = lines(verifier=verifier, columns={"prompt": "p", "answer": 4, "id": 9, "correct": "old"})
  assert line == {
    "prompt": "p",
    "answer": 4,
    "id": 9,
    "line": 3,
    "samples": TEXTS,
    "answers": ["4", "5", "4", None],
    "votes": [2, 1, 2, 0],
    "confidence": pytest.approx([2 / 3, 1 / 3, 2 / 3, 0]),
    "log_probs": LOG_PROBS,
    "num_tokens": [2] * 4,
    "finished": [True] * 4,
    "large_share": [0.5],
    "chosen": {"index": 0, "answer": "4", "confidence": pytest.approx(2 / 3)},
    "correct": [True, False, True, False],
    "verdict": [4.0, 4.0, 7.0, None],
    "cost": {"flops": 2.0 * (100 * 10 + 7 * 20), "prompt_tokens": 6, "generated_tokens": 8},
  }


def test_confidence_of_other_methods():
  [line] = lines(method="rpc")
  scores, numbers = np.array(LOG_PROBS) / 2, np.array([0, 1, 0, -1])
  prune = jax.jit(lambda *x: samplers.pruned_consistency_confidence(*x, mask=numbers >= 0))
  expected = prune(numbers, scores)
  np.testing.assert_allclose(line["confidence"], expected, rtol=1e-5)
  assert line["chosen"]["index"] == np.argmax(line["confidence"])
  [line] = lines(method="sample")
  np.testing.assert_allclose(line["confidence"], np.exp(scores), rtol=1e-5)
  assert "chosen" not in line


@pytest.mark.parametrize("method", ["majority", "rpc"])
def test_no_sample_has_an_answer(method):
  [line] = lines(["a", "b", "", " "], method=method)
  assert line["answers"] == [None] * 4 and line["votes"] == [0] * 4
  assert line["confidence"] == [0] * 4 and line["chosen"] is None and line["correct"] == [False] * 4


@pytest.mark.parametrize("method", ["majority", "rpc"])
def test_all_samples_are_alike(method):
  [line] = lines(["is 4"] * 4, [-1.0] * 4, method=method)
  assert line["votes"] == [4] * 4 and line["confidence"] == pytest.approx([1] * 4)
  assert line["chosen"] == {"index": 0, "answer": "4", "confidence": pytest.approx(1)}


def test_what_is_not_a_number_is_null():
  [line] = lines(log_probs=[math.nan, -0.2, -2.0, -math.inf], method="sample")
  assert line["log_probs"] == [None, -0.2, -2.0, None]
  assert line["confidence"] == [None, pytest.approx(math.exp(-0.1)), pytest.approx(math.exp(-1)), 0]


def test_without_a_pattern_all_of_a_text_is_the_answer():
  assert answers.find_answers([" a\n", "", "  "], None) == ["a", None, None]
  assert answers.number(["b", None, "a", "b"]) == [0, -1, 1, 0]


def test_totals():
  found = [*lines(), *lines(["is 4"] * 4), *lines(["x"] * 4, columns={"prompt": "p"})]
  found[0]["verdict"] = [1.0, None]
  found[1]["unscored"] = 3
  totals = answers.totals(found)
  assert totals == {
    "prompts": 3,
    "samples": 12,
    "samples without an answer": 5,
    "prompts without an answer": 1,
    "prompts whose samples are alike": 2,
    "texts without a verdict": 4,
    "prompt tokens": 18,
    "generated tokens": 24,
    "flops": 3 * 2280.0,
    "right samples": 0.75,
    "right choices": 1.0,
  }


def test_flops_are_those_of_the_metric():
  expected = metrics.inference_flops(
    num_params=100, prompt_tokens=6, generated_tokens=5, num_samples=4
  )
  assert answers.flops([100], [6 + 4 * 5]) == float(expected)
