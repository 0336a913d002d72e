import numpy as np
import pytest

from jaxlab.data.generated import load_generated


def test_arrays_are_generated_once_and_again_if_the_file_is_damaged(tmp_path):
  calls = []

  def load():
    def generate():
      calls.append(1)
      return {"x": np.arange(1000)}

    return load_generated("numbers", [1, "a"], generate, data_dir=tmp_path)["x"]

  for _ in range(2):
    np.testing.assert_array_equal(load(), np.arange(1000))
  assert len(calls) == 1
  [path] = (tmp_path / "generated").glob("*.npz")
  content = path.read_bytes()
  for damaged in (b"", b"x", content[:-100], content[:500] + b"?" * 50 + content[550:]):
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="is damaged .*; generated again"):
      np.testing.assert_array_equal(load(), np.arange(1000))
  assert len(calls) == 5 and path.read_bytes() == content
