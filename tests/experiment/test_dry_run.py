import re
import resource

import jax
import jax.numpy as jnp
import pytest

from jaxlab import experiment, training
from tests.experiment import tiny_experiment as tiny


def execute(*arguments):
  return experiment.execute(tiny, ["tiny", *arguments])


def test_dry_run_allocates_nothing(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  alive = len(jax.live_arrays())
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert execute("--preset=paper", "--dry_run", "--mesh=data:4,model:2", "--nonoisy") == 0
  out = capsys.readouterr().out
  assert "parameters        2,000,000,000\n" in out
  # Eight rows, forward, and backward into the weights only.
  assert re.search(r"FLOPs a step +64 G \(64000000000;", out)
  # Weights, momentum, and a quarter of eight rows.
  bytes_ = re.search(r"bytes a device +\S+ GB \((\d+); arguments 32 GB", out)
  assert int(bytes_[1]) >= 4 * 2 * 10**9 * (2 + 2)
  assert "devices           8\n" in out
  assert len(jax.live_arrays()) == alive and list(tmp_path.iterdir()) == []
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 10**6  # One GB.


def test_dry_run_needs_abstract(capsys, monkeypatch):
  monkeypatch.setattr(tiny, "abstract", lambda config, mesh: (sum, jnp.zeros(3)))
  with pytest.raises(TypeError, match=r"returned an array of shape \(3,\)"):
    execute("--dry_run")
  monkeypatch.delattr(tiny, "abstract")
  assert execute("--dry_run") == 2
  assert "needs a function abstract(config, mesh)" in capsys.readouterr().err


def test_flops_count_every_turn_and_device():
  square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  one = 2.0 * 4**3

  def scanned(w, x):
    return jax.lax.scan(lambda c, _: (jax.checkpoint(jnp.dot)(c, w), None), x, None, length=5)[0]

  assert experiment.count_flops(scanned, square, square) == 5 * one
  branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)  # noqa: E731
  assert experiment.count_flops(branches, square) == 2 * one
  mesh = training.make_mesh({"data": 4})
  spec = jax.sharding.PartitionSpec("data")
  sharded = jax.jit(
    jax.shard_map(lambda x: x @ jnp.ones((4, 4)), mesh=mesh, in_specs=spec, out_specs=spec)
  )
  assert experiment.count_flops(sharded, square) == one
  image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 2, 6))
  convolved = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
  )
  assert experiment.count_flops(convolved, image, kernel) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)
