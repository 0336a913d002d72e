import jax
import numpy as np
import optax
import pytest

from jaxlab import algorithms, losses, models


@pytest.fixture(scope="module")
def setup():
  module = models.ConvNet(3, widths=(4, 4), strides=(2, 2))
  batches = np.random.default_rng(0).normal(size=(4, 8, 12, 1)).astype(np.float32)
  variables = module.init(jax.random.key(0), batches[0])

  def forward(params, inputs):
    return module.apply({**variables, "params": params}, inputs, train=True)

  return forward, variables["params"], batches


def by_path(params):
  return {
    "/".join(str(k.key) for k in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def run(adapter, params, batches):
  stream = jax.jit(lambda b: algorithms.adapt_stream(jax.random.key(0), adapter, start, b))
  start = adapter.init(params)
  return stream(batches)


def test_norm_adaptation_predicts_and_changes_nothing(setup):
  forward, params, batches = setup
  state, infos = run(algorithms.norm_adaptation(forward), params, batches)
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  np.testing.assert_allclose(
    infos.logits[1], forward(params, batches[1]).logits, rtol=1e-4, atol=1e-5
  )
  assert not np.any(infos.loss) and not np.any(infos.selected) and not np.any(infos.skipped)


def test_entropy_minimization_changes_only_the_affine_leaves(setup):
  forward, params, batches = setup
  adapter = algorithms.entropy_minimization(forward, optax.adam(1e-2))
  state, infos = run(adapter, params, batches)
  np.testing.assert_allclose(
    infos.loss[0], losses.softmax_entropy(infos.logits[0]).mean(), rtol=1e-5
  )
  before, after = by_path(params), by_path(state.params)
  changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
  assert changed == {f"norm_{i}/{leaf}" for i in (0, 1) for leaf in ("scale", "bias")}
  again = losses.softmax_entropy(forward(state.params, batches[0]).logits).mean()
  assert again < infos.loss[0]


def test_second_init_resets(setup):
  forward, params, batches = setup
  adapter = algorithms.entropy_minimization(forward, optax.adam(1e-2))
  _, first = run(adapter, params, batches)
  _, second = run(adapter, params, batches)
  np.testing.assert_array_equal(first.logits, second.logits)


def test_filtering_starts_as_entropy_minimization_and_then_selects(setup):
  forward, params, batches = setup
  optimizer = optax.adam(1e-1)
  filtered = algorithms.filtered_entropy_minimization(forward, optimizer, diversity_weight=0.0)
  plain = algorithms.entropy_minimization(forward, optimizer)
  state, infos = run(filtered, params, batches)
  _, expected = run(plain, params, batches)
  assert isinstance(state, algorithms.FilteredState)
  jax.tree.map(np.testing.assert_array_equal, state.source_params, params)
  np.testing.assert_array_equal(infos.selected[0], 1)
  np.testing.assert_allclose(infos.loss[0], expected.loss[0], rtol=1e-5)
  np.testing.assert_allclose(infos.logits[1], expected.logits[1], rtol=1e-3, atol=1e-4)
  source = forward(params, batches[2]).logits
  mask = losses.confidence_difference_mask(infos.logits[2], source)
  np.testing.assert_array_equal(infos.selected[2], mask)
  assert 0 < infos.selected.mean() < 1


def test_nan_hidden_by_relu_is_skipped(setup):
  forward, params, batches = setup
  bad = batches.copy()
  bad[1, 3, 5] = np.nan
  for make in (algorithms.entropy_minimization, algorithms.filtered_entropy_minimization):
    # Trains the head only: its gradient is finite where ReLU has turned NaN into 0.
    adapter = make(forward, optax.adam(1e-2), trainable=lambda path: path[0] == "head")
    state, infos = run(adapter, params, bad)
    np.testing.assert_array_equal(infos.skipped, [0, 1, 0, 0])
    assert not np.any(infos.selected[1])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
  "path, expected",
  [
    (("norm_0", "scale"), True),
    (("params", "block", "BatchNorm_1", "bias"), True),
    (("bn1", "conv", "bias"), True),
    (("norm_0", "kernel"), False),
    (("head", "bias"), False),
    (("scale",), False),
    (("norm",), False),
  ],
)
def test_norm_affine_only(path, expected):
  assert algorithms.norm_affine_only(path) is expected


def test_negative_diversity_weight_raises(setup):
  with pytest.raises(ValueError, match="diversity_weight"):
    algorithms.filtered_entropy_minimization(setup[0], optax.sgd(0.1), diversity_weight=-1.0)
