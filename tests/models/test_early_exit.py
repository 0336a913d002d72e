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
    features(jnp.zeros((1, K)))[0], [1 / K, np.log(K), 0, np.log(K)], atol=1e-6
  )
  confident = jnp.array([[1e4, -1e4, 0, 0], [0, -jnp.inf, -jnp.inf, -jnp.inf]])
  np.testing.assert_array_equal(features(confident), [[1, 0, 1, 0]] * 2)


def test_no_gradient_reaches_the_classifier():
  gate = UncertaintyGate()
  logits = jnp.array([[0.3, 1.0, -0.2, 0.1]])
  params = gate.init(jax.random.key(0), logits)
  grads = jax.grad(lambda p, z: gate.apply(p, z).sum(), argnums=(0, 1))(params, logits)
  np.testing.assert_array_equal(grads[1], 0)
  np.testing.assert_allclose(
    grads[0]["params"]["affine"]["kernel"][:, 0], features(logits)[0], rtol=1e-6
  )


def test_single_class_raises():
  with pytest.raises(ValueError, match="two classes"):
    gate_features(jnp.zeros((2, 1)))


class Stage(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.BatchNorm(use_running_average=not train)(nn.relu(nn.Dense(self.width)(x)))


@pytest.fixture(scope="module")
def net():
  module = EarlyExitNet((Stage(8), Stage(5), Stage(6)), K)
  inputs = jax.random.normal(jax.random.key(1), (3, 7, 2))
  return module, module.init(jax.random.key(0), inputs), inputs


def test_outputs_are_heads_and_gates_on_pooled_stages(net):
  module, variables, inputs = net
  logits, gate_logits = module.apply(variables, inputs)
  assert [z.shape for z in logits] == [(3, K)] * 3 and gate_logits.shape == (3, 2)
  pooled = module.apply(variables, inputs, method="features")
  assert [f.shape for f in pooled] == [(3, 8), (3, 5), (3, 6)]
  params = variables["params"]
  for i, feature in enumerate(pooled):
    head = params[f"heads_{i}"]
    np.testing.assert_allclose(logits[i], feature @ head["kernel"] + head["bias"], rtol=1e-5)
  affine = params["gates_1"]["affine"]
  want = gate_features(logits[1]) @ affine["kernel"][:, 0] + affine["bias"]
  np.testing.assert_allclose(gate_logits[:, 1], want, rtol=1e-5)
  again = module.apply(variables, pooled, method="exits")
  np.testing.assert_allclose(again.gate_logits, gate_logits, rtol=1e-6)


def test_a_prefix_runs_fewer_stages_and_one_exit_has_no_gate(net):
  module, variables, inputs = net
  pooled = module.apply(variables, inputs, num_stages=1, method="features")
  assert len(pooled) == 1
  output = module.apply(variables, pooled, method="exits")
  assert len(output.logits) == 1 and output.gate_logits.shape == (3, 1)
  single = EarlyExitNet((nn.Dense(3),), K)
  output, _ = single.init_with_output(jax.random.key(0), inputs)
  assert len(output.logits) == 1 and output.gate_logits.shape == (3, 0)


def test_keywords_reach_the_stages(net):
  module, variables, inputs = net
  _, changed = module.apply(variables, inputs, train=True, mutable=["batch_stats"])
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
