"""Models and prompts of `jaxlab sample`, and what draws samples of a batch of prompts."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from jaxlab import samplers
from jaxlab.commands import decoders, program, text_nudging
from jaxlab.commands.answers import Sampled
from jaxlab.commands.decoders import Method, Prompts
from jaxlab.commands.examples import prompt_tokens
from jaxlab.commands.judges import Judge
from jaxlab.commands.rows import Row, parse_prompt
from jaxlab.data.records import FileRecord
from jaxlab.data.tokenizers import Tokenizer, pad_sequences
from jaxlab.experiment import UsageError
from jaxlab.models import DecoderConfig, DecoderLM
from jaxlab.models.pretrained_files import existing_directory, read_json
from jaxlab.samplers import DecodeFns
from jaxlab.training.mesh import shard_batch
from jaxlab.training.state import num_params

_CLAUSE_ENDS = ",.?:;!\n"
# `(key, entries) -> samples` of at most a batch of prompts.
Sampler = Callable[[chex.PRNGKey, Sequence["Entry"]], list[Sampled]]


class Side(NamedTuple):
  """A model without its weights.

  Attributes:
    flag: that names its directory.
    directory: where it is.
    architecture: of the model.
    tokenizer: of the model.
    end_tokens: tokens that end a text.
  """

  flag: str
  directory: str
  architecture: DecoderConfig
  tokenizer: Tokenizer
  end_tokens: tuple[int, ...]


class Weights(NamedTuple):
  """A model with its weights.

  Attributes:
    decode_fns: the model.
    params: its parameters.
    num_params: how many.
  """

  decode_fns: DecodeFns
  params: chex.ArrayTree
  num_params: int


class Entry(NamedTuple):
  """A prompt.

  Attributes:
    row: of the file.
    tokens: as each model reads it, int32 `[T]`.
  """

  row: Row
  tokens: tuple[np.ndarray, ...]


def read_side(flag: str, directory: str) -> Side:
  """Reads all of a model but its weights.

  Args:
    flag: that names the directory.
    directory: in the layout of Hugging Face.

  Returns:
    The `Side`.

  Raises:
    UsageError: naming flag and directory.
  """
  architecture = program.read_architecture(directory, flag=flag)
  tokenizer = program.read_tokenizer(directory, flag=flag)
  ends = program.end_tokens(directory, tokenizer, architecture.vocab_size)
  return Side(flag, directory, architecture, tokenizer, ends)


def read_weights(side: Side, mesh: jax.sharding.Mesh, *, dtype: Any, adapter: str | None = None):
  """Reads the weights of a model.

  Args:
    side: the model.
    mesh: the devices.
    dtype: of parameters and computation.
    adapter: directory of low-rank adapters, or None.

  Returns:
    The `Weights`.

  Raises:
    UsageError: as `program.read_params`.
  """
  params = program.read_params(side.directory, mesh, dtype=dtype, adapter=adapter, flag=side.flag)
  model = DecoderLM(side.architecture, dtype=dtype, param_dtype=dtype)
  return Weights(samplers.flax_decode_fns(model, params), params, num_params(params))


def other_token(first: Side, second: Side) -> str | None:
  """What tells two vocabularies apart.

  Args:
    first: a model.
    second: another.

  Returns:
    A token and its numbers in both, or None if they are equal.
  """
  ours, theirs = (_vocabulary(side.directory) for side in (first, second))
  for token in {**ours, **theirs}:
    if ours.get(token) != theirs.get(token):
      places = (
        f"{vocabulary.get(token, 'missing')} in --{side.flag}={side.directory}"
        for side, vocabulary in ((first, ours), (second, theirs))
      )
      return f"token {token!r} is {', '.join(places)}"
  return None


def _vocabulary(directory: str) -> dict[str, int]:
  content = read_json(existing_directory(directory) / "tokenizer.json")
  vocabulary = content["model"]["vocab"]
  if isinstance(vocabulary, list):  # Pieces with their scores.
    vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
  return vocabulary | {token["content"]: token["id"] for token in content.get("added_tokens", [])}


def entry_parser(
  sides: Sequence[Side], *, method: Method, max_new_tokens: int
) -> Callable[[FileRecord], Entry]:
  """A function that makes prompts of the rows of a file.

  Args:
    sides: the models.
    method: of sampling; in nudging every model reads the prompt in its own template.
    max_new_tokens: longest sample, which the prompt leaves room for.

  Returns:
    `record -> Entry`, which raises ValueError for a prompt that cannot be used.

  Raises:
    UsageError: if there is no room for a prompt.
  """
  for side in sides:
    if side.architecture.max_positions <= max_new_tokens:
      raise UsageError(
        f"--max_new_tokens={max_new_tokens} leaves no room for a prompt in the context of "
        f"{side.architecture.max_positions} tokens of --{side.flag}={side.directory}."
      )
  longest = [side.architecture.max_positions - max_new_tokens for side in sides]
  if method != "nudging":
    sides, longest = sides[:1], [min(longest)]

  def parse(record: FileRecord) -> Entry:
    row = parse_prompt(record)
    tokens = (
      prompt_tokens(
        row.prompt, side.tokenizer, vocab_size=side.architecture.vocab_size, max_length=most
      )
      for side, most in zip(sides, longest)
    )
    return Entry(row, tuple(tokens))

  return parse


class BatchSampler:
  """Samples of a method that is one program for a batch, compiled for few widths of prompts."""

  def __init__(
    self,
    sides: Sequence[Side],
    models: Sequence[DecodeFns],
    mesh: jax.sharding.Mesh,
    *,
    method: Method,
    batch_size: int,
    num_samples: int,
    max_new_tokens: int,
    options: dict[str, Any],
    judge: Judge | None,
  ):
    """Takes the models.

    Args:
      sides: the models, of one vocabulary.
      models: the same with weights.
      mesh: the devices, over which batches are split.
      method: of sampling.
      batch_size: prompts of a batch.
      num_samples: samples of each.
      max_new_tokens: longest sample.
      options: of the method.
      judge: of rain, else None.
    """
    self._sides, self._mesh, self._judge, self._batch_size = sides, mesh, judge, batch_size
    sizes = {side.architecture.vocab_size for side in sides}
    if len(sizes) > 1:
      models = [decoders.with_vocabulary(model, min(sizes)) for model in models]
    self._models = tuple(models)
    # What the other model calls the end of a text ends it, unless the text is the first one's.
    writers = sides[:1] if method == "speculative" else sides
    ends = {token for side in writers for token in side.end_tokens if token < min(sizes)}
    self._end_tokens = tuple(sorted(ends))
    longest = [side.architecture.max_positions - max_new_tokens for side in sides]
    self._longest = longest if method == "nudging" else [min(longest)]
    self._program = jax.jit(
      decoders.build_program(
        method,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        end_tokens=self._end_tokens,
        options=options,
        clause_ends=_clause_ends(sides[0].tokenizer),
        evaluate=judge.evaluate if judge else None,
      )
    )

  def __call__(self, key: chex.PRNGKey, entries: Sequence[Entry]) -> list[Sampled]:
    """Samples of at most a batch of prompts; missing ones are filled up with copies."""
    batch = [*entries, *[entries[0]] * (self._batch_size - len(entries))]
    prompts = []
    for i, most in enumerate(self._longest):
      tokens = [entry.tokens[i] for entry in batch]
      width = program.bucket_length(max(map(len, tokens)), most=most)
      prompts.append(Prompts(*pad_sequences(tokens, length=width)))
    rows = np.arange(len(batch), dtype=np.int32)
    if self._judge is not None:
      self._judge.begin([entry.row for entry in batch])
    inputs = shard_batch((tuple(prompts), rows), self._mesh)
    draws = jax.device_get(self._program(key, self._models, *inputs))
    unscored = self._judge.finish() if self._judge is not None else None
    return [self._sampled(draws, i, unscored) for i in range(len(entries))]

  def _sampled(self, draws: decoders.Draws, i: int, unscored: list[int] | None) -> Sampled:
    side, lengths = self._sides[0], draws.lengths[i]
    rows = [tokens[:length] for tokens, length in zip(draws.tokens[i], lengths)]
    with program.usage_errors(f"--{side.flag}={side.directory}"):
      texts = [side.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    notes = {name: values[i].tolist() for name, values in draws.notes.items()}
    return Sampled(
      texts,
      lengths.tolist(),
      draws.log_probs[i].tolist(),
      [len(row) > 0 and int(row[-1]) in self._end_tokens for row in rows],
      tuple(int(count[i]) for count in draws.reads),
      notes if unscored is None else {**notes, "unscored": int(unscored[i])},
    )


def _clause_ends(tokenizer: Tokenizer) -> tuple[int, ...]:
  """The marks that are tokens."""
  marks = (tokenizer.encode(mark, add_special_tokens=False) for mark in _CLAUSE_ENDS)
  return tuple(sorted({tokens[0] for tokens in marks if len(tokens) == 1}))


class TextSampler:
  """Nudging of models that have vocabularies of their own: prompt by prompt, through the text."""

  def __init__(
    self,
    sides: Sequence[Side],
    models: Sequence[DecodeFns],
    *,
    max_new_tokens: int,
    options: dict[str, Any],
  ):
    """Takes the models.

    Args:
      sides: the base model and the nudging one.
      models: the same with weights.
      max_new_tokens: longest sample.
      options: of `samplers.nudged_generate_text`.
    """
    look_ahead = options.get("look_ahead", text_nudging.LOOK_AHEAD)
    for side in sides:
      if look_ahead >= side.architecture.max_positions:
        raise UsageError(
          f"--look_ahead={look_ahead} leaves no room for a prompt in the context of "
          f"{side.architecture.max_positions} tokens of --{side.flag}={side.directory}."
        )
    self._base, self._model = sides[0], models[0]
    self._writers = [
      text_nudging.Writer(
        model,
        side.tokenizer,
        max_positions=side.architecture.max_positions,
        end_tokens=side.end_tokens,
        look_ahead=look_ahead,
      )
      for side, model in zip(sides, models)
    ]
    self._options = {**options, "max_new_tokens": max_new_tokens, "look_ahead": look_ahead}
    self._score = jax.jit(samplers.score_sequences)

  def __call__(self, key: chex.PRNGKey, entries: Sequence[Entry]) -> list[Sampled]:
    """A text for each prompt; nothing is drawn."""
    del key
    return [self._sampled(entry) for entry in entries]

  def _sampled(self, entry: Entry) -> Sampled:
    side = self._base
    with program.usage_errors(entry.row.place):
      nudged = text_nudging.nudge(
        *self._writers, entry.row.prompt, side.tokenizer, options=self._options
      )
    return Sampled(
      [nudged.text],
      [len(nudged.tokens)],
      [self._log_prob(entry.tokens[0], nudged.tokens)],
      [nudged.finished],
      nudged.reads,
      {"nudged_share": [nudged.nudged_share]},
    )

  def _log_prob(self, prompt: np.ndarray, tokens: Sequence[int]) -> float:
    length, most = len(prompt) + len(tokens), self._base.architecture.max_positions
    if length > most:  # The model cannot read all of it.
      return math.nan
    width = program.bucket_length(length, most=most)
    rows = pad_sequences([[*prompt, *tokens]], length=width)
    return float(np.sum(self._score(self._model, *rows, np.array([len(prompt)], np.int32))))
