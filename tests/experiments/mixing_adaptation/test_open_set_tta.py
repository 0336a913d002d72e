import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.classification import Split

from experiments import common
from experiments.mixing_adaptation import open_set_tta
from experiments.mixing_adaptation import open_set_tta_task as tasks

_NAME = "open_set_tta"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp(_NAME) / "run"
  argv = [_NAME, "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(open_set_tta, argv) == 0
  assert (directory / "figure.png").stat().st_size > 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method(smoke):
  assert set(smoke["quantities"]) == set(open_set_tta.METHODS)
  for row in smoke["quantities"].values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
  assert len(smoke["claims"]) == 7
  assert all(claim["holds"] is None for claim in smoke["claims"])


def test_the_first_batch_is_predicted_alike(smoke):
  """Methods differ by what they learn; those that learn nothing stay as they are."""
  rows = smoke["quantities"]
  name = "rate 0.001, selection/kept of "
  oracle = {w: rows[open_set_tta.ORACLE][name + w]["mean"] for w in ("right", "wrong", "unknown")}
  assert oracle == {"right": 1.0, "wrong": 0.0, "unknown": 0.0}


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  argv = [_NAME, "--preset=laptop", "--dry_run", "--mesh=data:2"]
  assert common.execute(open_set_tta, argv) == 0
  assert "parameters" in capsys.readouterr().out


def test_scores_of_a_perfect_model():
  labels = jnp.array([[0, 1, -1, -1], [1, 0, -1, -1]])
  logits = 10 * jax.nn.one_hot(labels, 2)
  kept = (labels >= 0).astype(jnp.float32).at[0, 2].set(1.0)
  scores = open_set_tta._scores(logits, kept, labels)
  assert scores["closed-set error"] == 0 and scores["AUROC"] == 1
  assert scores["kept of right"] == 1 and scores["kept of unknown"] == 0.25
  assert scores["kept of wrong"] == 0  # There is none.


def test_claims_compare_the_last_round():
  rows = {method: {} for method in open_set_tta.METHODS}
  for method, last in zip(open_set_tta.METHODS, (0.5, 0.3, 0.6, 0.4, 0.28, 0.25, 0.2)):
    rows[method]["r/closed-set error, last round"] = last + np.array([0.0, 0.01, 0.02])
  rows[open_set_tta.MAIN] |= {
    f"r, selection/kept of {name}": share + np.zeros(3)
    for name, share in (("right", 0.8), ("wrong", 0.5), ("unknown", 0.9))
  }
  for method, area in ((open_set_tta.TENT, 0.7), (open_set_tta.NORM, 0.6)):
    for against in ("wrong", "wrong and unknown"):
      rows[method][f"r, one step/AUROC, right against {against}"] = area + np.zeros(3)
  found = open_set_tta.claims(common.Results(rows))
  assert [claim.holds for claim in found] == [True, True, True, True, False, True, True]


def test_oracle_learns_from_right_rows_alone():
  config = open_set_tta.PRESETS["smoke"]
  module = tasks.network(config)
  inputs = jax.random.normal(jax.random.key(0), (6, 40, 1))
  variables = module.init(jax.random.key(1), inputs)
  stats = {"batch_stats": variables["batch_stats"]}
  methods = open_set_tta.adapters(config, stats, 1e-3)
  predicted = module.apply(variables, inputs, train=True).logits.argmax(-1)
  labels = jnp.where(jnp.arange(6) < 3, predicted, -1)
  oracle, tent = methods[open_set_tta.ORACLE], methods[open_set_tta.TENT]
  update = jax.jit(oracle.update)
  batch = Split(inputs, labels)
  state, info = update(jax.random.key(2), oracle.init(variables["params"]), batch)
  np.testing.assert_array_equal(info.selected, [1, 1, 1, 0, 0, 0])
  before, after = variables["params"], state.params
  assert not np.allclose(before["norm_0"]["scale"], after["norm_0"]["scale"])
  np.testing.assert_array_equal(before["conv_0"]["kernel"], after["conv_0"]["kernel"])
  _, everything = jax.eval_shape(tent.update, jax.random.key(2), tent.init(before), batch)
  assert everything.logits.shape == (6, 7)


def test_every_seed_has_its_own_source_model(tmp_path):
  context = common.Context(workdir=tmp_path, key=jax.random.key(0), seeds=3)
  sources = {"params": jnp.arange(3.0), "model_state": 10 + jnp.arange(3.0)}

  def judge(key, params, model_state):
    return params, model_state

  found = open_set_tta._over_sources(context, sources, judge)
  np.testing.assert_array_equal(found, [[0, 1, 2], [10, 11, 12]])
