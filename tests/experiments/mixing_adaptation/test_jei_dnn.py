import json

import numpy as np
import pytest

from experiments import common
from experiments.mixing_adaptation import jei_dnn
from experiments.mixing_adaptation import jei_dnn_judging as judging
from experiments.mixing_adaptation.jei_dnn_exits import METHODS
from jaxlab import metrics


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("jei_dnn") / "run"
  arguments = ["jei_dnn", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(jei_dnn, arguments) == 0
  assert (directory / "figure.png").stat().st_size > 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_methods_and_rivals(smoke):
  methods = set(smoke["quantities"])
  assert methods > set(METHODS) and {"thresholds", "oracle exit"} < methods
  for method, row in smoke["quantities"].items():
    assert np.isfinite(row["curve/accuracy over common costs"]["mean"])
    assert method == "oracle exit" or np.isfinite(row["sets/size"]["mean"])
  assert len(smoke["claims"]) == 8
  assert all(claim["holds"] is None for claim in smoke["claims"])


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_the_step_of_a_preset_compiles_from_shapes(preset, capsys):
  arguments = ["jei_dnn", f"--preset={preset}", "--dry_run", "--mesh=data:2"]
  if preset == "paper":
    arguments += ["--image_size=32", "--batch_size=4", "--num_blocks=2"]
  assert common.execute(jei_dnn, arguments) == 0
  assert "parameters" in capsys.readouterr().out


def test_the_papers_data_must_be_on_disk(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    jei_dnn.splits(jei_dnn.PRESETS["paper"])


@pytest.fixture(scope="module")
def probs():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(400, 4, 5)) * np.array([1.0, 2.0, 3.0, 4.0])[:, None]
  exp = np.exp(logits)
  return exp / exp.sum(-1, keepdims=True)


def test_sweeps_go_from_the_first_exit_to_the_last(probs):
  for sweep in (judging._one_threshold, judging._by_share):
    levels = [leave(probs).mean() for leave in sweep(probs)]
    assert min(levels) < 0.3 and max(levels) > 2.7


def test_shares_are_met_on_the_samples_they_are_set_on(probs):
  rules = list(judging._by_share(probs))
  ratio = np.geomspace(0.05, 20.0, 40)
  for i in (5, 20, 35):
    want = ratio[i] ** np.arange(4.0)
    got = np.bincount(rules[i](probs), minlength=4) / len(probs)
    np.testing.assert_allclose(got, want / want.sum(), atol=0.01)


def test_the_oracle_knows_the_labels(probs):
  labels = probs[:, 0].argmax(-1)
  cheap = np.array([0.1, 0.4, 0.7, 1.0])
  points = judging._oracle(probs, probs, labels, cheap)
  assert np.all(points[-1].levels == 0)
  right = metrics.exited_values(probs.argmax(-1) == labels[:, None], points[-1].levels)
  assert np.all(right)
