"""Parameters from orbax directories that other programs wrote."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab import training

PARAMS = {"dense": {"kernel": np.arange(16.0, dtype=np.float32).reshape(8, 2), "bias": np.ones(2)}}
PARAMS["dense"]["bias"] = PARAMS["dense"]["bias"].astype(np.float32)


def _train_state(directory):
  state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.adam(1e-3))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(directory, state)


def _variables(directory):
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(directory, {"params": PARAMS, "batch_stats": {"mean": np.ones(3)}})


def _params_alone(directory):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(directory, PARAMS)


def _steps(directory):
  with ocp.CheckpointManager(directory) as manager:
    older = jax.tree.map(np.zeros_like, PARAMS)
    for step, params in ((9, older), (10, PARAMS)):
      manager.save(step, args=ocp.args.StandardSave({"model": 1, "params": {"params": params}}))


def _named_item(directory):
  with ocp.CheckpointManager(directory) as manager:
    manager.save(0, args=ocp.args.Composite(state=ocp.args.StandardSave({"params": PARAMS})))


@pytest.mark.parametrize("write", [_train_state, _variables, _params_alone, _steps, _named_item])
def test_parameters_are_found(write, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  write(tmp_path / "checkpoint")
  like = jax.tree.map(np.zeros_like, PARAMS)
  restored = training.restore_params("~/checkpoint", like)
  assert jax.tree.structure(restored) == jax.tree.structure(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, restored, PARAMS)


def test_parameters_come_back_on_their_devices(tmp_path):
  _train_state(tmp_path / "checkpoint")
  sharding = NamedSharding(training.make_mesh({"data": -1}), PartitionSpec("data"))
  like = {
    "dense": {
      "kernel": jax.ShapeDtypeStruct((8, 2), np.float32, sharding=sharding),
      "bias": np.zeros(2, np.float32),
    }
  }
  restored = training.restore_params(tmp_path / "checkpoint", like)
  assert restored["dense"]["kernel"].sharding == sharding
  np.testing.assert_array_equal(restored["dense"]["kernel"], PARAMS["dense"]["kernel"])


@pytest.mark.parametrize(
  ("like", "message"),
  [
    (
      {"dense": {"kernel": np.zeros((8, 3), np.float32), "bias": PARAMS["dense"]["bias"]}},
      "kernel",
    ),
    ({"head": {"kernel": np.zeros((8, 2), np.float32)}}, "head/kernel|dense/bias"),
  ],
)
def test_other_parameters_are_named(like, message, tmp_path):
  _variables(tmp_path / "checkpoint")
  with pytest.raises(training.MismatchError, match=message):
    training.restore_params(tmp_path / "checkpoint", like)


def test_a_directory_without_a_checkpoint(tmp_path):
  with pytest.raises(
    FileNotFoundError, match="must hold one tree that orbax wrote, and holds none"
  ):
    training.restore_params(tmp_path, PARAMS)
