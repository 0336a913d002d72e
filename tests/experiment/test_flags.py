import dataclasses
from typing import Literal

import pytest
from absl import flags

from jaxlab.experiment import UsageError
from jaxlab.experiment import flags as config_flags
from tests.experiment import tiny_experiment as tiny


@dataclasses.dataclass(frozen=True)
class Fields:
  whole: int = 1  # A number
  # of things.
  share: float = 0.5
  name: str = "n"
  on: bool = False
  kind: Literal["a", "b"] = "a"
  level: Literal[1, 2] = 1
  sizes: tuple[int, ...] = (1, 2)
  pair: tuple[int, float] = (1, 2.0)
  kinds: tuple[Literal["a", "b"], ...] = ()
  limit: float | None = None

  # A heading, apart.

  bare: int = 0


def parsed(*arguments):
  values = flags.FlagValues()
  config_flags.define_config_flags(values, Fields)
  config_flags.parse(values, ["program", *arguments])
  return config_flags.config_from_flags(values, Fields(whole=7))


def test_an_argument_without_a_name_may_set_a_flag():
  def parsed(*arguments):
    values = flags.FlagValues()
    config_flags.define_config_flags(values, Fields)
    config_flags.parse(values, ["program", *arguments], positional="name")
    return config_flags.config_from_flags(values, Fields())

  assert parsed("file", "--whole=3") == parsed("--whole=3", "file") == Fields(whole=3, name="file")
  assert parsed("--name=file") == Fields(name="file") and parsed() == Fields()
  for arguments in (("a", "b"), ("--name=a", "b")):
    with pytest.raises(UsageError, match="'b' is no flag"):
      parsed(*arguments)


@pytest.mark.parametrize(
  "argument,expected",
  [
    ("--whole=12_000", {"whole": 12000}),
    ("--share=1e-3", {"share": 1e-3}),
    ("--name=x y", {"name": "x y"}),
    ("--on", {"on": True}),
    ("--noon", {"on": False}),
    ("--on=true", {"on": True}),
    ("--kind=b", {"kind": "b"}),
    ("--level=2", {"level": 2}),
    ("--sizes=3", {"sizes": (3,)}),
    ("--sizes=3, 4,5", {"sizes": (3, 4, 5)}),
    ("--sizes=", {"sizes": ()}),
    ("--pair=3,0.5", {"pair": (3, 0.5)}),
    ("--kinds=a,b,a", {"kinds": ("a", "b", "a")}),
    ("--limit=2", {"limit": 2.0}),
    ("--limit=none", {"limit": None}),
  ],
)
def test_flags_take_every_type(argument, expected):
  assert parsed(argument) == dataclasses.replace(Fields(whole=7), **expected)


@pytest.mark.parametrize(
  "argument,words",
  [
    ("--whole=1.5", ["--whole=1.5", "an integer"]),
    ("--share=nan", ["--share=nan", "a number"]),
    ("--on=maybe", ["--on=maybe"]),
    ("--kind=c", ["--kind=c", "one of a, b"]),
    ("--sizes=1,x", ["--sizes=1,x", "an integer, any number of them between commas"]),
    ("--pair=1", ["--pair=1", "an integer , a number"]),
    ("--kinds=a,c", ["--kinds=a,c", "one of a, b"]),
    ("--whle=1", ["--whle=1 is no flag", "there is --whole"]),
    ("--whle", ["--whle is no flag", "there is --whole"]),
    ("whole", ["'whole' is no flag"]),
  ],
)
def test_flags_refuse_and_say_what_is_allowed(argument, words):
  with pytest.raises(UsageError) as caught:
    parsed(argument)
  for word in words:
    assert word in str(caught.value)


def test_every_written_value_reads_back():
  for field in dataclasses.fields(Fields):
    value = getattr(Fields(), field.name)
    text = config_flags.as_text(value)
    assert config_flags.value_parser(Fields.__annotations__[field.name])[0](text) == value


def test_comments_are_help():
  assert config_flags.field_comments(Fields) == {"whole": "A number", "share": "of things."}
  assert config_flags.field_comments(tiny.Config)["start"] == (
    "Where the weights begin: at zero, or at one."
  )


def test_flags_refuse_types_and_names():
  @dataclasses.dataclass(frozen=True)
  class Wrong:
    table: dict = None

  with pytest.raises(TypeError, match="cannot make a flag of"):
    config_flags.define_config_flags(flags.FlagValues(), Wrong)

  values = flags.FlagValues()
  config_flags.define_flag(values, "whole", int, "")
  with pytest.raises(ValueError, match="Fields.whole has the name"):
    config_flags.define_config_flags(values, Fields)
