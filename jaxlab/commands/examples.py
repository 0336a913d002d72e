"""JSONL files of prompts and responses, as padded batches with loss masks.

Columns are those that the field uses:

  supervised   prompt, response (or completion); or messages
  pairs        prompt, chosen, rejected
  unpaired     prompt, response (or completion), label; or pairs

Each of them but the label is text, or a list of messages with role and content, which the chat
template writes out. Pairs of messages may leave out the prompt: it is what both begin with.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlab.commands.program import bucket_length, check_vocabulary, encode_prompt
from jaxlab.data.tokenizers import Tokenizer, encode_chat
from jaxlab.experiment import UsageError

Kind = Literal["supervised", "pairs", "unpaired"]
Text = str | list[dict[str, Any]]


class Row(NamedTuple):
  """What one line says, in part if it has several examples.

  Attributes:
    line: its number.
    prompt: text or messages; messages may be none.
    responses: one, or the chosen and the rejected one; of the type of the prompt.
    label: whether the response is a good one.
  """

  line: int
  prompt: Text
  responses: tuple[Text, ...]
  label: bool = True


class Example(NamedTuple):
  """A row as tokens.

  Attributes:
    line: number of its line.
    tokens: a sequence for each response, int32 `[T]`.
    masks: True on the tokens of the response, its end included; bool `[T]`.
    label: whether the response is a good one.
  """

  line: int
  tokens: tuple[np.ndarray, ...]
  masks: tuple[np.ndarray, ...]
  label: bool


def read_rows(path: str | os.PathLike, kind: Kind) -> list[Row]:
  """Reads a JSONL file; empty lines are passed over.

  Args:
    path: the file.
    kind: which columns it must have. The rows of "unpaired" have two responses: the second is that
      of the next row with another prompt.

  Returns:
    The rows.

  Raises:
    UsageError: if there is no such file or no row, or a line is not JSON, lacks a column or holds
      what cannot be learnt from; names file, line and column.
  """
  rows = []
  try:
    with open(path, encoding="utf-8") as file:
      for number, text in enumerate(file, 1):
        if text.strip():
          rows += _parse_line(path, number, text, kind)
  except (OSError, UnicodeDecodeError) as error:
    raise UsageError(f"--data={path} cannot be read: {error}") from error
  if not rows:
    raise UsageError(f"--data={path} has no rows.")
  return _with_mismatched(path, rows) if kind == "unpaired" else rows


def _parse_line(path, number: int, text: str, kind: Kind) -> list[Row]:
  try:
    columns = json.loads(text)
  except json.JSONDecodeError as error:
    raise UsageError(f"{path}, line {number} is not JSON: {error.msg} at {error.colno}.") from error
  try:
    if not isinstance(columns, dict):
      raise ValueError(f"must be an object of columns, got {type(columns).__name__}.")
    return [Row(number, *fields) for fields in _PARSERS[kind](columns)]
  except ValueError as error:
    raise UsageError(f"{path}, line {number}: {error}") from error


def _supervised(columns: dict[str, Any]) -> list[tuple]:
  if "messages" in columns:
    return [([], (_response(columns, "messages"),))]
  return [_single(columns)]


def _single(columns: dict[str, Any]) -> tuple:
  name = "completion" if "completion" in columns else "response"
  prompt, response = _column(columns, "prompt"), _response(columns, name)
  _check_same_type(prompt, **{name: response})
  return prompt, (response,)


def _pairs(columns: dict[str, Any]) -> list[tuple]:
  chosen, rejected = _response(columns, "chosen"), _response(columns, "rejected")
  if "prompt" not in columns and isinstance(chosen, list) and isinstance(rejected, list):
    shared = _num_shared(chosen, rejected)
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not (prompt and chosen and rejected):
      raise ValueError("columns 'chosen' and 'rejected' must begin alike and end differently.")
  else:
    prompt = _column(columns, "prompt")
  _check_same_type(prompt, chosen=chosen, rejected=rejected)
  return [(prompt, (chosen, rejected))]


def _unpaired(columns: dict[str, Any]) -> list[tuple]:
  if "chosen" in columns:
    [(prompt, (chosen, rejected))] = _pairs(columns)
    return [(prompt, (chosen,), True), (prompt, (rejected,), False)]
  label = _require(columns, "label")
  if not isinstance(label, bool):
    raise ValueError(f"column 'label' must be true or false, got {label!r}.")
  return [(*_single(columns), label)]


_PARSERS = {"supervised": _supervised, "pairs": _pairs, "unpaired": _unpaired}


def _require(columns: dict[str, Any], name: str) -> Any:
  if name not in columns:
    raise ValueError(f"column {name!r} is missing; there are {', '.join(columns) or 'none'}.")
  return columns[name]


def _column(columns: dict[str, Any], name: str) -> Text:
  value = _require(columns, name)
  if not isinstance(value, str | list):
    raise ValueError(f"column {name!r} must be text or messages, got {type(value).__name__}.")
  if not value:
    raise ValueError(f"column {name!r} is empty.")
  for i, turn in enumerate(value if isinstance(value, list) else []):
    told = isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("role", "content"))
    if not told:
      raise ValueError(f"column {name!r}, message {i} must have role and content, both text.")
  return value


def _response(columns: dict[str, Any], name: str) -> Text:
  value = _column(columns, name)
  if isinstance(value, list):
    said = [turn["content"] for turn in value if turn["role"] == "assistant"]
    if not said:
      raise ValueError(f"column {name!r} has no turn of the assistant: nothing to learn from.")
    if "" in said:
      raise ValueError(f"column {name!r} has an empty turn of the assistant.")
  return value


def _check_same_type(prompt: Text, **responses: Text) -> None:
  for name, response in responses.items():
    if isinstance(response, str) != isinstance(prompt, str):
      raise ValueError(f"columns 'prompt' and {name!r} must both be text or both be messages.")


def _num_shared(some: Sequence[Any], others: Sequence[Any]) -> int:
  pairs = list(zip(some, others))
  return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _with_mismatched(path, rows: list[Row]) -> list[Row]:
  paired = []
  for i, row in enumerate(rows):
    others = (rows[(i + step) % len(rows)] for step in range(1, len(rows)))
    other = next((other for other in others if other.prompt != row.prompt), None)
    if other is None or isinstance(other.prompt, str) != isinstance(row.prompt, str):
      raise UsageError(f"--data={path}: responses without pairs need two prompts of one type.")
    paired.append(row._replace(responses=(*row.responses, *other.responses)))
  return paired


def encode_rows(
  path: str | os.PathLike,
  rows: Sequence[Row],
  tokenizer: Tokenizer,
  *,
  vocab_size: int,
  max_length: int,
) -> tuple[list[Example], int]:
  """Tokenizes rows.

  Args:
    path: the file that they are of, for messages.
    rows: what `read_rows` gave.
    tokenizer: of the model; text needs its `eos_token_id`, messages its `chat_template`.
    vocab_size: tokens of the model.
    max_length: a longer sequence is cut at the end.

  Returns:
    The examples, and how many of them were cut.

  Raises:
    UsageError: if a prompt leaves no room for its response, a token is outside the vocabulary, or
      text or template cannot be tokenized; names file and line.
  """
  examples, num_cut = [], 0
  for row in rows:
    try:
      pairs = [_encode(tokenizer, row.prompt, response) for response in row.responses]
      for tokens, mask in pairs:
        _check_sequence(tokens, mask, vocab_size, max_length)
    except (ImportError, ValueError) as error:
      raise UsageError(f"{path}, line {row.line}: {error}") from error
    num_cut += any(len(tokens) > max_length for tokens, _ in pairs)
    tokens, masks = zip(*[(tokens[:max_length], mask[:max_length]) for tokens, mask in pairs])
    examples.append(Example(row.line, tokens, masks, row.label))
  return examples, num_cut


def _encode(tokenizer: Tokenizer, prompt: Text, response: Text) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(response, list):
    tokens, mask = encode_chat(tokenizer, prompt + response)
    start = len(encode_chat(tokenizer, prompt).tokens) if prompt else 0
    # Nothing predicts the first token.
    return tokens, mask & (np.arange(len(tokens)) >= max(start, 1))
  if tokenizer.eos_token_id is None:
    raise ValueError("the tokenizer names no eos_token, so that a response would have no end.")
  before = encode_prompt(tokenizer, prompt)
  after = tokenizer.encode(response, add_special_tokens=False)
  if not before or not after:
    raise ValueError(f"the {'response' if before else 'prompt'} has no tokens.")
  tokens = np.asarray([*before, *after, tokenizer.eos_token_id], np.int32)
  return tokens, np.arange(len(tokens)) >= len(before)


def _check_sequence(tokens, mask, vocab_size: int, max_length: int) -> None:
  if not mask.any():
    raise ValueError("the response has no tokens.")
  check_vocabulary(tokens, vocab_size)
  num_before = int(mask.argmax())
  if num_before >= max_length:
    raise ValueError(
      f"the prompt has {num_before} tokens; a context of max_length {max_length} leaves nothing of "
      "the response."
    )


def split_examples(
  examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
  """Sets lines of the file aside, so that both answers to a prompt lie on one side.

  Args:
    examples: all examples.
    share: of the lines; above 0 it is at least one.
    seed: of the choice.

  Returns:
    Examples for training, and those held out.

  Raises:
    UsageError: if nothing is left for training.
  """
  lines = sorted({example.line for example in examples})
  num_held_out = max(1, round(share * len(lines))) if share > 0 else 0
  if num_held_out >= len(lines):
    raise UsageError(f"--eval_share={share} leaves nothing of {len(lines)} lines to train on.")
  held_out = set(np.random.RandomState(seed).permutation(lines)[:num_held_out].tolist())
  train = [example for example in examples if example.line not in held_out]
  return train, [example for example in examples if example.line in held_out]


class Batches:
  """Endless batches of examples of about the same length, in a new order every epoch.

  Step n depends on the arguments and n alone, so that the state is one number. What does not fill a
  batch of its length joins the next longer one; the last batch of an epoch is filled up with copies
  of weight 0.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_length: int,
    seed: int | None = None,
    references: np.ndarray | None = None,
  ):
    """Sorts the examples by length.

    Args:
      examples: at least one, all with k sequences.
      batch_size: rows of a batch, b.
      max_length: the largest width.
      seed: of the orders; None keeps the one given, in every epoch.
      references: log-probabilities of the sequences under the reference, float32 `[n, k]`.
    """
    self.steps_per_epoch = -(-len(examples) // batch_size)
    self._examples, self._references = examples, references
    self._batch_size, self._seed = batch_size, seed
    lengths = [max(map(len, example.tokens)) for example in examples]
    self._widths = np.array([bucket_length(length, most=max_length) for length in lengths])
    self._step, self._plan = 0, (-1, [])

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    epoch, position = divmod(self._step, self.steps_per_epoch)
    if self._plan[0] != epoch:
      self._plan = epoch, self._plan_epoch(epoch)
    self._step += 1
    return self._collate(*self._plan[1][position])

  def get_state(self) -> dict[str, int]:
    """The position: the next batch is the first one not returned yet."""
    return {"step": self._step}

  def set_state(self, state: dict[str, int]) -> None:
    """Moves to a position."""
    self._step = state["step"]

  def epoch(self) -> Iterator[dict[str, np.ndarray]]:
    """The batches of the first epoch, wherever the iterator stands."""
    for indices, num_real in self._plan_epoch(0):
      yield self._collate(indices, num_real)

  def _plan_epoch(self, epoch: int) -> list[tuple[np.ndarray, int]]:
    """Rows of each batch, and how many of them are no copies."""
    size, order = self._batch_size, np.arange(len(self._examples))
    if self._seed is not None:
      random = np.random.RandomState([self._seed, epoch])
      random.shuffle(order)
    # Stable: of equal widths the order stays.
    by_width = order[np.argsort(self._widths[order], kind="stable")]
    cuts = [by_width[i : i + size] for i in range(0, len(order), size)]
    plan = [(np.concatenate([cut, np.resize(order, size - len(cut))]), len(cut)) for cut in cuts]
    if self._seed is not None:
      plan = [plan[i] for i in random.permutation(len(plan))]
    return plan

  def _collate(self, indices: np.ndarray, num_real: int) -> dict[str, np.ndarray]:
    rows = [self._examples[i] for i in indices]
    shape = (len(rows), len(rows[0].tokens), int(self._widths[indices].max()))
    batch = {
      "tokens": np.zeros(shape, np.int32),
      "mask": np.zeros(shape, bool),
      "weight": (np.arange(len(rows)) < num_real).astype(np.float32),
      "label": np.array([row.label for row in rows]),
      "index": indices.astype(np.int32),
    }
    for i, row in enumerate(rows):
      for j, (tokens, mask) in enumerate(zip(row.tokens, row.masks)):
        batch["tokens"][i, j, : len(tokens)] = tokens
        batch["mask"][i, j, : len(mask)] = mask
    if self._references is not None:
      batch["reference"] = self._references[indices]
    return batch
