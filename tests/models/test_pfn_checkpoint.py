import copy
import hashlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxlab.models.pfn import PFN
from jaxlab.models.pfn_checkpoint import PFNTask, TrainedPFN, load_pfn, save_pfn

_MODULE = PFN(num_outputs=4, embed_dim=4, num_layers=1, num_heads=2, input_scale=0.5)
_TASK = PFNTask(num_features=2, max_context=9, input_scaling="unit")
_BORDERS = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0])


_INIT = jax.jit(_MODULE.init)


def _params(seed=0, dtype=jnp.float32):
  x, y = jnp.zeros((1, 1, 2)), jnp.zeros((1, 1))
  params = _INIT(jax.random.key(seed), x, y, 0)["params"]
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _assert_trees_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(left, right)


def _rewrite(directory, **tensors):
  """Replaces tensors (None removes one) and keeps the checksum right."""
  config = json.loads((directory / "config.json").read_text())
  content = safetensors.numpy.load_file(directory / config["weights"])
  content = {k: v for k, v in {**content, **tensors}.items() if v is not None}
  weights = safetensors.numpy.save(content)
  (directory / config["weights"]).write_bytes(weights)
  config["sha256"] = hashlib.sha256(weights).hexdigest()
  (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_round_trip(tmp_path, dtype):
  params = _params(dtype=dtype)
  save_pfn(tmp_path / "deep" / "er", _MODULE, params, task=_TASK, borders=_BORDERS)
  loaded = load_pfn(str(tmp_path / "deep" / "er"))
  assert loaded.module == _MODULE and loaded.task == _TASK
  _assert_trees_equal(loaded.params, params)
  np.testing.assert_array_equal(loaded.borders, _BORDERS)


def test_round_trip_of_a_classifier(tmp_path):
  task = PFNTask(num_features=2, num_classes=4, rescale_features=True)
  save_pfn(tmp_path, _MODULE, _params(), task=task)
  loaded = load_pfn(tmp_path)
  assert loaded.borders is None and loaded.task == task


def test_numpy_numbers_in_the_configuration(tmp_path):
  module = PFN(np.int64(4), embed_dim=4, num_layers=1, num_heads=2, input_scale=np.float32(0.5))
  save_pfn(tmp_path, module, _params(), task=PFNTask(num_features=np.int64(2)))
  loaded = load_pfn(tmp_path)
  assert loaded.module == _MODULE and loaded.task == PFNTask(num_features=2)
  _assert_trees_equal(loaded.params, _params())


def test_saving_again_replaces_and_leaves_no_other_files(tmp_path):
  save_pfn(tmp_path, _MODULE, _params(0), task=_TASK, borders=_BORDERS)
  save_pfn(tmp_path, _MODULE, _params(1), task=_TASK, borders=_BORDERS)
  _assert_trees_equal(load_pfn(tmp_path).params, _params(1))
  assert len(list(tmp_path.iterdir())) == 2


def test_a_crash_leaves_the_old_network(tmp_path, monkeypatch):
  save_pfn(tmp_path, _MODULE, _params(0), task=_TASK, borders=_BORDERS)
  replace = os.replace

  def crash(source, target):
    if os.fspath(target).endswith("config.json"):
      raise OSError("disk full")
    replace(source, target)

  monkeypatch.setattr(os, "replace", crash)
  with pytest.raises(OSError, match="disk full"):
    save_pfn(tmp_path, _MODULE, _params(1), task=_TASK, borders=_BORDERS)
  _assert_trees_equal(load_pfn(tmp_path).params, _params(0))
  assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_save_names_the_wrong_tensor(tmp_path):
  params = _params()
  with pytest.raises(ValueError, match=r"borders has shape \(3,\), expected \(5,\)"):
    save_pfn(tmp_path, _MODULE, params, task=_TASK, borders=_BORDERS[:3])
  with pytest.raises(ValueError, match="finite and increasing"):
    save_pfn(tmp_path, _MODULE, params, task=_TASK, borders=_BORDERS[::-1])
  with pytest.raises(ValueError, match=r"embed_x/kernel has shape \(2, 4\), expected \(3, 4\)"):
    save_pfn(tmp_path, _MODULE, params, task=PFNTask(num_features=3))
  with pytest.raises(ValueError, match="lacks tensors: params/embed_x/bias"):
    save_pfn(tmp_path, _MODULE, {"params": params}, task=_TASK)
  assert not list(tmp_path.iterdir())


def test_subclass_raises(tmp_path):
  class Other(PFN):
    pass

  with pytest.raises(TypeError, match="Other"):
    save_pfn(tmp_path, Other(num_outputs=4), _params(), task=_TASK)


def test_missing_files(tmp_path):
  with pytest.raises(FileNotFoundError, match="config.json"):
    load_pfn(tmp_path)
  save_pfn(tmp_path, _MODULE, _params(), task=_TASK)
  next(tmp_path.glob("*.safetensors")).unlink()
  with pytest.raises(FileNotFoundError, match="safetensors"):
    load_pfn(tmp_path)


def test_corrupt_files(tmp_path):
  save_pfn(tmp_path, _MODULE, _params(), task=_TASK)
  weights = next(tmp_path.glob("*.safetensors"))
  content = bytearray(weights.read_bytes())
  content[-1] ^= 1
  weights.write_bytes(content)
  with pytest.raises(ValueError, match="is corrupt"):
    load_pfn(tmp_path)
  config = tmp_path / "config.json"
  text = config.read_text()
  for broken, message in (
    (text[:-20], "not valid JSON"),
    (text.replace("jaxlab.pfn.1", "other"), "format"),
    ("[]", "must hold an object, got list"),
    (text.replace('"num_layers"', '"num_layer"'), "num_layer"),
    (text.replace('"sha256"', '"sha"'), "sha256"),
    (text.replace('"post"', '"mid"'), "norm"),
  ):
    config.write_text(broken)
    with pytest.raises(ValueError, match=message):
      load_pfn(tmp_path)


def test_load_names_the_wrong_tensor(tmp_path):
  save_pfn(tmp_path, _MODULE, _params(), task=_TASK, borders=_BORDERS)
  name = "params/layer_0/qkv/kernel"
  for tensors, message in (
    ({name: np.zeros((4, 11), np.float32)}, rf"{name} has shape \(4, 11\), expected \(4, 12\)"),
    ({name: None}, f"lacks tensors: {name}"),
    ({name: np.zeros((4, 12), np.float32), "more": np.zeros(1)}, "unknown tensors: more"),
    ({"more": None, "borders": np.zeros(5, np.float32)}, "borders must be finite"),
  ):
    _rewrite(tmp_path, **tensors)
    with pytest.raises(ValueError, match=message):
      load_pfn(tmp_path)


def test_task_names_the_wrong_value():
  for options, name in (
    ({"num_features": 0}, "num_features"),
    ({"num_features": 1, "num_classes": 1}, "num_classes"),
    ({"num_features": 1, "max_context": 0}, "max_context"),
    ({"num_features": 1, "input_scaling": "log"}, "input_scaling"),
    ({"num_features": 1, "target_scaling": "unit"}, "target_scaling"),
  ):
    with pytest.raises(ValueError, match=name):
      PFNTask(**options)


def test_copies_share_parameters_and_stay_short():
  network = TrainedPFN(_MODULE, _params(), _TASK, _BORDERS)
  assert copy.deepcopy(network) is network
  assert "kernel" not in repr(network)
