import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.mixing_adaptation import robust_mean_teacher as experiment
from experiments.mixing_adaptation import robust_mean_teacher_methods as methods
from experiments.mixing_adaptation import robust_mean_teacher_tasks as tasks


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("rmt") / "run"
  arguments = ["robust_mean_teacher", "--preset=smoke", "--mesh=data:1"]
  assert common.execute(experiment, [*arguments, f"--workdir={directory}"]) == 0
  assert (directory / "figure.png").exists()
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method(smoke):
  config = experiment.PRESETS["smoke"]
  assert list(smoke["quantities"]) == methods.method_names(config)
  for name, row in smoke["quantities"].items():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
    assert ("episodic/error" in row) == (name not in ("source", "norm adaptation"))
  assert len(smoke["claims"]) == 12
  bytes_of = {name: row["cost/state bytes"]["mean"] for name, row in smoke["quantities"].items()}
  assert bytes_of["source"] < bytes_of["TENT lr=0.001"] < bytes_of["RMT"]


def test_claims_are_judged_by_seeds():
  errors = {
    "source": 60.0,
    "norm adaptation": 42.0,
    "TENT lr=0.001": 45.0,
    "TENT lr=0.0001": 41.0,
    "CoTTA": 39.0,
    "mean teacher, CE": 40.0,
    "mean teacher, SCE": 38.0,
    "RMT": 36.0,
    "RMT + source": 35.0,
  }
  names = ("continual/error", "continual/round 1", "continual/round 3", "gradual/error")
  rows = {m: {name: e + np.arange(3) for name in names} for m, e in errors.items()}
  rows["TENT lr=0.001"]["continual/round 3"] += 5
  judged = experiment.claims(common.Results(rows))
  assert len(judged) == 12 and all(claim.holds for claim in judged)
  assert judged[0].baseline == 42.0  # The better Tent counts.


def test_streams_come_in_their_orders():
  signals = np.zeros((6, 8, 1), np.float32)
  split = tasks.Split(signals, np.arange(6, dtype=np.int32))

  def corrupted(key, severities, num_samples):
    del key
    inputs = [
      np.full((num_samples // 2, 2, 8, 1), k * 10.0 + s) for k in (0, 1) for s in severities
    ]
    inputs = jnp.asarray(np.concatenate(inputs), jnp.float32)
    return inputs, jnp.zeros(inputs.shape[:2], jnp.int32)

  config = experiment.Config(
    num_test=6, num_gradual=2, batch_size=2, kinds=("a", "b"), severity=3, rounds=2
  )
  task = tasks.Task(None, split, split, corrupted, None)
  streams = tasks.make_streams(config, task, jax.random.key(0))
  levels = {name: stream.inputs[:, 0, 0, 0].tolist() for name, stream in streams.items()}
  assert levels["continual"] == [3, 3, 3, 13, 13, 13] * 2
  assert levels["gradual"] == [1, 2, 3, 2, 1, 11, 12, 13, 12, 11]
  assert sorted(levels["mixed"]) == [3, 3, 3, 13, 13, 13]
  assert streams["episodic"].resets.tolist() == [True, False, False] * 2
  assert streams["continual"].resets.tolist() == [True] + [False] * 11


def test_image_jitter_keeps_range_and_rows_differ():
  images = jnp.full((4, 6, 6, 3), 0.5)
  jittered = jax.jit(tasks.jitter_images)(jax.random.key(0), images)
  assert jittered.shape == images.shape and jittered.min() >= 0 and jittered.max() <= 1
  assert len(set(np.asarray(jittered).mean((1, 2, 3)).round(4))) == 4
  assert tasks.as_inputs(jnp.full((1,), 255, jnp.uint8)) == 1.0


def test_a_step_compiles_from_shapes(capsys):
  arguments = ["robust_mean_teacher", "--preset=smoke", "--dry_run", "--mesh=data:1"]
  assert common.execute(experiment, arguments) == 0
  assert "parameters" in capsys.readouterr().out


def test_the_paper_data_are_asked_for_by_name(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    tasks.make_task(experiment.PRESETS["paper"])
