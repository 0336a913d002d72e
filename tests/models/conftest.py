import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def check_classifier():
  """Checks the interface that all classifiers of three classes share."""
  return _check_classifier


def _check_classifier(module, inputs, *, num_features, num_layers):
  shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.uniform(-0.2, 0.3, x.shape).astype(np.float32) ** 2, shapes
  )
  seen = []

  def mix(layer, hidden):
    seen.append((layer, hidden.shape[0]))
    return hidden

  @jax.jit
  def results(variables, inputs):
    outputs = module.apply(variables, inputs)
    mixed, state = module.apply(variables, inputs, train=True, mix=mix, mutable=["batch_stats"])
    return outputs, mixed, state

  outputs, trained, state = results(variables, inputs)
  assert outputs.features.shape == trained.features.shape == (len(inputs), num_features)
  assert outputs.logits.shape == trained.logits.shape == (len(inputs), 3)
  assert seen == [(layer, len(inputs)) for layer in range(num_layers)]
  head = variables["params"]["head"]
  np.testing.assert_allclose(
    outputs.logits, outputs.features @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5
  )
  # Rows are independent in evaluation; in training, running statistics change if there are any.
  others = np.concatenate([inputs[:1], 1 - inputs[1:]])
  evaluated, in_training, _ = results(variables, others)
  np.testing.assert_allclose(evaluated.logits[0], outputs.logits[0], rtol=1e-4, atol=1e-5)
  alike = np.allclose(in_training.logits[0], trained.logits[0], rtol=1e-4, atol=1e-5)
  assert alike == ("batch_stats" not in variables)
  assert ("batch_stats" in variables) == ("batch_stats" in state)
  for old, new in zip(jax.tree.leaves(variables.get("batch_stats")), jax.tree.leaves(state)):
    assert not np.array_equal(old, new)
