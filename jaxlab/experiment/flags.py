"""Command-line flags made from the fields of a frozen dataclass.

A field's annotation says which values are allowed, its comment is the flag's help::

  @dataclasses.dataclass(frozen=True)
  class Config:
    task: Literal["gp", "tabular"] = "gp"  # Which of the paper's experiments.
    widths: tuple[int, ...] = (64, 64)  # Hidden units, one number per layer.

tyro and simple-parsing are argparse programs that write tuples between spaces and see no absl flag;
ml_collections names flags --config.x, shows no comment and checks no `Literal`.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import math
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

_HELP = ("-h", "--helpshort", "--helpfull")


class UsageError(Exception):
  """What the command line asks for cannot be done; nothing has been written."""


def define_config_flags(values: flags.FlagValues, config_class: type) -> None:
  """Adds one flag for every field of a dataclass; an unset flag is None.

  Args:
    values: the flags to add to.
    config_class: a dataclass whose fields are bool, int, float, str, `Literal`, tuples of these, or
      one of them `| None`.

  Raises:
    TypeError: if `config_class` is no dataclass or a field has another type.
    ValueError: if a field has the name of a flag that exists.
  """
  if not dataclasses.is_dataclass(config_class):
    raise TypeError(f"{config_class.__name__} must be a dataclass.")
  comments = field_comments(config_class)
  annotations = typing.get_type_hints(config_class)
  for field in dataclasses.fields(config_class):
    if field.name in values:
      raise ValueError(f"{config_class.__name__}.{field.name} has the name of another flag.")
    define_flag(values, field.name, annotations[field.name], comments.get(field.name, ""))


def define_flag(values: flags.FlagValues, name: str, annotation: Any, help_text: str) -> None:
  """Adds one flag, which is None unless it is given.

  Args:
    values: the flags to add to.
    name: its name.
    annotation: the type of its values, as `value_parser` takes it.
    help_text: what it is for.

  Raises:
    TypeError: if there is no parser for the type.
  """
  if annotation is bool:
    flags.DEFINE_boolean(name, None, help_text, flag_values=values)
  else:
    flags.DEFINE(_ValueParser(annotation), name, None, help_text, flag_values=values)


def parse(values: flags.FlagValues, argv: Sequence[str], *, positional: str | None = None) -> None:
  """Parses a command line; -h, --helpshort and --helpfull mean --help.

  Args:
    values: the flags that there are, `help` among them.
    argv: the program's name and its arguments.
    positional: name of the flag that an argument without a name sets, or None.

  Raises:
    UsageError: for a flag that there is not, a value that is not allowed, or an argument that is no
      flag; the message says what is allowed.
  """
  # Flags may then follow the argument.
  values.set_gnu_getopt(positional is not None)
  try:
    rest = values(["--help" if argument in _HELP else argument for argument in argv])[1:]
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname, list(values), n=3)
    hint = f"there is --{', --'.join(near)}" if near else "--help lists those that there are"
    raise UsageError(f"{error.flagvalue} is no flag of this program; {hint}.") from error
  except (flags.Error, ValueError) as error:  # A ValueError is of --noNAME=VALUE.
    raise UsageError(str(error)) from error
  if rest and positional is not None and not values[positional].present:
    values[positional].parse(rest.pop(0))
  if rest:
    raise UsageError(f"{rest[0]!r} is no flag; flags are written --name=value.")


def config_from_flags(values: flags.FlagValues, preset: Any) -> Any:
  """The preset with every flag that was given on the command line put in its place.

  Args:
    values: parsed flags, made by `define_config_flags`.
    preset: an instance of the dataclass.

  Returns:
    A dataclass of the type of `preset`.

  Raises:
    UsageError: if the dataclass refuses the values (a ValueError in its `__post_init__`).
  """
  names = [field.name for field in dataclasses.fields(preset)]
  given = {name: values[name].value for name in names if values[name].present}
  with refused_values():
    return dataclasses.replace(preset, **given)


@contextlib.contextmanager
def refused_values() -> Iterator[None]:
  """Turns the ValueError of a configuration that is refused into a `UsageError`."""
  try:
    yield
  except ValueError as error:
    raise UsageError(f"the flags do not fit together: {error}") from error


def value_parser(annotation: Any) -> tuple[Callable[[str], Any], str]:
  """How text becomes a value of an annotated type.

  Args:
    annotation: bool, int, float, str, `Literal[...]`, `tuple[...]` of these, or `... | None`.

  Returns:
    A function from text to value, which raises ValueError for text that is not allowed, and the
    words that say what is.

  Raises:
    TypeError: for any other annotation.
  """
  origin, members = typing.get_origin(annotation), typing.get_args(annotation)
  if annotation in _SCALARS:
    return _SCALARS[annotation]
  if origin is typing.Literal:
    by_text = {str(member): member for member in members}
    return lambda text: _look_up(by_text, text), f"one of {', '.join(by_text)}"
  if origin in (types.UnionType, typing.Union) and len(members) == 2 and type(None) in members:
    inner, allowed = value_parser(next(m for m in members if m is not type(None)))
    return lambda text: None if text.lower() == "none" else inner(text), f"{allowed}, or none"
  if origin is tuple and members:
    return _tuple_parser(members)
  raise TypeError(
    f"cannot make a flag of {annotation}: allowed are bool, int, float, str, Literal, tuples of "
    "these, and one of them | None."
  )


def field_comments(config_class: type) -> dict[str, str]:
  """The comment of every field: the one on its lines, else the lines of comment right above it.

  Args:
    config_class: a class whose source can be read; fields of its base classes count as well.

  Returns:
    A dict from the name of a field to its comment, for the fields that have one.
  """
  by_field = {}
  for base in reversed(config_class.__mro__):
    if base is not object and dataclasses.is_dataclass(base):
      by_field |= _own_comments(base)
  return by_field


def as_text(value: Any) -> str:
  """A value written as its flag takes it."""
  if isinstance(value, tuple):
    return ",".join(as_text(item) for item in value)
  if value is None or isinstance(value, bool):
    return str(value).lower()
  return str(value)


def flag_help(flag: flags.Flag, default: str) -> list[str]:
  """The lines of `--help` for one flag: what it takes, its default, what it is for."""
  allowed = "true or false" if flag.boolean else flag.parser.syntactic_help
  return [
    f"  --{flag.name}: {allowed}" + (f" [{default}]" if default else ""),
    f"      {flag.help}",
  ]


class _ValueParser(flags.ArgumentParser):
  """absl's view of `value_parser`."""

  def __init__(self, annotation: Any):
    self._parse, self.allowed = value_parser(annotation)
    self.syntactic_help = self.allowed

  def parse(self, argument: Any) -> Any:
    """Text to value; the message of a failure says what is allowed."""
    try:
      return self._parse(argument)
    except ValueError as error:
      raise ValueError(f"allowed: {self.allowed}") from error

  def flag_type(self) -> str:
    """What the flag takes."""
    return self.allowed


def _parse_bool(text: str) -> bool:
  return _look_up({"true": True, "1": True, "false": False, "0": False}, text.lower())


def _parse_float(text: str) -> float:
  value = float(text)
  if math.isnan(value):
    raise ValueError("not a number")
  return value


_SCALARS = {
  bool: (_parse_bool, "true or false"),
  int: (lambda text: int(text.replace("_", "")), "an integer"),
  float: (_parse_float, "a number"),
  str: (str, "text"),
}


def _look_up(table: dict[str, Any], text: str) -> Any:
  if text not in table:
    raise ValueError(f"{text!r} is none of {', '.join(table)}")
  return table[text]


def _tuple_parser(members: tuple[Any, ...]) -> tuple[Callable[[str], Any], str]:
  """Items between commas; `tuple[T, ...]` takes any number of them, the empty text is ()."""
  any_length = len(members) == 2 and members[1] is Ellipsis
  parsers = [value_parser(member) for member in (members[:1] if any_length else members)]

  def parse(text: str) -> tuple[Any, ...]:
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    used = parsers * len(items) if any_length else parsers
    if len(items) != len(used):
      raise ValueError(f"{len(items)} items where {len(used)} are needed")
    return tuple(parser(item) for (parser, _), item in zip(used, items, strict=True))

  if any_length:
    return parse, f"{parsers[0][1]}, any number of them between commas"
  return parse, " , ".join(allowed for _, allowed in parsers)


def _own_comments(config_class: type) -> dict[str, str]:
  try:
    source = textwrap.dedent(inspect.getsource(config_class))
  except OSError:  # A class that was typed in has no source, hence no comments.
    return {}
  lines = source.splitlines()
  comments, alone = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      row, text = token.start[0], token.string.lstrip("# ").strip()
      stands_alone = not lines[row - 1][: token.start[1]].strip()
      (alone if stands_alone else comments)[row] = text

  by_field = {}
  for node in ast.parse(source).body[0].body:
    if not isinstance(node, ast.AnnAssign):
      continue
    beside = [comments[row] for row in range(node.lineno, node.end_lineno + 1) if row in comments]
    above, row = [], node.lineno - 1
    while row in alone:
      above.insert(0, alone[row])
      row -= 1
    if beside or above:
      by_field[node.target.id] = " ".join(beside or above)
  return by_field
