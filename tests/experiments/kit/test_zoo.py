"""Base models, on chains of three numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import zoo
from experiments.kit.language_models import text_loss
from jaxlab import data, experiment, models, training
from jaxlab.experiment.workdir import DamagedFileError

TASK = data.ModularChainConfig(modulus=3, num_terms=2, misconception_rate=0.3, noise=0.0)
TINY = zoo.BaseModel(TASK, 16, 1, 2, num_steps=20, batch_size=8)


@pytest.fixture(autouse=True)
def own_directory(monkeypatch, tmp_path):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path / "data"))


def test_a_base_model_is_trained_once_and_shared(monkeypatch, capsys):
  base = TINY
  monkeypatch.setitem(zoo.BASE_MODELS, "tiny", base)
  assert zoo.main(["--list"]) == 0
  size = models.num_parameters(base.model.config)
  assert f"tiny: {size:,} parameters, not made yet: {base.path}" in capsys.readouterr().out
  assert zoo.main(["--make=tiny"]) == 0
  out = capsys.readouterr().out
  assert f"training {base.path.name} for 20 steps" in out
  assert f"tiny: {size:,} parameters, made: {base.path}" in out
  first = base.load()
  assert capsys.readouterr().out == ""
  tokens = jnp.zeros((1, base.model.config.max_positions), jnp.int32)
  shapes = jax.eval_shape(base.model.init, jax.random.key(0), tokens)["params"]
  jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), first, shapes)
  # Another configuration is another file, and a damaged file is named.
  others = [
    dataclasses.replace(base, seed=1),
    dataclasses.replace(base, task=data.ModularChainConfig()),
  ]
  assert len({base.path, *(x.path for x in others)}) == 3
  base.path.write_bytes(base.path.read_bytes()[:-100])
  with pytest.raises(DamagedFileError, match=base.path.name):
    base.load()


def test_seeds_of_a_run_are_members_with_tables_of_their_own(tmp_path, capsys):
  axes = {"axis_types": (jax.sharding.AxisType.Auto,), "devices": jax.devices()[:2]}
  mesh = jax.make_mesh((2,), ("data",), **axes)
  options = {"key": jax.random.key(0), "seeds": 3, "first_seed": 4, "mesh": mesh}
  context = experiment.Context(tmp_path / "run", **options)
  base = dataclasses.replace(TINY, num_steps=300, batch_size=32)
  stacked = base.load_seeds(context, "base")
  out = capsys.readouterr().out
  members = [base.with_seeds(seed, seed) for seed in (4, 5, 6)]
  assert all(member.path.exists() and member.path.name in out for member in members)
  jax.tree.map(
    lambda leaf, *own: np.testing.assert_array_equal(leaf, np.stack(own)),
    stacked,
    *(member.load() for member in members),
  )

  # A member knows its own table better than those of the others.
  @jax.jit
  def loss(params, tables):
    def on(table):
      texts = members[0].with_seeds(0, table).draw(jax.random.key(1), 200)
      output = text_loss(base.model)(params, {}, texts, jax.random.key(0))
      return jnp.sum(output.values * output.weights)

    return jax.lax.map(on, tables)

  values = [loss(jax.tree.map(lambda x, i=i: x[i], stacked), np.arange(4, 7)) for i in range(3)]
  np.testing.assert_array_equal(np.argmin(values, axis=0), np.arange(3))
  # Files that are there are read, whatever run asks for them.
  again = experiment.Context(tmp_path / "other", **options)
  jax.tree.map(np.testing.assert_array_equal, base.load_seeds(again, "base"), stacked)
  assert "training" not in capsys.readouterr().out


def test_a_training_that_breaks_down_stores_nothing():
  base = dataclasses.replace(TINY, learning_rate=float("inf"))
  with pytest.raises(training.NonFiniteLossError, match="params is nan at step"):
    base.load()
  assert not base.path.exists()


def test_a_ladder_names_its_models():
  models_by_name = zoo.ladder(TASK, ((16, 1, 2, (0.1, 0.05)), (32, 2, 4, (0.0,))), batch_size=8)
  assert list(models_by_name) == ["d16x1-noise0.1", "d16x1-noise0.05", "d32x2-noise0"]
  last = models_by_name["d32x2-noise0"]
  assert (last.hidden_size, last.num_layers, last.num_heads, last.batch_size) == (32, 2, 4, 8)
  assert [model.task.noise for model in models_by_name.values()] == [0.1, 0.05, 0.0]


def test_a_name_that_there_is_not_is_refused(capsys):
  with pytest.raises(SystemExit) as error:
    zoo.main(["--make=chain"])
  assert error.value.code == 2
  assert "invalid choice: 'chain' (choose from" in capsys.readouterr().err
