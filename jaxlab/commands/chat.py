"""Talks to a language model in a Hugging Face directory (GPT-2, Llama, Mistral, Qwen2, Qwen3).

  jaxlab chat --checkpoint=DIR
  jaxlab chat --checkpoint=DIR --prompt="..." --num_samples=4

Without --prompt it reads lines. With a chat template they make a conversation, which /reset begins
anew; without one, or with --raw, each line is a prompt of its own. The end of the input ends it.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_range
from jaxlab.commands import program
from jaxlab.data.tokenizers import Tokenizer, pad_sequences
from jaxlab.experiment import UsageError
from jaxlab.models import DecoderConfig, DecoderLM
from jaxlab.samplers import flax_decode_fns, generate_n
from jaxlab.training.mesh import make_mesh, replicate

REQUIRED = ("checkpoint",)
_RESET = "/reset"


@dataclasses.dataclass(frozen=True)
class Config:
  """What to talk to, and how it answers."""

  checkpoint: str = ""  # Directory of the model: config.json, safetensors, tokenizer.json.
  adapter: str | None = None  # Directory of low-rank adapters in peft's format, added to the model.
  prompt: str | None = None  # Answer this and stop; none reads lines.
  raw: bool = False  # Continue the text as it is, without the chat template.
  system: str | None = None  # Message of the system before the conversation.
  temperature: float = 1.0  # 0 takes the most probable token.
  top_k: int | None = None  # Draw among the k most probable tokens.
  top_p: float | None = None  # Draw among the fewest tokens that hold this mass.
  max_new_tokens: int = 128  # Longest answer.
  num_samples: int = 1  # Answers to --prompt.
  seed: int = 0  # Of the draws.
  bfloat16: bool = False  # Keep parameters and compute in bfloat16.
  model_parallel: int = 1  # Devices that share the parameters.

  def __post_init__(self):
    check_range("temperature", self.temperature, "[0, inf)")
    check_range("seed", self.seed, "[0, 4294967295]")
    if self.top_p is not None:
      check_range("top_p", self.top_p, "(0, 1]")
    for name in ("top_k", "max_new_tokens", "num_samples", "model_parallel"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
    if self.num_samples > 1 and self.prompt is None:
      raise ValueError(f"num_samples {self.num_samples} goes with a prompt only.")


def run(config: Config) -> int:
  """Answers the prompt, or the lines of the input.

  Args:
    config: what to talk to, and how it answers.

  Returns:
    The exit status.

  Raises:
    UsageError: if the checkpoint, its template or the prompt cannot be used.
  """
  architecture = program.read_architecture(config.checkpoint)
  encoder = _Encoder(config, architecture, program.read_tokenizer(config.checkpoint))
  # A prompt that cannot be used is known before the weights are read.
  tokens = None if config.prompt is None else encoder([config.prompt])
  answerer = _Answerer(config, architecture, encoder.tokenizer)
  try:
    if tokens is None:
      _answer_lines(encoder, answerer)
    else:
      answers = answerer(tokens)
      for i, answer in enumerate(answers):
        print(answer if len(answers) == 1 else f"[{i + 1}] {answer}", flush=True)
  finally:
    if answerer.num_tokens:
      rate = answerer.num_tokens / answerer.seconds
      print(
        f"{answerer.num_tokens} tokens in {answerer.seconds:.2f} s, {rate:.1f} tokens/s",
        file=sys.stderr,
      )
  return 0


def _answer_lines(encoder, answerer) -> None:
  """A conversation; what cannot be answered is named and left out of it."""
  turns: list[str] = []
  for line in _lines():
    if line.strip() == _RESET:
      turns = []
      continue
    try:
      answer = answerer(encoder([*turns, line]))[0]
    except UsageError as error:
      print(f"error: {error}", file=sys.stderr)
      continue
    print(answer, flush=True)
    turns += [line, answer]


def _lines() -> Iterator[str]:
  sign = "> " if sys.stdin.isatty() else ""
  while True:
    try:
      yield input(sign)
    except EOFError:
      return


class _Encoder:
  """Turns of a conversation, the person's and the model's in alternation, as tokens."""

  def __init__(self, config: Config, architecture: DecoderConfig, tokenizer: Tokenizer):
    self.tokenizer = tokenizer
    self._config, self._architecture = config, architecture
    self._templated = tokenizer.chat_template is not None and not config.raw
    if config.system is not None and not self._templated:
      raise UsageError("--system needs a chat template, and none is used.")
    if _longest_prompt(config, architecture) < 1:
      raise UsageError(
        f"--max_new_tokens={config.max_new_tokens} leaves no room for a prompt in the context of "
        f"{architecture.max_positions} tokens."
      )

  def __call__(self, turns: list[str]) -> list[int]:
    """Tokens of the prompt; without a template the last turn alone."""
    config, architecture = self._config, self._architecture
    if not turns[-1].strip():
      raise UsageError("the prompt is empty.")
    # Bytes that are no text come as halves of surrogate pairs.
    with program.usage_errors("the prompt is not UTF-8"):
      (turns[-1] + (config.system or "")).encode()
    part = ": its chat template" if self._templated else ""
    with program.usage_errors(f"--checkpoint={config.checkpoint}{part}"):
      if self._templated:
        tokens = program.encode_conversation(self.tokenizer, self._messages(turns))
      else:
        tokens = program.encode_prompt(self.tokenizer, turns[-1])
    if not tokens:
      raise UsageError("the prompt has no tokens.")
    if len(tokens) > _longest_prompt(config, architecture):
      raise UsageError(
        f"a prompt of {len(tokens)} tokens and max_new_tokens {config.max_new_tokens} exceed the "
        f"context of {architecture.max_positions} tokens; shorten one of them"
        f"{f', or begin anew with {_RESET}' if self._templated and len(turns) > 1 else ''}."
      )
    with program.usage_errors(f"--checkpoint={config.checkpoint}"):
      program.check_vocabulary(tokens, architecture.vocab_size)
    return tokens

  def _messages(self, turns: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    if self._config.system is not None:
      messages.insert(0, {"role": "system", "content": self._config.system})
    return messages


def _longest_prompt(config: Config, architecture: DecoderConfig) -> int:
  """Tokens that a prompt may have so that the answer fits into the context."""
  return architecture.max_positions - config.max_new_tokens


class _Answerer:
  """The model with its compiled programs, one for each bucket of prompt lengths.

  Attributes:
    num_tokens: how many were generated.
    seconds: how long that took, compilation not counted.
  """

  def __init__(self, config: Config, architecture: DecoderConfig, tokenizer: Tokenizer):
    self.num_tokens, self.seconds = 0, 0.0
    self._config, self._tokenizer = config, tokenizer
    self._longest = _longest_prompt(config, architecture)
    try:
      self._mesh = make_mesh({"model": config.model_parallel})
    except ValueError as error:
      raise UsageError(f"--model_parallel={config.model_parallel}: {error}.") from error
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
    params = program.read_params(config.checkpoint, self._mesh, dtype=dtype, adapter=config.adapter)
    model = DecoderLM(architecture, dtype=dtype, param_dtype=dtype)
    self._decode_fns = flax_decode_fns(model, params)
    self._generate = jax.jit(
      functools.partial(
        generate_n,
        num_samples=config.num_samples,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        eos_token_id=program.end_tokens(config.checkpoint, tokenizer, architecture.vocab_size),
      )
    )
    self._programs = {}
    self._num_calls = 0

  def __call__(self, tokens: list[int]) -> list[str]:
    """Answers a prompt `num_samples` times."""
    key = jax.random.fold_in(jax.random.key(self._config.seed), self._num_calls)
    self._num_calls += 1
    width = program.bucket_length(len(tokens), most=self._longest)
    inputs = replicate((key, *pad_sequences([tokens], length=width)), self._mesh)
    output = self._timed(width, *inputs)
    self.num_tokens += int(output.lengths.sum())
    with program.usage_errors(f"--checkpoint={self._config.checkpoint}"):
      return [
        self._tokenizer.decode(row[:length], skip_special_tokens=True)
        for row, length in zip(output.tokens[0], output.lengths[0])
      ]

  def _timed(self, width: int, key: chex.PRNGKey, *prompt: jax.Array):
    arguments = (key, self._decode_fns, *prompt)
    if width not in self._programs:
      self._programs[width] = self._generate.lower(*arguments).compile()
    started = time.perf_counter()
    output = jax.device_get(self._programs[width](*arguments))
    self.seconds += time.perf_counter() - started
    return output


if __name__ == "__main__":
  program.main(sys.modules[__name__], sys.argv)
