"""Answers in samples, votes and confidence among them, and what of this a line of a file says."""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab import samplers
from jaxlab.commands import verifiers
from jaxlab.commands.rows import Row
from jaxlab.commands.verifiers import Verifier

_CHOOSING = ("majority", "rpc")
# Columns of a line; a file of prompts may be what an earlier run wrote.
_OWN = (
  "line", "samples", "answers", "votes", "confidence", "log_probs", "num_tokens", "finished",
  "chosen", "correct", "verdict", "cost", "visits", "unscored", "nudged_share", "large_share",
  "acceptance_rate",
)  # fmt: skip


class Sampled(NamedTuple):
  """The samples of a prompt.

  Attributes:
    texts: their texts, n of them.
    num_tokens: their tokens, those that ended them included.
    log_probs: their log-probabilities in nats; NaN where there is none.
    finished: whether they ended by themselves.
    reads: tokens that each model read or wrote for all of them.
    notes: what else the method says of each, by name.
  """

  texts: list[str]
  num_tokens: list[int]
  log_probs: list[float]
  finished: list[bool]
  reads: tuple[int, ...]
  notes: dict[str, list[Any]]


def find_answers(
  texts: Sequence[str], find: Callable[[str], str | None] | None
) -> list[str | None]:
  """The answers of samples.

  Args:
    texts: the samples.
    find: `text -> answer`, or None where all of a text, without spaces around, is the answer.

  Returns:
    The answers; None where there is none or it is empty.
  """
  return [(text.strip() if find is None else find(text)) or None for text in texts]


def number(values: Sequence[str | None]) -> list[int]:
  """Equal numbers for equal values, in the order in which they come first, and -1 for None."""
  known = {value: i for i, value in enumerate(dict.fromkeys(v for v in values if v is not None))}
  return [-1 if value is None else known[value] for value in values]


def mean_log_probs(log_probs: Sequence[float | None], num_tokens: Sequence[int]) -> np.ndarray:
  """Log-probability per token of each sample.

  Args:
    log_probs: log-probabilities of samples in nats, None or NaN where there is none.
    num_tokens: their tokens.

  Returns:
    float32 `[n]`, at most 0; NaN where there is none.
  """
  sums = np.array([math.nan if score is None else score for score in log_probs], np.float32)
  return np.minimum(sums / np.maximum(np.asarray(num_tokens, np.float32), 1), 0)


@functools.partial(jax.jit, static_argnames="method")
def confidence_in(
  answers: jax.Array, texts: jax.Array, scores: jax.Array, *, method: str
) -> tuple[jax.Array, jax.Array]:
  """Confidence in the answer of each sample of a prompt, and which sample is chosen.

  Args:
    answers: answers of samples as numbers, -1 for none, i32 `[n]`.
    texts: texts as numbers, i32 `[n]`.
    scores: mean log-probability of a token of each, `[n]`.
    method: "majority", the share of votes; "rpc", the share in the probabilities of the distinct
      texts that are not improbable; else the probability per token of the sample itself.

  Returns:
    Confidence, `[n]`, 0 without an answer for the first two, and the first sample of the answer of
    the most confidence, i32 `[]`.
  """
  if method == "rpc":
    # A sample without an answer tells nothing of those that have one.
    options = {"path_ids": texts, "mask": answers >= 0}
    confidence = samplers.pruned_consistency_confidence(answers, scores, **options)
  elif method == "majority":
    confidence = samplers.self_consistency_confidence(answers)
  else:
    confidence = jax.numpy.exp(scores)
  return confidence, samplers.best_of_n(confidence, mask=answers >= 0)


def output_lines(
  rows: Sequence[Row],
  sampled: Sequence[Sampled],
  *,
  method: str,
  find: Callable[[str], str | None] | None,
  verifier: Verifier | None,
  num_params: Sequence[int],
  prompt_tokens: Sequence[int],
) -> list[dict[str, Any]]:
  """What the file says of prompts and their samples, one object each.

  Args:
    rows: of the prompts.
    sampled: their samples, all of one number.
    method: of `jaxlab sample`.
    find: as in `find_answers`.
    verifier: gives the column "verdict", or None.
    num_params: parameters of each model.
    prompt_tokens: tokens of each prompt.

  Returns:
    The objects, with the other columns of the rows.

  Raises:
    UsageError: if the verifier fails; names file and line.
  """
  return [
    _line(
      row,
      item,
      find_answers(item.texts, find),
      method=method,
      verifier=verifier,
      num_params=num_params,
      prompt_tokens=size,
    )
    for row, item, size in zip(rows, sampled, prompt_tokens, strict=True)
  ]


def _line(
  row: Row, item: Sampled, answers, *, method, verifier, num_params, prompt_tokens
) -> dict[str, Any]:
  confidence, chosen = _confidence(item, answers, method)
  line = {
    **{name: value for name, value in row.columns.items() if name not in _OWN},
    "line": row.line,
    "samples": item.texts,
    "answers": answers,
    "votes": [answers.count(answer) if answer is not None else 0 for answer in answers],
    "confidence": confidence,
    "log_probs": _finite(item.log_probs),
    "num_tokens": item.num_tokens,
    "finished": item.finished,
    **item.notes,
  }
  if method in _CHOOSING:
    line["chosen"] = None
    if answers[chosen] is not None:
      values = chosen, answers[chosen], confidence[chosen]
      line["chosen"] = dict(zip(("index", "answer", "confidence"), values))
  if row.columns.get("answer") is not None:
    line["correct"] = [
      answer is not None and verifiers.is_answer(answer, row.columns) for answer in answers
    ]
  if verifier is not None:
    rewards = verifiers.score(verifier, item.texts, [row] * len(item.texts))
    line["verdict"] = _finite(rewards.tolist())
  line["cost"] = {
    "flops": flops(num_params, item.reads),
    "prompt_tokens": prompt_tokens,
    "generated_tokens": sum(item.num_tokens),
  }
  return line


def _confidence(item: Sampled, answers, method: str) -> tuple[list[float | None], int]:
  numbers = (np.array(number(values), np.int32) for values in (answers, item.texts))
  scores = mean_log_probs(item.log_probs, item.num_tokens)
  values, chosen = jax.device_get(confidence_in(*numbers, scores, method=method))
  return _finite(values.tolist()), int(chosen)


def flops(num_params: Sequence[int], reads: Sequence[int]) -> float:
  """Floating-point operations of models: two per parameter and token that one reads or writes.

  Args:
    num_params: parameters of each model.
    reads: tokens of each.

  Returns:
    The sum, as `metrics.inference_flops` counts one model.
  """
  return 2.0 * sum(params * tokens for params, tokens in zip(num_params, reads, strict=True))


def _finite(values: Sequence[float]) -> list[float | None]:
  """JSON has no NaN."""
  return [value if math.isfinite(value) else None for value in values]


def totals(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
  """What the lines of a file come to.

  Args:
    lines: of `output_lines`.

  Returns:
    Numbers by what they count; shares of right samples and choices are those among prompts that
    have the column "answer", and are left out where there is none.
  """
  counts: collections.Counter[str] = collections.Counter()
  right, right_choices = [], []
  for line in lines:
    answers = line["answers"]
    counts["prompts"] += 1
    counts["samples"] += len(answers)
    counts["samples without an answer"] += answers.count(None)
    counts["prompts without an answer"] += not any(answers)
    counts["prompts whose samples are alike"] += len(answers) > 1 and len(set(line["samples"])) == 1
    counts["texts without a verdict"] += line.get("unscored", 0) + line.get("verdict", []).count(
      None
    )
    for name in ("prompt_tokens", "generated_tokens", "flops"):
      counts[name.replace("_", " ")] += line["cost"][name]
    if "correct" in line:
      right.append(np.mean(line["correct"]))
      if "chosen" in line:
        chosen = line["chosen"]
        right_choices.append(chosen is not None and line["correct"][chosen["index"]])
  shares = {"right samples": right, "right choices": right_choices}
  return dict(counts) | {name: float(np.mean(x)) for name, x in shares.items() if x}
