"""The page on NNX does what it says: it trains, and adapts the affine parameters alone."""

import pathlib
import re

import jax
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "nnx.md"
CODE = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S))


@pytest.mark.example
def test_the_page_on_nnx():
  names = {"__name__": "nnx_page"}
  exec(compile(CODE, PAGE.name, "exec"), names)
  assert int(names["state"].step) == 3 and np.isfinite(names["metrics"]["loss"])
  mean = names["state"].model_state["norm"]["mean"].get_value()
  assert np.any(mean != 0)
  assert names["info"].logits.shape == (1, 16, 10) and names["info"].skipped.item() == 0
  before, after = (jax.tree.leaves(s.params) for s in (names["state"], names["adapted"]))
  changed = [np.any(np.asarray(a) != b) for a, b in zip(before, after)]
  # conv/bias, conv/kernel, norm/bias, norm/scale, out/bias, out/kernel
  assert changed == [False, False, True, True, False, False]
