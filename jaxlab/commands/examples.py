"""Rows of prompts and responses as tokens, in padded batches with loss masks."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.commands.program import (
  bucket_length,
  check_vocabulary,
  encode_conversation,
  encode_prompt,
)
from jaxlab.commands.rows import Row, Text
from jaxlab.data.tokenizers import Tokenizer, encode_chat
from jaxlab.experiment import UsageError


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


def encode_rows(
  rows: Sequence[Row],
  tokenizer: Tokenizer,
  *,
  vocab_size: int,
  max_length: int,
) -> tuple[list[Example], int]:
  """Tokenizes rows.

  Args:
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
      raise UsageError(f"{row.place}: {error}") from error
    num_cut += any(len(tokens) > max_length for tokens, _ in pairs)
    tokens, masks = zip(*[(tokens[:max_length], mask[:max_length]) for tokens, mask in pairs])
    examples.append(Example(row.line, tokens, masks, row.label))
  return examples, num_cut


def encode_prompts(
  rows: Sequence[Row], tokenizer: Tokenizer, *, vocab_size: int, max_length: int
) -> list[Example]:
  """Tokenizes prompts up to where a response begins.

  Args:
    rows: what `read_rows` gave for "prompts".
    tokenizer: of the model; messages need its `chat_template`.
    vocab_size: tokens of the model.
    max_length: the longest prompt that leaves room for a response.

  Returns:
    Examples with one sequence, all of it in the mask.

  Raises:
    UsageError: if a prompt has no tokens or too many, a token is outside the vocabulary, or text or
      template cannot be tokenized; names file and line.
  """
  examples = []
  for row in rows:
    try:
      tokens = prompt_tokens(row.prompt, tokenizer, vocab_size=vocab_size, max_length=max_length)
    except (ImportError, ValueError) as error:
      raise UsageError(f"{row.place}: {error}") from error
    examples.append(Example(row.line, (tokens,), (np.ones(len(tokens), bool),), True))
  return examples


def prompt_tokens(
  prompt: Text, tokenizer: Tokenizer, *, vocab_size: int, max_length: int
) -> np.ndarray:
  """Tokenizes a prompt up to where a response begins.

  Args:
    prompt: text or messages.
    tokenizer: of the model; messages need its `chat_template`.
    vocab_size: tokens of the model.
    max_length: the longest prompt that leaves room for a response.

  Returns:
    Token ids, int32 `[T]`.

  Raises:
    ValueError: if there are no tokens or too many, one is outside the vocabulary, or text or
      template cannot be tokenized.
    ImportError: if the template needs a package that is not installed.
  """
  encode = encode_prompt if isinstance(prompt, str) else encode_conversation
  tokens = np.asarray(encode(tokenizer, prompt), np.int32)
  if not 1 <= len(tokens) <= max_length:
    raise ValueError(f"the prompt has {len(tokens)} tokens; it must have 1 to {max_length}.")
  check_vocabulary(tokens, vocab_size)
  return tokens


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
  if not after or (prompt and not before):
    raise ValueError(f"the {'prompt' if after else 'response'} has no tokens.")
  end = [] if after[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
  tokens = np.asarray([*before, *after, *end], np.int32)
  # Nothing predicts the first token.
  return tokens, np.arange(len(tokens)) >= max(len(before), 1)


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
