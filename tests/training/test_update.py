import os
import pathlib
import re
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxlab.training.mesh import make_mesh, shard_batch, shard_params
from jaxlab.training.state import init_state
from jaxlab.training.update import LossOutput, build_evaluate, build_update

ROWS, TOKENS, STEPS = 16, 5, 6
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
RULES = [("a/kernel", P(None, "model")), ("b/kernel", P("model"))]


def random(seed):
  return np.random.default_rng(seed)


PARAMS = {
  "a": {"kernel": random(0).normal(size=(3, 8)).astype(np.float32), "bias": np.ones(8, np.float32)},
  "b": {"kernel": random(1).normal(size=(8, TOKENS)).astype(np.float32)},
}


def batch_of(step):
  """A batch whose rows have increasing numbers of valid tokens, the first ones none."""
  rng = random(100 + step)
  return {
    "x": rng.normal(size=(ROWS, 3)).astype(np.float32),
    "y": rng.normal(size=(ROWS, TOKENS)).astype(np.float32),
    "weights": (rng.random((ROWS, TOKENS)) < np.linspace(-0.2, 1, ROWS)[:, None]).astype("float32"),
  }


def token_loss(params, model_state, batch, key):
  del model_state, key
  hidden = jnp.tanh(batch["x"] @ params["a"]["kernel"] + params["a"]["bias"])
  errors = hidden @ params["b"]["kernel"] - batch["y"]
  metrics = {"absolute": jnp.abs(errors), "mean": jnp.mean(errors)}
  return LossOutput(errors**2, batch["weights"], metrics=metrics)


def stack(trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def train(loss_fn=token_loss, params=PARAMS, optimizer=OPTIMIZER, steps=STEPS, **options):
  """Trains on the same batches for any split; returns the metrics of all steps, and the state."""
  update = build_update(loss_fn, optimizer, **options)
  state, rows = init_state(jax.random.key(0), params, optimizer), []
  per_call = options.get("steps_per_call", 1)
  for start in range(0, steps, per_call):
    batches = [batch_of(start + i) for i in range(per_call)]
    state, metrics = update(state, stack(batches) if per_call > 1 else batches[0])
    rows += (
      [metrics]
      if per_call == 1
      else [{k: v[i] for k, v in metrics.items()} for i in range(per_call)]
    )
  return state, stack(jax.device_get(rows))


def assert_close(tree, expected, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol),
    jax.device_get(tree),
    jax.device_get(expected),
  )


@pytest.fixture(scope="module")
def plain():
  return train()


@pytest.mark.parametrize(
  ("axes", "options"),
  [
    (None, {"accumulate": 2}),
    (None, {"accumulate": 4}),
    (None, {"steps_per_call": 3}),
    ({"data": 1}, {}),
    ({"data": 8}, {}),
    ({"data": 8}, {"accumulate": 2, "steps_per_call": 3}),
    ({"data": 4}, {"accumulate": 4}),
    ({"data": 1, "model": 2}, {}),
    ({"data": 1, "model": 2}, {"accumulate": 2, "steps_per_call": 3}),
    ({"data": 2, "model": 4}, {}),
    ({"data": 2, "model": 4}, {"accumulate": 2, "steps_per_call": 3}),
  ],
)
def test_splitting_the_batch_does_not_change_the_result(axes, options, plain):
  mesh = axes and make_mesh(axes)
  params = shard_params(PARAMS, mesh, RULES) if axes and "model" in axes else PARAMS
  state, metrics = train(params=params, mesh=mesh, **options)
  assert_close(state.params, plain[0].params)
  assert_close(state.opt_state, plain[0].opt_state)
  assert_close(metrics, plain[1], atol=1e-5)
  assert state.step == STEPS and state.key == jax.random.key(0)
  if axes and "model" in axes:
    assert state.params["a"]["kernel"].sharding.spec == P(None, "model")
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (3, 8)]
    assert [leaf.sharding.spec for leaf in moments] == [P(None, "model")]


def test_equals_gradient_descent_by_hand():
  rng, learning_rate = random(7), 0.05
  inputs = rng.normal(size=(4, ROWS, 3)).astype(np.float32)
  targets = rng.normal(size=(4, ROWS)).astype(np.float32)
  weights = rng.random((4, ROWS)).astype(np.float32)

  def loss_fn(params, model_state, batch, key):
    x, y, w = batch
    return LossOutput((x @ params["w"] + params["b"] - y) ** 2, w)

  optimizer = optax.sgd(learning_rate)
  update = build_update(loss_fn, optimizer, mesh=make_mesh({"data": 4}), accumulate=2)
  params = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
  state = init_state(jax.random.key(0), params, optimizer)
  slope, offset = np.zeros(3), 0.0
  for x, y, w in zip(inputs, targets, weights):
    slope_gradient, offset_gradient, loss = np.zeros(3), 0.0, 0.0
    for row in range(ROWS):
      error = x[row] @ slope + offset - y[row]
      loss += w[row] * error**2 / w.sum()
      slope_gradient += w[row] * 2 * error * x[row] / w.sum()
      offset_gradient += w[row] * 2 * error / w.sum()
    state, metrics = update(state, (x, y, w))
    slope, offset = slope - learning_rate * slope_gradient, offset - learning_rate * offset_gradient
    norm = np.sqrt((slope_gradient**2).sum() + offset_gradient**2)
    assert_close(metrics, {"loss": loss, "grad_norm": norm, "weight": w.sum()}, atol=1e-5)
  assert_close(state.params, {"w": slope, "b": offset})


def test_scalar_metrics_are_plain_means_over_pieces():
  def loss_fn(params, model_state, batch, key):
    return LossOutput(params * batch["y"], batch["weights"], metrics={"top": batch["y"].max()})

  _, metrics = train(
    loss_fn, np.float32(1), optax.sgd(0.1), 1, mesh=make_mesh({"data": 4}), accumulate=2
  )
  tops = batch_of(0)["y"].reshape(8, -1).max(1)
  np.testing.assert_allclose(metrics["top"], [tops.mean()], rtol=1e-6)


@pytest.mark.parametrize("axes", [None, {"data": 2}])
def test_zero_weight_gives_zero_loss_and_gradient_but_the_optimizer_runs(axes):
  def loss_fn(params, model_state, batch, key):
    # Values and gradients are non-finite: elements of weight 0 must be ignored.
    return LossOutput(jnp.log(params * 0) * jnp.ones(4), jnp.zeros(4), metrics={"m": jnp.ones(4)})

  optimizer = optax.chain(optax.sgd(0.1), optax.add_decayed_weights(-0.5), optax.scale(1.0))
  update = build_update(loss_fn, optimizer, mesh=axes and make_mesh(axes))
  state = init_state(jax.random.key(0), jnp.float32(2), optimizer)
  state, metrics = update(state, np.ones((4, 1), np.float32))
  assert state.step == 1 and state.params == 1
  assert_close(metrics, {"loss": 0, "grad_norm": 0, "weight": 0, "m": 0})


def test_masked_values_may_be_non_finite():
  def loss_fn(params, model_state, batch, key):
    values = params * jnp.array([1.0, 5, 3, 5]) + jnp.array([0, jnp.inf, 0, jnp.nan])
    metrics = {"metric": jnp.array([1.0, jnp.nan, 2, -jnp.inf])}
    return LossOutput(values, jnp.array([1.0, 0, 1, 0]), metrics=metrics)

  _, metrics = train(loss_fn, np.float32(2), optax.sgd(0.1), 1)
  assert_close(metrics, {"loss": [4], "grad_norm": [2], "weight": [2], "metric": [1.5]})


def test_no_gradient_flows_into_weights():
  def loss_fn(params, model_state, batch, key):
    return LossOutput(params * jnp.array([1.0, 3.0]), params * jnp.array([1.0, 1.0]))

  _, metrics = train(loss_fn, np.float32(5), optax.sgd(0.1), 1)
  assert_close(metrics, {"loss": [10], "grad_norm": [2], "weight": [10]})


def test_bfloat16_parameters_accumulate_in_float32():
  # One gradient of 1, then fifteen that a bfloat16 sum over micro-batches would round away. The
  # first micro-batch of two rows is rounded before the sum.
  slopes = np.array([1.0] + [1 / 512] * 15, np.float32)

  def loss_fn(params, model_state, batch, key):
    return LossOutput(params.astype(jnp.float32) * batch, jnp.full(batch.shape, 1 / 16))

  optimizer = optax.adam(1e-2)
  update = build_update(loss_fn, optimizer, mesh=make_mesh({"data": 2}), accumulate=4)
  state = init_state(jax.random.key(0), jnp.bfloat16(1), optimizer)
  types = jax.tree.map(lambda x: x.dtype, state)
  state, metrics = update(state, slopes)
  assert jax.tree.map(lambda x: x.dtype, state) == types
  np.testing.assert_allclose(metrics["grad_norm"], (1 + 14 / 512) / 16, rtol=1e-6)
  assert metrics["loss"].dtype == jnp.float32


def noise_of(batch, **options):
  """The random number that every row of a batch gets."""

  def loss_fn(params, model_state, batch, key):
    rows = jnp.arange(ROWS) == batch[:, None]
    noise = jnp.where(rows, jax.random.uniform(key), 0)
    return LossOutput(jnp.sum(params * noise, axis=1))

  optimizer = optax.sgd(float(ROWS))
  update = build_update(loss_fn, optimizer, **options)
  state = init_state(jax.random.key(3), jnp.zeros(ROWS), optimizer)._replace(step=jnp.int32(5))
  state, _ = update(state, batch)
  return -np.asarray(state.params)


def test_keys_of_steps_micro_batches_and_devices():
  rows = np.arange(ROWS)
  step_key = jax.random.fold_in(jax.random.key(3), 5)
  keys = [jax.random.fold_in(step_key, i) for i in range(2)]
  first, second = (float(jax.random.uniform(key)) for key in keys)
  np.testing.assert_allclose(noise_of(rows), first, rtol=1e-6)
  np.testing.assert_allclose(
    noise_of(rows, accumulate=2), np.repeat([first, second], ROWS // 2), rtol=1e-6
  )
  other = [float(jax.random.uniform(jax.random.fold_in(key, 1))) for key in keys]
  np.testing.assert_allclose(
    noise_of(rows, accumulate=2, mesh=make_mesh({"data": 2})),
    np.repeat([first, second, *other], ROWS // 4),
    rtol=1e-6,
  )


def test_raw_keys_give_the_same_numbers():
  def loss_fn(params, model_state, batch, key):
    return LossOutput(params * jax.random.normal(key, (2,)))

  update = build_update(loss_fn, optax.sgd(1.0), mesh=make_mesh({"data": 2}))
  typed, raw = (
    update(init_state(make(4), jnp.float32(0), optax.sgd(1.0)), np.ones(4))[0]
    for make in (jax.random.key, jax.random.PRNGKey)
  )
  assert typed.params == raw.params != 0
  assert raw.key.tolist() == jax.random.PRNGKey(4).tolist()


class Normalized(nn.Module):
  @nn.compact
  def __call__(self, inputs):
    hidden = nn.BatchNorm(use_running_average=False, momentum=0.5, axis_name="data")(inputs)
    return nn.Dense(1)(jnp.tanh(hidden))[:, 0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_statistics_see_all_devices_and_flow_through_micro_batches(accumulate):
  model, optimizer = Normalized(), optax.sgd(0.1)
  inputs = random(4).normal(size=(ROWS, 3)).astype(np.float32) * np.arange(1, ROWS + 1)[:, None]
  inputs = inputs.astype(np.float32)

  def loss_fn(params, model_state, batch, key):
    outputs, new = model.apply(
      {"params": params, "batch_stats": model_state["stats"]}, batch, mutable=["batch_stats"]
    )
    new = {"stats": new["batch_stats"], "count": model_state["count"] + 1}
    return LossOutput((outputs - 1) ** 2, model_state=new)

  variables = Normalized().init(jax.random.key(0), inputs)

  def run(mesh, batch):
    model_state = {"stats": variables["batch_stats"], "count": jnp.int32(0)}
    state = init_state(jax.random.key(0), variables["params"], optimizer, model_state=model_state)
    update = build_update(loss_fn, optimizer, mesh=mesh, accumulate=accumulate)
    return update(state, batch)[0]

  # Micro-batch i of four devices is made of the i-th pieces of each one's rows.
  pieces = inputs.reshape(4, accumulate, -1, 3).swapaxes(0, 1).reshape(ROWS, 3)
  sharded, single = run(make_mesh({"data": 4}), inputs), run(None, pieces)
  assert_close(sharded.params, single.params)
  assert_close(sharded.model_state, single.model_state, atol=1e-5)
  assert single.model_state["count"] == accumulate
  expected = np.zeros(3)
  for rows in pieces.reshape(accumulate, -1, 3):
    expected = 0.5 * expected + 0.5 * rows.mean(0)
  assert_close(single.model_state["stats"]["BatchNorm_0"]["mean"], expected, atol=1e-5)


def all_reduced_bytes(text):
  """Bytes that the all-reduces of a compiled program move; asserts that none is in a loop."""
  widths = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
  total = 0
  for line in text.splitlines():
    match = re.search(r"= (.*?) all-reduce(-start)?\(", line)
    if match:
      assert "while/body" not in line
      for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
        total += widths[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
  return total


@pytest.mark.shipping
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_all_reduce_of_the_gradient_and_a_few_scalars(accumulate):
  mesh = make_mesh({"data": 8})
  update = build_update(token_loss, OPTIMIZER, mesh=mesh, accumulate=accumulate)
  state = init_state(jax.random.key(0), PARAMS, OPTIMIZER)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch_of(0)))
  compiled = update.lower(*shapes).compile().as_text()
  gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
  scalars = 4 * len(("loss", "weight", "absolute", "mean"))
  assert all_reduced_bytes(compiled) == gradient + scalars


@pytest.mark.parametrize("axes", [None, {"data": 2}])
def test_the_state_is_donated_and_what_made_it_is_not(axes):
  update = build_update(token_loss, OPTIMIZER, mesh=axes and make_mesh(axes))
  params = jax.tree.map(jnp.asarray, PARAMS)
  first = init_state(jax.random.key(0), params, OPTIMIZER)
  second, _ = update(first, batch_of(0))
  update(second, batch_of(1))
  for state in (first, second):
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("axes", [None, {"data": 2, "model": 4}])
def test_a_hundred_steps_compile_once(axes, caplog):
  mesh = axes and make_mesh(axes)
  params = shard_params(PARAMS, mesh, RULES) if axes else PARAMS
  # Factored moments differ in shape from the parameters: unpinned, their sharding would drift.
  optimizer = optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=2),
    optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
  )
  update = build_update(token_loss, optimizer, mesh=mesh)
  state, batch = init_state(jax.random.key(0), params, optimizer), batch_of(0)
  state, _ = update(state, batch)

  def traced_or_compiled():
    return [r for r in caplog.records if "tracing" in r.message or "Compiling" in r.message]

  with jax.log_compiles():
    for _ in range(100):
      state, metrics = update(state, batch)
    assert not traced_or_compiled()
    jax.jit(lambda x: x + 1)(metrics["loss"])
    assert len(traced_or_compiled()) >= 2


def test_one_update_serves_states_with_different_shardings(plain):
  mesh = make_mesh({"data": 2, "model": 4})
  update = build_update(token_loss, OPTIMIZER, mesh=mesh)
  for rules, spec in (([], P()), (RULES, P(None, "model")), ([], P())):
    state = init_state(jax.random.key(0), shard_params(PARAMS, mesh, rules), OPTIMIZER)
    state, metrics = update(state, batch_of(0))
    assert state.params["a"]["kernel"].sharding.spec == spec
    assert_close(metrics["loss"], plain[1]["loss"][0])


def test_global_batches_and_updates_inside_transformations(plain):
  mesh = make_mesh({"data": 2})
  update = build_update(token_loss, OPTIMIZER, mesh=mesh)
  state = init_state(jax.random.key(0), PARAMS, OPTIMIZER)
  for step in range(STEPS - 1):
    state, _ = update(state, shard_batch(batch_of(step), mesh))
  loss = jax.jit(lambda batch: update(state, batch)[1]["loss"])(batch_of(STEPS - 1))
  state, _ = jax.jit(update)(state, batch_of(STEPS - 1))
  assert_close(state.params, plain[0].params)
  assert_close(loss, plain[1]["loss"][-1])


def test_optimizer_may_use_the_loss():
  optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
  state, metrics = train(optimizer=optimizer, steps=2)
  assert_close(state.opt_state[1].best_value, metrics["loss"].min())


def bad(output):
  return lambda params, model_state, batch, key: output(params * batch)


@pytest.mark.parametrize(
  ("loss_fn", "error", "words"),
  [
    (bad(lambda x: x), TypeError, "must return a LossOutput"),
    (
      bad(lambda x: LossOutput(x, x[:1])),
      ValueError,
      r"LossOutput.weights must .* \[4\], got \[1\]",
    ),
    (bad(lambda x: LossOutput(x, metrics={"m": x[:3]})), ValueError, r"'m' of shape \(3,\)"),
    (bad(lambda x: LossOutput(x, metrics={"loss": x})), ValueError, "'loss'"),
    (bad(lambda x: LossOutput(x, model_state={"n": x})), ValueError, "model_state of structure"),
  ],
)
def test_invalid_loss_functions_raise(loss_fn, error, words):
  update = build_update(loss_fn, OPTIMIZER)
  with pytest.raises(error, match=words):
    update(init_state(jax.random.key(0), np.float32(1), OPTIMIZER), np.ones(4, np.float32))


def test_indivisible_batches_raise():
  state = init_state(jax.random.key(0), np.float32(1), OPTIMIZER)
  loss_fn = bad(LossOutput)
  with pytest.raises(ValueError, match="6 rows .* 4 devices"):
    build_update(loss_fn, OPTIMIZER, mesh=make_mesh({"data": 4}))(state, np.ones(6))
  with pytest.raises(ValueError, match="12 rows .* 8: 4 devices x accumulate 2"):
    build_update(loss_fn, OPTIMIZER, mesh=make_mesh({"data": 4}), accumulate=2)(state, np.ones(12))
  with pytest.raises(ValueError, match="5 rows .* 1 devices x accumulate 2"):
    build_update(loss_fn, OPTIMIZER, accumulate=2)(state, np.ones(5))
  with pytest.raises(ValueError, match=r"steps_per_call is 3.*\(2, 4\)"):
    build_update(loss_fn, OPTIMIZER, steps_per_call=3)(state, np.ones((2, 4)))


def test_invalid_settings_raise():
  with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
    build_update(token_loss, OPTIMIZER, accumulate=0)
  with pytest.raises(ValueError, match="steps_per_call must be at least 1, got -1"):
    build_update(token_loss, OPTIMIZER, steps_per_call=-1)
  with pytest.raises(ValueError, match="needs an axis 'data'"):
    build_update(token_loss, OPTIMIZER, mesh=make_mesh({"model": 2}))
  with pytest.raises(ValueError, match="needs an axis 'data'"):
    build_evaluate(token_loss, mesh=make_mesh({"model": 2}))


@pytest.mark.parametrize("axes", [None, {"data": 4}])
@pytest.mark.parametrize("cuts", [(16, 16, 5), (6, 6, 6, 1), (3,)])
def test_evaluation_is_exact_over_an_epoch(axes, cuts):
  mesh, traces = axes and make_mesh(axes), []

  def loss_fn(*args):
    traces.append(1)
    return token_loss(*args)

  data = jax.tree.map(lambda *x: np.concatenate(x), *[batch_of(i) for i in range(3)])
  edges = np.cumsum((0, *cuts))
  batches = [jax.tree.map(lambda x, a=a, b=b: x[a:b], data) for a, b in zip(edges, edges[1:])]
  state = init_state(jax.random.key(0), PARAMS, OPTIMIZER)
  result = build_evaluate(loss_fn, mesh=mesh)(state, iter(batches))
  hidden = np.tanh(data["x"] @ PARAMS["a"]["kernel"] + PARAMS["a"]["bias"])
  errors = (hidden @ PARAMS["b"]["kernel"] - data["y"])[: edges[-1]]
  weights = data["weights"][: edges[-1]]
  total = weights.sum()
  assert all(isinstance(value, float) for value in result.values())
  assert result["weight"] == total
  if total:
    np.testing.assert_allclose(result["loss"], (errors**2 * weights).sum() / total, rtol=1e-5)
    np.testing.assert_allclose(
      result["absolute"], (np.abs(errors) * weights).sum() / total, rtol=1e-5
    )
  else:
    assert result["loss"] == result["absolute"] == 0
  assert len(traces) == 1
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_evaluation_keys_are_fixed_and_differ_between_batches():
  def loss_fn(params, model_state, batch, key):
    return LossOutput(jax.random.uniform(key) * jnp.ones(batch.shape))

  evaluate = build_evaluate(loss_fn)
  state = init_state(jax.random.key(0), np.float32(1), OPTIMIZER)
  once = evaluate(state, [np.ones(2)])
  assert once == evaluate(state._replace(step=jnp.int32(9)), [np.ones(2)])
  assert once["loss"] != evaluate(state, [np.ones(2)] * 2)["loss"]


def test_evaluation_of_global_arrays():
  mesh = make_mesh({"data": 2})
  state = init_state(jax.random.key(0), PARAMS, OPTIMIZER)
  batches = [batch_of(0), jax.tree.map(lambda x: x[:6], batch_of(1))]
  evaluate = build_evaluate(token_loss, mesh=mesh)
  placed = evaluate(state, [shard_batch(batch, mesh) for batch in batches])
  assert placed == pytest.approx(evaluate(state, batches))


def test_evaluation_errors():
  state = init_state(jax.random.key(0), PARAMS, OPTIMIZER)
  with pytest.raises(ValueError, match="batches is empty"):
    build_evaluate(token_loss)(state, [])
  with pytest.raises(ValueError, match=r"number of rows, got \[\(2,\), \(3,\)\]"):
    build_evaluate(token_loss)(state, [{"x": np.ones((2, 3)), "y": np.ones(3)}])
  with pytest.raises(ValueError, match=r"number of rows, got \[\(\), \(2,\)\]"):
    build_evaluate(token_loss)(state, [{"x": np.ones((2, 3)), "y": np.float32(1)}])
  with pytest.raises(ValueError, match=r"leading axis of the 3 rows of a batch; got shape \(\)"):
    build_evaluate(lambda p, s, batch, key: LossOutput(batch.mean()))(state, [np.ones(3)])


SCRIPT = """
import sys
import jax
import numpy as np

sys.path.insert(0, sys.argv[1])
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")

from jaxlab.training.mesh import initialize_multihost, make_mesh

initialize_multihost()
import test_update as t
from jaxlab.training.state import init_state
from jaxlab.training.update import build_evaluate, build_update

process = jax.process_index()
assert jax.process_count() == 2 and jax.device_count() == 4
mine = lambda batch: jax.tree.map(lambda x: np.split(x, 2)[process], batch)
mesh = make_mesh({"data": -1})
update = build_update(t.token_loss, t.OPTIMIZER, mesh=mesh, accumulate=2)
state = init_state(jax.random.key(0), t.PARAMS, t.OPTIMIZER)
for step in range(t.STEPS):
  state, metrics = update(state, mine(t.batch_of(step)))
half = jax.tree.map(lambda x: x[: 5 - 2 * process], mine(t.batch_of(1)))
loss = build_evaluate(t.token_loss, mesh=mesh)(state, [mine(t.batch_of(0)), half])["loss"]
leaves = [np.asarray(x) for x in jax.tree.leaves(state.params)]
np.savez(sys.argv[2] + str(process) + ".npz", *leaves, loss=loss)
"""


@pytest.mark.processes
def test_two_processes_give_the_parameters_of_one(tmp_path, plain):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  here = pathlib.Path(__file__).parent
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "NPROC": "4",
    "PYTHONPATH": str(here.parent.parent),
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": "2",
  }
  running = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, str(here), str(tmp_path / "p")],
      env={**environment, "JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=600)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)

  state = plain[0]
  batches = [batch_of(0), jax.tree.map(lambda x: x[[0, 1, 2, 3, 4, 8, 9, 10]], batch_of(1))]
  loss = build_evaluate(token_loss)(state, batches)["loss"]
  for i in range(2):
    saved = np.load(tmp_path / f"p{i}.npz")
    for j, leaf in enumerate(jax.tree.leaves(state.params)):
      np.testing.assert_allclose(saved[f"arr_{j}"], leaf, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(saved["loss"], loss, rtol=1e-5)
