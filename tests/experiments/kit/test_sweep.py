"""Equal budgets, and settings chosen on validation per seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import sweep as kit
from jaxlab.experiment import Context, Results


def _evaluate(key, splits, method, setting):
  """Test scores fall where validation scores rise, so that a choice on test data would show."""
  noise = jax.random.uniform(key)
  score = splits["x"] * setting["rate"] + {"ours": 100.0, "plain": 0.0}[method]
  return {"validation/score": score, "test/score": -score, "noise": noise}


def _draw(seed):
  return {"x": np.float32([1.0, -1.0, 2.0][seed])}


GRID = [{"rate": 0.5, "decay": 1.0}, {"rate": 2.0, "decay": 1.0}]


def _sweep(directory, **options):
  context = Context(directory, jax.random.key(0), seeds=3)
  methods = {"plain": GRID, "ours": GRID}
  settings = {"methods": methods, "select": "validation/score"} | options
  return kit.sweep(context, "set", _evaluate, _draw, **settings)


def test_every_seed_chooses_on_validation(tmp_path):
  chosen = _sweep(tmp_path)
  best = [2.0, 0.5, 2.0]  # Of rates, by the sign of a seed's data.
  scores = np.multiply([1.0, -1.0, 2.0], best)
  for method, shift in (("plain", 0.0), ("ours", 100.0)):
    np.testing.assert_allclose(chosen[method]["test/score"], -(scores + shift))
    np.testing.assert_allclose(chosen[method]["chosen/rate"], best)
    assert "chosen/decay" not in chosen[method]  # It has one value.
  # The methods of a seed share its key.
  np.testing.assert_array_equal(chosen["plain"]["noise"], chosen["ours"]["noise"])
  assert len(set(chosen["plain"]["noise"].tolist())) == 3
  assert {path.name for path in (tmp_path / "stages/set").iterdir()} == {"plain", "ours"}


def test_the_first_seeds_keep_their_keys(tmp_path):
  context = Context(tmp_path, jax.random.key(0), seeds=3)
  few = kit.first_seeds(context, 2)
  assert (few.seeds, kit.first_seeds(context, 5).seeds) == (2, 3)
  assert few.seed_numbers == context.seed_numbers[:2]
  draw = lambda key: {"x": jax.random.uniform(key)}  # noqa: E731
  both = [x.over_seeds(str(x.seeds), draw)["x"] for x in (context, few)]
  np.testing.assert_array_equal(both[0][:2], both[1])


def test_lower_may_be_better(tmp_path):
  chosen = _sweep(tmp_path, better="lower")
  np.testing.assert_allclose(chosen["plain"]["chosen/rate"], [0.5, 2.0, 0.5])


def test_budgets_must_be_equal(tmp_path):
  with pytest.raises(ValueError, match=r"equally many settings, got {'plain': 2, 'ours': 1}"):
    _sweep(tmp_path, methods={"plain": GRID, "ours": GRID[:1]})


def test_a_training_that_broke_down_is_named_with_its_step(tmp_path, capsys):
  context = Context(tmp_path, jax.random.key(0), seeds=3)

  def train(key, setting):
    del key
    return {"loss": setting["rate"], "bad_step": jnp.where(setting["rate"] == 2, 17, -1)}

  rates = {"rate": np.float32([1, 2, 1])}
  results = kit.run_seeds(context, "set", train, arguments=rates)
  assert results.keys() == {"loss"}
  said = [line for line in capsys.readouterr().out.splitlines() if "finite" in line]
  assert said == ["set, seed 1: parameters are not finite after step 17"]


def test_what_diverged_is_not_chosen():
  scores = {"loss": np.array([[np.nan, 2.0], [1.0, 2.0]]), "x": np.arange(4).reshape(2, 2)}
  chosen = kit.choose(scores, [{"a": 0.0}, {"a": 1.0}], select="loss", better="lower")
  np.testing.assert_array_equal(chosen["x"], [1, 2])
  np.testing.assert_array_equal(chosen["chosen/a"], [1.0, 0.0])


@pytest.mark.parametrize(
  ("better", "chosen"), [("higher", [2.0, 1.0, 1.0]), ("lower", [1.0, 2.0, 1.0])]
)
def test_each_seed_chooses_a_method(better, chosen):
  measured = {
    "broken": {"validation": np.full(3, np.nan), "accuracy": np.zeros(3)},
    "first": {"validation": np.array([0.1, 0.2, 0.5]), "accuracy": np.ones(3), "other": np.ones(3)},
    "second": {"validation": np.array([0.3, 0.1, 0.5]), "accuracy": np.full(3, 2.0)},
  }
  best = kit.best_of(measured, list(measured), better=better)
  assert set(best) == {"validation", "accuracy"}
  np.testing.assert_array_equal(best["accuracy"], chosen)


def test_a_pilot_chooses_one_setting_for_all_seeds():
  scores = {
    "loss": np.array([[3.0, 1.0, np.nan], [0.0, 1.0, 0.0]]),
    "x": np.arange(6).reshape(2, 3),
  }
  settings = [{"a": a, "b": 1.0} for a in (0.0, 1.0, 2.0)]
  best, chosen = kit.choose_for_all(scores, settings, select="loss", better="lower")
  assert best == 1
  np.testing.assert_array_equal(chosen["x"], [1, 4])
  assert chosen["chosen/a"] == 1.0 and "chosen/b" not in chosen


def test_functions_of_seeds_are_stages_and_host_functions_are_stacked(tmp_path):
  context = Context(tmp_path, jax.random.key(0), seeds=3)
  x, y = np.arange(6.0).reshape(3, 2), np.array([1.0, 2.0, 3.0])
  draw = lambda key, x, y: {"sum": x.sum() * y, "noise": jax.random.uniform(key)}  # noqa: E731
  first, second = (kit.each_seed(context, name, draw, x, y) for name in ("a", "b"))
  np.testing.assert_allclose(first["sum"], [1.0, 10.0, 27.0])
  np.testing.assert_array_equal(first["noise"], second["noise"])
  assert len(set(first["noise"].tolist())) == 3
  stacked = kit.by_seed(lambda x, y: {"row": x[::-1], "y": y}, x, y)
  np.testing.assert_array_equal(stacked["row"], x[:, ::-1])
  np.testing.assert_array_equal(stacked["y"], y)


def test_needed_amounts_are_interpolated_and_end_with_the_grid():
  amounts, errors = (100, 400, 1600), np.array([[0.4, 0.2, 0.1], [0.4, 0.5, 0.1]])
  needed, beyond = kit.amount_needed(amounts, errors, np.array([0.2, 0.05]))
  np.testing.assert_allclose(needed, [400, 1600], rtol=1e-6)
  np.testing.assert_array_equal(beyond, [False, True])
  needed, _ = kit.amount_needed(amounts, errors, np.array([0.2 * 2**0.5, 0.2]))
  np.testing.assert_allclose(needed, [200, 800], rtol=1e-6)  # The error never rises.


def test_axes_of_arrays_become_settings():
  results, values = Results(), np.arange(12.0).reshape(2, 3, 2)
  measured = {
    "ours": {"error": values, "slope": values[:, 0, 0]},
    "other": {"error": values[:, :, 0]},
  }
  kit.add_along(results, measured, {"n": (10, 20, 30), "m": (1, 2)}, problem="a")
  assert len(results) == 6 + 1 + 3
  found = results.select("error", method="ours", n=20, m=2, problem="a")
  np.testing.assert_array_equal(found, values[:, 1, 1])
  np.testing.assert_array_equal(results.select("error", method="other", n=30), values[:, 2, 0])
  np.testing.assert_array_equal(results.select("slope"), values[:, 0, 0])
