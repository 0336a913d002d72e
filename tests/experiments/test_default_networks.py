import json
import re

import jax
import numpy as np
import pytest

from experiments.default_networks import __main__ as program
from experiments.default_networks import priors
from jaxlab import experiment, models
from jaxlab.experiment import records


def test_inputs_of_the_prior_are_standardized_and_unused_ones_are_zero():
  def draw(key):
    return priors.regression_prior(key, num_points=400, num_used=7)

  batch = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 60))
  x, y = np.asarray(batch.x)[:, 0], np.asarray(batch.y)[:, 0]
  np.testing.assert_array_equal(x[..., 7:], 0)
  # A two-valued input whose rarer value is rare strays from its law's moments.
  np.testing.assert_allclose(np.median(x[..., :7].std(1)), 1, atol=0.05)
  np.testing.assert_allclose(np.abs(x[..., :7].mean(1)).mean(), 0, atol=0.06)
  values = [len(np.unique(column)) for table in x for column in table[:, :7].T]
  assert 0.2 < np.mean(np.array(values) <= 2) < 0.5
  np.testing.assert_allclose(y.mean(1), 0, atol=1e-4)
  np.testing.assert_allclose(y.std(1), 1, atol=1e-4)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_classes_of_the_prior_are_used_and_unequal(num_classes):
  def draw(key):
    return priors.class_prior(key, num_points=300, num_classes=num_classes)

  labels = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 8)).y)
  labels = labels.reshape(-1, 300).astype(int)
  counts = np.stack([np.bincount(row, minlength=10) for row in labels])
  assert (counts[:, :num_classes] > 0).mean() > 0.99 and (counts[:, num_classes:] == 0).all()
  assert counts.max(1).mean() > 1.2 * 300 / num_classes
  # No class is the largest in every data set.
  assert len(np.unique(counts.argmax(1))) > 1


@pytest.mark.smoke
def test_the_command_writes_networks_and_a_card_of_its_results(tmp_path):
  output = tmp_path / "networks"
  arguments = ["--preset=smoke", f"--workdir={tmp_path / 'run'}", f"--output={output}"]
  assert experiment.execute(program, ["", *arguments, "--mesh=data:1,model:1"]) == 0
  stored = json.loads((tmp_path / "run" / "results.json").read_text())
  card = (output / "README.md").read_text()
  for record in records.from_stored(stored["records"]):
    assert re.search(rf"\| {record.setting['rows']} \|.* {record.values.mean():.3f} \|", card)
  x = np.random.default_rng(0).normal(size=(12, 3))
  for name, estimator in (
    ("regressor", models.PFNRegressor),
    ("classifier", models.PFNClassifier),
  ):
    network = models.load_pfn(output / name)
    assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {np.dtype("float16")}
    assert np.isfinite(estimator(network).fit(x, np.arange(12) % 2).predict(x)).all()


def test_impossible_sizes_are_named(capsys):
  arguments = ["--preset=smoke", "--context_sizes=40"]
  assert experiment.execute(program, ["", *arguments]) == 2
  assert "context_sizes" in capsys.readouterr().err
