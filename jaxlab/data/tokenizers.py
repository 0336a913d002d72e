"""Text to tokens: the tokenizers and chat templates of pretrained models."""

import contextlib
import dataclasses
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab._checks import check_at_least
from jaxlab._extras import import_extra
from jaxlab._json import as_json, check_types, naming
from jaxlab.data.chat_templates import render_chat


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer with the special tokens of its model.

  Attributes:
    encode: text -> list of token ids, `encode(text, add_special_tokens=True)`; False adds none of
      the tokens that the tokenizer puts around a text.
    decode: token ids -> text, `decode(ids, skip_special_tokens=False)`.
    vocab_size: number of tokens, added ones included.
    bos_token_id: beginning of a sequence, None if there is none.
    eos_token_id: end of a sequence, None if there is none.
    pad_token_id: padding, None if there is none.
    chat_template: jinja template of a conversation, None if there is none.
    bos_token: text of the beginning, "" if there is none.
    eos_token: text of the end, "" if there is none.
  """

  encode: Callable[..., list[int]]
  decode: Callable[..., str]
  vocab_size: int
  bos_token_id: int | None = None
  eos_token_id: int | None = None
  pad_token_id: int | None = None
  chat_template: str | None = None
  bos_token: str = ""
  eos_token: str = ""


class EncodedChat(NamedTuple):
  """A conversation as tokens.

  Attributes:
    tokens: int32 `[T]`.
    loss_mask: True on the tokens of the assistant, bool `[T]`.
  """

  tokens: np.ndarray
  loss_mask: np.ndarray


class PaddedSequences(NamedTuple):
  """Sequences of several lengths in one array.

  Attributes:
    tokens: int32 `[b, T]`, padded on the right.
    lengths: int32 `[b]`.
  """

  tokens: np.ndarray
  lengths: np.ndarray


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
  """Reads the tokenizer of a Hugging Face directory.

  Its settings of truncation and padding are left out, as `transformers` does unless asked.

  Args:
    directory: holds `tokenizer.json`; `tokenizer_config.json`, `special_tokens_map.json` and
      `chat_template.jinja` are read if they exist; on conflicts earlier files win.

  Returns:
    The `Tokenizer`; its functions raise ValueError for what it cannot encode or decode.

  Raises:
    FileNotFoundError: if there is no `tokenizer.json`.
    ValueError: if a file is malformed or a special token is not in the vocabulary.
    ImportError: if the package tokenizers is not installed; names the extra.
  """
  directory = pathlib.Path(directory).expanduser()
  path = directory / "tokenizer.json"
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist.")
  tokenizers = import_extra("tokenizers", extra="text")
  with _library_errors(f"{path} is not a tokenizer"):
    core = tokenizers.Tokenizer.from_file(str(path))
    core.no_truncation()
    core.no_padding()

  settings = _read_settings(directory / "tokenizer_config.json")
  special = _special_tokens(directory, settings)
  ids = {name: None if text is None else core.token_to_id(text) for name, text in special.items()}
  unknown = {name: special[name] for name in ids if special[name] and ids[name] is None}
  if unknown:
    raise ValueError(f"{directory}: special tokens {unknown} are not in the vocabulary.")

  def encode(text: str, *, add_special_tokens: bool = True) -> list[int]:
    with _library_errors(f"the tokenizer cannot encode {reprlib.repr(text)}"):
      return core.encode(text, add_special_tokens=add_special_tokens).ids

  def decode(ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    with _library_errors("the tokenizer cannot decode its tokens"):
      return core.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

  return Tokenizer(
    encode,
    decode,
    core.get_vocab_size(with_added_tokens=True),
    ids["bos_token"],
    ids["eos_token"],
    ids["pad_token"],
    _chat_template(directory, settings),
    special["bos_token"] or "",
    special["eos_token"] or "",
  )


@contextlib.contextmanager
def _library_errors(subject: str) -> Iterator[None]:
  """The library raises bare exceptions, and panics, which are no `Exception`."""
  try:
    yield
  except BaseException as error:
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise ValueError(f"{subject}: {error}") from error
    raise


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  """The settings in a file, empty if there is no file."""
  if not path.is_file():
    return {}
  content = as_json(os.fspath(path), path.read_bytes())
  if not isinstance(content, dict):
    raise ValueError(f"{path} must hold an object, got {type(content).__name__}.")
  with naming(path):
    check_types(content, chat_template=(str, list), **dict.fromkeys(_SPECIAL, (str, dict)))
    for name in _SPECIAL:
      if isinstance(content.get(name), Mapping):
        check_types(content[name], content=str)
  return content


_SPECIAL = ("bos_token", "eos_token", "pad_token")


def _special_tokens(directory: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, str | None]:
  further = _read_settings(directory / "special_tokens_map.json")
  special = {}
  for name in _SPECIAL:
    entry = settings.get(name)
    entry = further.get(name) if entry is None else entry
    special[name] = entry.get("content") if isinstance(entry, Mapping) else entry
  return special


def _chat_template(directory: pathlib.Path, settings: Mapping[str, Any]) -> str | None:
  template = settings.get("chat_template")
  if isinstance(template, list):
    entries = [entry for entry in template if isinstance(entry, Mapping)]
    named = {str(entry.get("name")): entry.get("template") for entry in entries}
    if not isinstance(named.get("default"), str):
      raise ValueError(f"{directory}: chat templates {sorted(named)} have no 'default'.")
    template = named["default"]
  path = directory / "chat_template.jinja"
  if template is None and path.is_file():
    with naming(path):
      template = path.read_text(encoding="utf-8")
  return template


def encode_chat(
  tokenizer: Tokenizer, messages: list[dict[str, Any]], *, max_length: int | None = None
) -> EncodedChat:
  """Tokenizes a conversation and marks the assistant's tokens, including its end of turn.

  Args:
    tokenizer: has a `chat_template`.
    messages: turns, each with "role" and "content".
    max_length: longer conversations are truncated at the end; None truncates nothing.

  Returns:
    An `EncodedChat`.

  Raises:
    ValueError: if there is no template, `max_length` is below 1, or the text before an assistant's
      turn is not a prefix of the text with it (as in templates that rewrite earlier turns).
    ImportError: if the package jinja2 is not installed; names the extra.
  """
  if tokenizer.chat_template is None:
    raise ValueError("tokenizer must have a chat_template, got None.")
  check_at_least(1, max_length=max_length)

  def render(count, add_generation_prompt=False):
    return render_chat(
      tokenizer.chat_template,
      messages[:count],
      add_generation_prompt=add_generation_prompt,
      bos_token=tokenizer.bos_token,
      eos_token=tokenizer.eos_token,
    )

  def encode(text):
    return tokenizer.encode(text, add_special_tokens=False)

  whole = render(len(messages))
  tokens = np.asarray(encode(whole), np.int32)
  loss_mask = np.zeros(len(tokens), bool)
  for k, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before, after = render(k, add_generation_prompt=True), render(k + 1)
    if not (after.startswith(before) and whole.startswith(after)):
      raise ValueError(
        f"messages[{k}]: the text rendered before the turn is not a prefix of that with it."
      )
    # A token across a border belongs to the part after it.
    start, end = (_shared_prefix(encode(text), tokens) for text in (before, after))
    loss_mask[start:end] = True
  return EncodedChat(tokens[:max_length], loss_mask[:max_length])


def _shared_prefix(some: Sequence[int], others: np.ndarray) -> int:
  """Length of the common prefix of two sequences."""
  length = min(len(some), len(others))
  differs = np.asarray(some[:length], np.int32) != others[:length]
  return int(differs.argmax()) if differs.any() else length


def pad_sequences(
  sequences: Sequence[Sequence[int]], *, length: int | None = None, pad_token_id: int = 0
) -> PaddedSequences:
  """Puts sequences in one array, padded on the right.

  Decoders expect right padding: a pad token's slot is overwritten before any query sees it.

  Args:
    sequences: token ids, b sequences of any lengths.
    length: width T; None is that of the longest.
    pad_token_id: the padding token.

  Returns:
    A `PaddedSequences`.

  Raises:
    ValueError: if there is no sequence or one is longer than `length`.
  """
  if not len(sequences):
    raise ValueError("sequences must not be empty.")
  lengths = np.asarray([len(sequence) for sequence in sequences], np.int32)
  longest = int(lengths.max())
  width = longest if length is None else length
  if longest > width:
    raise ValueError(f"length {width} is shorter than a sequence of {longest} tokens.")
  tokens = np.full((len(sequences), width), pad_token_id, np.int32)
  for row, sequence in zip(tokens, sequences):
    row[: len(sequence)] = sequence
  return PaddedSequences(tokens, lengths)
