"""Nudging of models with vocabularies of their own, which share only the text."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab import samplers
from jaxlab.commands import program
from jaxlab.data.records import Text
from jaxlab.data.tokenizers import Tokenizer, pad_sequences
from jaxlab.samplers import Completion, DecodeFns, TextModel

LOOK_AHEAD = 16  # Tokens of one completion.
_CONTEXT = 8  # Tokens before a text with which it is decoded: a first token may lose its space.
_UNFINISHED = "\ufffd"  # What a part of a character is decoded to.


class Nudged(NamedTuple):
  """A text that two models wrote.

  Attributes:
    text: the text.
    tokens: of it, in the base model's vocabulary.
    finished: whether the nudging model ended it.
    reads: tokens that each model read or wrote for it.
    nudged_share: share of its characters that the nudging model wrote.
  """

  text: str
  tokens: list[int]
  finished: bool
  reads: tuple[int, int]
  nudged_share: float


class Writer:
  """A model that completes texts greedily, with one program a bucket of lengths.

  Attributes:
    num_read: tokens that it read or wrote.
    is_full: whether a text left no room for more in its context.
  """

  def __init__(
    self,
    decode_fns: DecodeFns,
    tokenizer: Tokenizer,
    *,
    max_positions: int,
    end_tokens: tuple[int, ...],
    look_ahead: int,
  ):
    """Takes the model.

    Args:
      decode_fns: the model.
      tokenizer: its tokenizer.
      max_positions: tokens of its context.
      end_tokens: tokens that end a text.
      look_ahead: tokens of one completion.
    """
    self.num_read, self.is_full = 0, False
    self._fns, self._tokenizer, self._ends = decode_fns, tokenizer, end_tokens
    self._longest = max_positions - look_ahead
    options = {"num_samples": 1, "max_new_tokens": look_ahead, "temperature": 0.0}
    complete = functools.partial(samplers.generate_n, eos_token_id=end_tokens, **options)
    self._generate = jax.jit(complete)

  def prompt(self, prompt: Text) -> tuple[str, TextModel]:
    """The text of a prompt, and the model that completes what begins with it.

    Args:
      prompt: text or messages.

    Returns:
      Both.
    """
    templated = not isinstance(prompt, str)
    text = program.render_conversation(self._tokenizer, prompt) if templated else prompt
    return text, TextModel(functools.partial(self._complete, not templated))

  def _complete(self, with_special: bool, text: str, max_tokens: int) -> Completion:
    tokenizer = self._tokenizer
    if with_special:
      tokens = program.encode_prompt(tokenizer, text)
    else:
      tokens = tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) > self._longest:
      self.is_full = True
      return Completion((), (), True)
    width = program.bucket_length(len(tokens), most=self._longest)
    prompt = pad_sequences([tokens], length=width)
    output = jax.device_get(self._generate(jax.random.key(0), self._fns, *prompt))
    new, log_probs = output.tokens[0, 0, :max_tokens], output.log_probs[0, 0]
    new = new[: output.lengths[0, 0]]
    self.num_read += len(tokens) + len(new)
    finished = len(new) > 0 and int(new[-1]) in self._ends
    new = new[:-1] if finished else new
    pieces = _pieces(tokenizer, tokens[-_CONTEXT:], new.tolist())
    return Completion(pieces, np.exp(log_probs[: len(new)]).tolist(), finished)


def _pieces(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
  """The texts of tokens, which join to their text; a part of a character has none of its own."""
  written = len(tokenizer.decode(before, skip_special_tokens=True))
  pieces = []
  for end in range(1, len(tokens) + 1):
    text = tokenizer.decode([*before, *tokens[:end]], skip_special_tokens=True)
    whole = not text.endswith(_UNFINISHED)
    pieces.append(text[written:] if whole else "")
    written = len(text) if whole else written
  return pieces


def nudge(
  base: Writer,
  nudging: Writer,
  prompt: Text,
  tokenizer: Tokenizer,
  *,
  options: dict[str, Any],
) -> Nudged:
  """Continues a prompt by `samplers.nudged_generate_text`.

  Args:
    base: the base model.
    nudging: the nudging model.
    prompt: text or messages, which each model reads in its own template.
    tokenizer: of the base model.
    options: of the function.

  Returns:
    The `Nudged` text. A model whose context is full ends it.
  """
  for writer in (base, nudging):
    writer.num_read, writer.is_full = 0, False
  (base_text, base_model), (nudging_text, nudging_model) = (
    base.prompt(prompt),
    nudging.prompt(prompt),
  )
  output = samplers.nudged_generate_text(
    base_model, nudging_model, base_text, nudging_text, **options
  )
  return Nudged(
    output.text,
    tokenizer.encode(output.text, add_special_tokens=False) if output.text else [],
    output.stop_reason == "finished" and not nudging.is_full,
    (base.num_read, nudging.num_read),
    min(sum(map(len, output.nudging_words)) / max(len(output.text), 1), 1.0),
  )
