"""Impossible sizes are named."""

import dataclasses

import pytest

from experiments.kit import datasets, sizes


@dataclasses.dataclass(frozen=True)
class _Config:
  num_steps: int = 3
  shots: tuple[int, ...] = (0, 2)
  rate: float = 0.1
  share: float = 1.0
  search: bool = False
  name: str = "x"
  limit: int | None = None
  extra: tuple[int, ...] = ()


def _check(**changes):
  config = dataclasses.replace(_Config(), **changes)
  sizes.check_sizes(config, zero=("shots",), empty=("extra",), shares=("share",))


def test_what_can_be_passes():
  _check()
  _check(shots=(5,), rate=0.0, share=0.0, limit=1, extra=(1,))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ({"num_steps": 2**31}, "num_steps must be at most 2147483647, got 2147483648"),
    ({"shots": (1, -1)}, "shots must be at least 0, got -1"),
    ({"shots": ()}, "shots must not be empty"),
    ({"rate": -0.1}, r"rate must lie in \[0, inf\), got -0.1"),
    ({"rate": float("inf")}, r"rate must lie in \[0, inf\), got inf"),
    ({"share": 1.5}, r"share must lie in \[0, 1\], got 1.5"),
    ({"limit": 0}, "limit must be at least 1, got 0"),
  ],
)
def test_numbers(changes, message):
  with pytest.raises(ValueError, match=message):
    _check(**changes)


def test_what_does_not_fit_together():
  sizes.check_at_most(3, batch_size=3)
  sizes.check_divides(3, num_steps=6)
  sizes.check_known("ab", names=["a"])
  sizes.check_lengths(a=(1,), b=(2,))
  with pytest.raises(ValueError, match="batch_size must be at most 3, got 4"):
    sizes.check_at_most(3, batch_size=4)
  with pytest.raises(ValueError, match="num_steps must be a multiple of 3, got 7"):
    sizes.check_divides(3, num_steps=7)
  with pytest.raises(ValueError, match="names must be among a, b, got 'c'"):
    sizes.check_known("ab", names=["a", "c"])
  with pytest.raises(ValueError, match="a, b must have equally many entries, got {'a': 1, 'b': 2}"):
    sizes.check_lengths(a=(1,), b=(2, 3))


def test_splits_that_exceed_the_rows():
  datasets.describe("mnist1d").check_splits(10**6, 10**6)
  datasets.describe("cifar10").check_splits(45_000, 5_000, 10_000)
  with pytest.raises(ValueError, match=r"sizes \(1000, 798\) exceed the 1797 rows of digits"):
    datasets.describe("digits").check_splits(1000, 798)
  with pytest.raises(ValueError, match=r"sizes \(10001,\) exceed the 10000 rows of cifar10"):
    datasets.describe("cifar10").check_splits(1, 10_001)
