"""What commands share: flags, exit statuses, the parts of a checkpoint, prompts as tokens.

A command is a module with

  __doc__     what it does; its help begins with it
  Config      a frozen dataclass; each field becomes a flag, its comment the flag's help
  REQUIRED    names of the fields that must be given
  run         (config) -> exit status
  POSITIONAL  (if it has it) name of the field that an argument without a name sets

and ends in `if __name__ == "__main__": program.main(sys.modules[__name__], sys.argv)`.

Exit status: 0 complete, 1 training broke down or the machine refused (a full disk), 2 the command
line, the data or the checkpoint cannot be used (and nothing was written), 130 and 143 stopped by
SIGINT and SIGTERM.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from jaxlab._checks import check_range
from jaxlab._json import check_types
from jaxlab.data.chat_templates import render_chat
from jaxlab.data.tokenizers import Tokenizer, load_tokenizer
from jaxlab.experiment import UsageError, stop_signals
from jaxlab.experiment import flags as config_flags
from jaxlab.experiment.wall import guard
from jaxlab.models import DecoderConfig, config_from_hf, load_adapter, load_pretrained
from jaxlab.models.pretrained_files import existing_directory, read_json
from jaxlab.weights import merge_low_rank

_FLAGS = {
  "debug": "Show the traceback of whatever ends the command.",
  "help": "Show this and stop.",
}
# Fields that name files; shells leave the `~` of --data=~/file alone.
_PATHS = (
  "adapter", "checkpoint", "data", "file", "labels", "out", "output", "probabilities", "prompts",
  "small", "table", "workdir",
)  # fmt: skip
_SHORTEST_BUCKET = 16
_INTEGERS = "[-2147483648, 4294967295]"  # What 32 bits hold, with a sign or as a seed.


def main(module: ModuleType, argv: Sequence[str]) -> None:
  """Runs a command as a program: parses the command line and exits with a status.

  Args:
    module: the command, `sys.modules[__name__]`.
    argv: the program's name and its flags.
  """
  logging.set_verbosity(logging.WARNING)  # Every checkpoint would report forty lines.
  if jax.config.jax_compilation_cache_dir is None:
    cache = pathlib.Path("~/.cache/jaxlab/xla").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))
  sys.exit(execute(module, argv))


def execute(module: ModuleType, argv: Sequence[str]) -> int:
  """Runs a command inside this process.

  Args:
    module: the command.
    argv: the program's name and its flags.

  Returns:
    The exit status.
  """

  def run() -> int:
    values = flags.FlagValues()
    for name, text in _FLAGS.items():
      config_flags.define_flag(values, name, bool, text)
    config_flags.define_config_flags(values, module.Config)
    config_flags.parse(values, argv, positional=getattr(module, "POSITIONAL", None))
    if values["help"].value:
      print(_help(module, values))
      return 0
    for field in dataclasses.fields(module.Config):
      if isinstance(values[field.name].value, int):
        with usage_errors("the flags"):
          check_range(field.name, values[field.name].value, _INTEGERS)
    config = config_flags.config_from_flags(values, module.Config())
    paths = {name: getattr(config, name, None) for name in _PATHS}
    expanded = {name: os.path.expanduser(path) for name, path in paths.items() if path}
    config = dataclasses.replace(config, **expanded)
    for name in module.REQUIRED:
      if not getattr(config, name):
        raise UsageError(f"--{name} must be given: {values[name].help}")
    with stop_signals():
      return module.run(config)

  return guard(
    run,
    debug="--debug" in argv,
    resume="the same command goes on." if hasattr(module.Config, "workdir") else "",
    advice="nothing was saved. Try a smaller --learning_rate.",
  )


def _help(module: ModuleType, values: flags.FlagValues) -> str:
  lines = [module.__doc__.strip(), "", "Flags:"]
  for field in dataclasses.fields(module.Config):
    required = field.name in module.REQUIRED
    default = "required" if required else config_flags.as_text(field.default)
    lines += config_flags.flag_help(values[field.name], default)
  for name in _FLAGS:
    lines += config_flags.flag_help(values[name], "")
  return "\n".join(lines)


@contextlib.contextmanager
def usage_errors(subject: str) -> Iterator[None]:
  """Turns what a library says of bad input into a `UsageError` that says of which.

  Args:
    subject: what is being read, the flag or the file.

  Raises:
    UsageError: for errors of values, files and missing packages.
  """
  try:
    yield
  except (ImportError, OSError, ValueError) as error:
    raise UsageError(f"{subject}: {error}") from error


def check_can_be_made(flag: str, directory: pathlib.Path) -> None:
  """Raises if a new directory cannot be made; leaves nothing behind.

  Args:
    flag: that names the directory.
    directory: which does not exist.

  Raises:
    UsageError: naming the flag, the directory and the system's reason.
  """
  directory = directory.absolute()
  above = next(parent for parent in directory.parents if os.path.lexists(parent))
  try:
    with tempfile.TemporaryDirectory(prefix=".", dir=above) as trial:
      (pathlib.Path(trial) / directory.relative_to(above)).mkdir(parents=True)
  except OSError as error:
    raise UsageError(f"--{flag}={directory} cannot be made: {error.strerror}.") from error


def read_architecture(directory: str | os.PathLike, *, flag: str = "checkpoint") -> DecoderConfig:
  """Reads what kind of model a directory holds.

  Args:
    directory: holds `config.json`.
    flag: that names the directory.

  Returns:
    The architecture.

  Raises:
    UsageError: if there is no such file or the model is of another family.
  """
  with usage_errors(f"--{flag}={directory}"):
    return config_from_hf(read_json(existing_directory(directory) / "config.json"))


def read_tokenizer(directory: str | os.PathLike, *, flag: str = "checkpoint") -> Tokenizer:
  """Reads the tokenizer of a directory.

  Args:
    directory: holds `tokenizer.json`.
    flag: that names the directory.

  Returns:
    The tokenizer.

  Raises:
    UsageError: if it is missing or malformed, or a package is not installed.
  """
  with usage_errors(f"--{flag}={directory}"):
    return load_tokenizer(directory)


def read_params(
  directory: str | os.PathLike,
  mesh: jax.sharding.Mesh,
  *,
  dtype: Any = jnp.float32,
  adapter: str | None = None,
  flag: str = "checkpoint",
) -> chex.ArrayTree:
  """Reads parameters onto a mesh, split over its axis `model` by the rules of the architecture.

  Args:
    directory: holds the model.
    mesh: the devices, with an axis `model`.
    dtype: type of the parameters.
    adapter: directory of low-rank adapters in peft's format to add, or None.
    flag: that names the directory.

  Returns:
    The parameters.

  Raises:
    UsageError: if files are missing, cut short or of another architecture, or a width does not
      divide by the axis.
  """
  _check_division(read_architecture(directory, flag=flag), mesh.shape["model"])
  with usage_errors(f"--{flag}={directory}"):
    loaded = load_pretrained(directory, dtype=dtype, mesh=mesh)
  if adapter is None:
    return loaded.params
  with usage_errors(f"--adapter={adapter}"):
    low_rank = load_adapter(adapter, loaded.config)
  return merge_low_rank(loaded.params, low_rank.adapters, low_rank.config)


def _check_division(architecture: DecoderConfig, pieces: int) -> None:
  widths = {
    "hidden_size": architecture.hidden_size,
    "intermediate_size": architecture.intermediate_size,
    "num_heads * head_dim": architecture.num_heads * architecture.head_dim,
    "num_kv_heads * head_dim": architecture.num_kv_heads * architecture.head_dim,
  }
  for name, width in widths.items():
    if width % pieces:
      raise UsageError(f"--model_parallel={pieces} does not divide the model's {name}, {width}.")


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
  """Tokenizes the beginning of a text: with the tokens that open it, without one that closes it.

  Args:
    tokenizer: the tokenizer.
    text: what a response will follow.

  Returns:
    Token ids.
  """
  tokens = tokenizer.encode(text)
  if tokens and tokens[-1] == tokenizer.eos_token_id:
    tokens = tokens[:-1]
  return tokens


def encode_conversation(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> list[int]:
  """Tokenizes a conversation up to where the assistant is to speak.

  Args:
    tokenizer: has a `chat_template`.
    messages: turns, each with "role" and "content".

  Returns:
    Token ids.

  Raises:
    ValueError: if the template fails, for example by reaching outside its sandbox.
  """
  return tokenizer.encode(render_conversation(tokenizer, messages), add_special_tokens=False)


def render_conversation(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> str:
  """Writes out a conversation up to where the assistant is to speak.

  Args:
    tokenizer: has a `chat_template`.
    messages: turns, each with "role" and "content".

  Returns:
    The text, special tokens included.

  Raises:
    ValueError: if there is no template, or it fails.
  """
  if tokenizer.chat_template is None:
    raise ValueError("the tokenizer has no chat template, which messages need.")
  return render_chat(
    tokenizer.chat_template,
    messages,
    add_generation_prompt=True,
    bos_token=tokenizer.bos_token,
    eos_token=tokenizer.eos_token,
  )


def end_tokens(directory: str, tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
  """Tokens that end an answer: the tokenizer's, and those of `generation_config.json`.

  Args:
    directory: holds the model.
    tokenizer: of the model.
    vocab_size: tokens of the model.

  Returns:
    Token ids in order, those outside the vocabulary left out.

  Raises:
    UsageError: if the file is malformed.
  """
  path = existing_directory(directory) / "generation_config.json"
  listed = []
  if path.exists():
    with usage_errors(f"--checkpoint={directory}"):
      listed = read_json(path).get("eos_token_id")
      listed = listed if isinstance(listed, list) else [listed]
      for token in listed:
        check_types({"eos_token_id": token}, eos_token_id=int)
  tokens = {tokenizer.eos_token_id, *listed} - {None}
  return tuple(sorted(token for token in tokens if 0 <= token < vocab_size))


def check_vocabulary(tokens: Sequence[int] | np.ndarray, vocab_size: int) -> None:
  """Raises if the model has no embedding for a token.

  Args:
    tokens: token ids, at least one.
    vocab_size: number of tokens of the model.

  Raises:
    ValueError: naming the token.
  """
  largest = int(np.max(tokens))
  if largest >= vocab_size:
    raise ValueError(
      f"token {largest} lies outside the model's vocabulary of {vocab_size}: the tokenizer is of "
      "another model."
    )


def bucket_length(length: int, *, most: int) -> int:
  """The width to which a sequence is padded, so that few widths, and programs, serve all lengths.

  Args:
    length: tokens of the sequence, at most `most`.
    most: the largest width.

  Returns:
    The next power of two, at least 16 and at most `most`.
  """
  return min(max(_SHORTEST_BUCKET, 1 << (length - 1).bit_length()), most)
