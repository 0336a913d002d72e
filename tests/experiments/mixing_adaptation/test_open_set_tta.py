"""Data with unknown classes, what is measured on their stream, and the fixed threshold."""

import jax
import numpy as np
import pytest

from experiments.mixing_adaptation.open_set_tta import __main__ as experiment
from experiments.mixing_adaptation.open_set_tta import task
from experiments.mixing_adaptation.open_set_tta.adapters import THRESHOLD, adapters
from jaxlab import losses

CONFIG = experiment.PRESETS["smoke"]


def test_paper_data_that_are_not_there_are_named(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="tfds build cifar10"):
    task.load_task(experiment.PRESETS["paper"], 0)


def test_half_of_every_batch_comes_from_another_source():
  parts = task.load_task(CONFIG, 0)
  assert [len(part.labels) for part in parts] == [60, 20, 20]
  assert set(parts.known.labels) <= set(range(10)) and set(parts.unknown.labels) == {-1}
  np.testing.assert_allclose(parts.train.inputs.std(), 1.0, atol=1e-5)
  np.testing.assert_allclose(parts.unknown.inputs.std(), 1.0, atol=1e-5)
  rows = np.concatenate([part.inputs[..., 0] for part in parts])
  assert len(np.unique(rows, axis=0)) == 100
  assert np.any(task.load_task(CONFIG, 1).train.inputs != parts.train.inputs)

  draw = jax.jit(lambda key: task.open_set_stream(key, CONFIG, parts.known, parts.unknown))
  stream = jax.tree.map(np.asarray, draw(jax.random.key(0)))
  assert stream.inputs.shape == (4, 20, 40, 1)
  np.testing.assert_array_equal(stream.labels[:, 10:], -1)
  assert stream.labels[:, :10].min() >= 0


def test_scores_of_a_round():
  labels = np.array([[0, 1, -1, -1], [1, 0, -1, -1]])
  logits = 10.0 * (labels[..., None] == np.arange(2))
  kept = (labels >= 0).astype(np.float32)
  kept[0, 2] = 1.0
  scores = jax.tree.map(float, jax.jit(experiment.round_scores)(logits, kept, labels))
  assert scores[experiment.ERROR] == 0
  assert scores["right"] == 1 and scores["unknown"] == 0.25
  assert scores["wrong"] == 0  # There is none.
  assert scores[experiment.PRECISION] == pytest.approx(0.8)
  # Confidence tells known from unknown rows here, so no unknown row is above the threshold.
  assert scores[experiment.FIXED] == 1


def test_the_entropy_threshold_keeps_confident_rows():
  module = task.network(CONFIG)
  inputs = np.random.default_rng(0).normal(size=(6, 40, 1)).astype(np.float32)

  @jax.jit
  def run():
    variables = dict(module.init(jax.random.key(1), inputs))
    params = variables.pop("params")
    adapter = adapters(CONFIG, variables, 1e-3)[THRESHOLD]
    state, info = adapter.update(jax.random.key(2), adapter.init(params), inputs)
    return params, state.params, info.selected, losses.softmax_entropy(info.logits)

  before, after, selected, entropy = run()
  np.testing.assert_array_equal(selected, entropy < 0.4 * np.log(10))
  assert not np.allclose(before["norm_0"]["scale"], after["norm_0"]["scale"])
  np.testing.assert_array_equal(before["conv_0"]["kernel"], after["conv_0"]["kernel"])
