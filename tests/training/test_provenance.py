"""Fingerprints tell values apart."""

import dataclasses

import numpy as np
import pytest

from jaxlab.training import fingerprint


@dataclasses.dataclass
class _Config:
  rate: float = 0.1


def test_different_values_have_different_fingerprints():
  values = [
    *(None, True, 1, 1.0, 2, "1", b"1", "", b"", [], {}, [1], [[1]], ["1"], {"1": 1}, [None]),
    *([1, 2], [2, 1], [[1], 2], ["ab", "c"], ["a", "bc"], "\ud800", float("nan"), float("inf")),
    *(np.arange(4), np.arange(4).reshape(2, 2), np.arange(4, dtype=np.int32), np.float32(1)),
    *({"a": {"b": 1}}, {"a": [["b", 1]]}, {"rate": 0.2}, _Config()),
  ]
  assert len({fingerprint(value) for value in values}) == len(values)


def test_equal_values_have_equal_fingerprints():
  for one, other in (
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ((1, [2]), [1, (2,)]),
    (_Config(), {"rate": 0.1}),
    (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy()),
  ):
    assert fingerprint(one) == fingerprint(other)
  assert len(fingerprint("text")) == 16


def test_what_has_no_fingerprint():
  for value, name in ((object(), "object"), ([len], "builtin"), (np.array([None]), "ndarray")):
    with pytest.raises(TypeError, match=f"a {name}.* has no fingerprint"):
      fingerprint(value)
