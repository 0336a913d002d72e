from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models.early_exit import EarlyExitNet, UncertaintyGate, gate_features, stage_costs

K = 4
features = jax.jit(gate_features)


def entropy(p):
  return -sum(x * np.log(x) for x in p if x > 0)


def test_features_match_a_slow_loop():
  logits = np.random.default_rng(0).normal(size=(6, K)) * 2
  want = []
  for row in logits:
    p = np.exp(row) / np.exp(row).sum()
    first, second = sorted(p)[::-1][:2]
    want.append([first, entropy(p), first - second, entropy(p**2 / (p**2).sum())])
  np.testing.assert_allclose(features(logits), want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(features(logits.astype(jnp.bfloat16)), want, atol=0.05)
  assert features(logits.astype(jnp.bfloat16)).dtype == jnp.float32


def test_features_of_uncertain_and_confident_classifiers():
  np.testing.assert_allclose(
    np.asarray(features(np.zeros((1, K))))[0], [1 / K, np.log(K), 0, np.log(K)], atol=1e-6
  )
  confident = np.array([[1e4, -1e4, 0, 0], [0, -np.inf, -np.inf, -np.inf]], np.float32)
  np.testing.assert_array_equal(features(confident), [[1, 0, 1, 0]] * 2)


def test_no_gradient_reaches_the_classifier():
  gate = UncertaintyGate()
  logits = np.array([[0.3, 1.0, -0.2, 0.1]], np.float32)
  params = jax.jit(gate.init)(jax.random.key(0), logits)
  grads = jax.jit(jax.grad(lambda p, z: gate.apply(p, z).sum(), argnums=(0, 1)))(params, logits)
  grads = jax.device_get(grads)
  np.testing.assert_array_equal(grads[1], 0)
  np.testing.assert_allclose(
    grads[0]["params"]["affine"]["kernel"][:, 0], np.asarray(features(logits))[0], rtol=1e-6
  )


def test_single_class_raises():
  with pytest.raises(ValueError, match="classes in logits must be at least 2, got 1"):
    gate_features(jnp.zeros((2, 1)))


class Stage(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.BatchNorm(use_running_average=not train)(nn.relu(nn.Dense(self.width)(x)))


@pytest.fixture(scope="module")
def net():
  module = EarlyExitNet((Stage(8), Stage(5), Stage(6)), K)
  inputs = np.random.default_rng(1).normal(size=(3, 7, 2)).astype(np.float32)
  return module, jax.device_get(jax.jit(module.init)(jax.random.key(0), inputs)), inputs


def test_outputs_are_heads_and_gates_on_pooled_stages(net):
  module, variables, inputs = net
  logits, gate_logits = jax.device_get(jax.jit(module.apply)(variables, inputs))
  assert [z.shape for z in logits] == [(3, K)] * 3 and gate_logits.shape == (3, 2)
  pooled = jax.device_get(jax.jit(partial(module.apply, method="features"))(variables, inputs))
  assert [f.shape for f in pooled] == [(3, 8), (3, 5), (3, 6)]
  params = variables["params"]
  for i, feature in enumerate(pooled):
    head = params[f"heads_{i}"]
    np.testing.assert_allclose(logits[i], feature @ head["kernel"] + head["bias"], rtol=1e-5)
  affine = params["gates_1"]["affine"]
  want = features(logits[1]) @ affine["kernel"][:, 0] + affine["bias"]
  np.testing.assert_allclose(gate_logits[:, 1], want, rtol=1e-5)
  again = jax.jit(partial(module.apply, method="exits"))(variables, pooled)
  np.testing.assert_allclose(again.gate_logits, gate_logits, rtol=1e-6)


def test_a_prefix_runs_fewer_stages_and_one_exit_has_no_gate(net):
  module, variables, inputs = net
  pooled = jax.jit(partial(module.apply, num_stages=1, method="features"))(variables, inputs)
  assert len(pooled) == 1
  output = jax.jit(partial(module.apply, method="exits"))(variables, pooled)
  assert len(output.logits) == 1 and output.gate_logits.shape == (3, 1)
  single = EarlyExitNet((nn.Dense(3),), K)
  output, _ = jax.jit(single.init_with_output)(jax.random.key(0), inputs)
  assert len(output.logits) == 1 and output.gate_logits.shape == (3, 0)


def test_keywords_reach_the_stages(net):
  module, variables, inputs = net
  train = jax.jit(partial(module.apply, train=True, mutable=["batch_stats"]))
  _, changed = train(variables, inputs)
  before = variables["batch_stats"]["stages_0"]["BatchNorm_0"]["mean"]
  assert np.any(changed["batch_stats"]["stages_0"]["BatchNorm_0"]["mean"] != before)


def test_costs_rise_to_one_and_count_what_a_sample_passes():
  wide = 64
  model = EarlyExitNet((nn.Dense(wide), nn.Dense(wide), nn.Dense(wide)), K)
  costs = np.asarray(stage_costs(model, (wide,)))
  assert costs[-1] == 1 and np.all(np.diff(costs) > 0) and costs.dtype == np.float32
  # Multiply-adds alone; the compiler also counts the softmax of the gates and the like.
  stage, head = wide * wide, wide * K + 4
  np.testing.assert_allclose(
    costs, np.arange(1, 4) * (stage + head) / (3 * (stage + head)), atol=0.03
  )
