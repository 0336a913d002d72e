import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models import in_context
from jaxlab.samplers import previous_label_one_hot

RNG = np.random.default_rng(0)
B, N, WIDTH = 2, 6, 4
TOKENS = RNG.normal(size=(B, N, 5)).astype(np.float32)
NETWORKS = {
  "transformer": in_context.InContextTransformer(
    3, embed_dim=WIDTH, num_layers=2, num_heads=2, max_length=N
  ),
  "unplaced": in_context.InContextTransformer(
    3, embed_dim=WIDTH, num_layers=2, num_heads=2, positions="none"
  ),
  "lstm": in_context.InContextLSTM(3, WIDTH, num_layers=2),
  "outer": in_context.InContextOuterProductLSTM(3, WIDTH, num_layers=2),
}


@functools.cache
def network(name):
  """The compiled network, and parameters that are far from 0."""
  module = NETWORKS[name]
  shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  return jax.jit(module.apply), variables


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_depend_on_the_past_alone(name):
  apply, variables = network(name)
  outputs = np.asarray(apply(variables, TOKENS))
  assert outputs.shape == (B, N, 3) and outputs.dtype == np.float32
  changed = TOKENS.copy()
  changed[1, 3] += 1
  others = np.asarray(apply(variables, changed))
  np.testing.assert_array_equal(outputs[0], others[0])
  np.testing.assert_array_equal(outputs[1, :3], others[1, :3])
  assert (np.abs(outputs[1, 3:] - others[1, 3:]).max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize("name", ["transformer", "outer"])
def test_a_label_reaches_later_predictions_alone(name):
  apply, variables = network(name)
  labels = np.array([[0, 1, 0, 1, 1, 0]] * B, np.int32)
  encode = jax.jit(functools.partial(previous_label_one_hot, num_classes=2))

  def logits(labels):
    tokens = [TOKENS[..., :3], np.asarray(encode(labels))]
    return np.asarray(apply(variables, np.concatenate(tokens, axis=-1)))

  changed = labels.copy()
  changed[0, 2] = 1
  one, other = logits(labels), logits(changed)
  np.testing.assert_array_equal(one[0, :3], other[0, :3])
  assert np.abs(one[0, 3] - other[0, 3]).max() > 1e-6


def test_order_shows_through_the_mask_alone_without_positions():
  apply, variables = network("unplaced")
  swapped = TOKENS[:, [1, 0, 2, 3, 4, 5]]
  one, other = (np.asarray(apply(variables, tokens)) for tokens in (TOKENS, swapped))
  single = in_context.InContextTransformer(
    3, embed_dim=WIDTH, num_layers=1, num_heads=2, positions="none"
  )
  apply = jax.jit(single.apply)
  params = {k: v for k, v in variables["params"].items() if k != "layer_1"}
  # With one layer the past is a set; with more, the tokens of the past have pasts of their own.
  sets = [np.asarray(apply({"params": params}, tokens)) for tokens in (TOKENS, swapped)]
  np.testing.assert_allclose(sets[0][:, 2:], sets[1][:, 2:], rtol=1e-4, atol=1e-4)
  assert np.abs(one[:, 2:] - other[:, 2:]).max() > 1e-4


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", ["lstm", "outer"])
def test_recurrent_layers_match_a_loop(name):
  apply, variables = network(name)
  params = variables["params"]
  hidden = TOKENS
  for layer in range(2):
    dense, recurrent = params[f"layer_{layer}_inputs"], params[f"layer_{layer}_recurrent"]
    outputs = np.zeros((B, N, WIDTH))
    for b in range(B):
      out, cell, matrix = np.zeros(WIDTH), np.zeros(WIDTH), np.zeros((WIDTH, WIDTH))
      for i in range(N):
        mapped = hidden[b, i] @ dense["kernel"] + dense["bias"] + out @ recurrent
        parts = mapped.reshape(-1, WIDTH)
        if name == "lstm":
          cell = sigmoid(parts[0]) * cell + sigmoid(parts[1]) * np.tanh(parts[2])
          out = sigmoid(parts[3]) * np.tanh(cell)
        else:
          written = np.outer(np.tanh(parts[2]), np.tanh(parts[3]))
          matrix = sigmoid(parts[0])[:, None] * matrix + sigmoid(parts[1])[:, None] * written
          out = np.tanh(matrix.T @ parts[4])
        outputs[b, i] = out
    hidden = outputs
  expected = hidden @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(apply(variables, TOKENS), expected, rtol=1e-3, atol=1e-4)


def test_new_recurrent_networks_keep_their_state():
  for name, parts in (("lstm", 4), ("outer", 5)):
    variables = jax.jit(NETWORKS[name].init)(jax.random.key(0), TOKENS)
    bias = variables["params"]["layer_1_inputs"]["bias"]
    np.testing.assert_array_equal(bias, [1] * WIDTH + [0] * (parts - 1) * WIDTH)


def test_interleaved_pairs():
  x, y = TOKENS[..., :2], TOKENS[..., 2]
  tokens = np.asarray(jax.jit(in_context.interleave_pairs)(x, y))
  assert tokens.shape == (B, 2 * N, 3)
  for i in range(N):
    np.testing.assert_array_equal(tokens[:, 2 * i, :2], x[:, i])
    np.testing.assert_array_equal(tokens[:, 2 * i + 1, 2], y[:, i])
  assert not tokens[:, ::2, 2].any() and not tokens[:, 1::2, :2].any()


def test_a_value_reaches_later_predictions_alone():
  module = in_context.InContextTransformer(
    2, embed_dim=WIDTH, num_layers=2, num_heads=2, max_length=2 * N
  )
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((B, 2 * N, 3)))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)

  @jax.jit
  def predict(y):
    outputs = module.apply(variables, in_context.interleave_pairs(TOKENS[..., :2], y))
    return in_context.mean_and_variance(outputs[:, ::2])

  y = TOKENS[..., 2].copy()
  one = jax.tree.map(np.asarray, predict(y))
  y[0, 2] += 1
  other = jax.tree.map(np.asarray, predict(y))
  for a, b in zip(one, other):
    assert a.shape == (B, N)
    np.testing.assert_array_equal(a[0, :3], b[0, :3])
    assert a[0, 3] != b[0, 3]


def test_mean_and_variance():
  outputs = np.array([[1.0, 0.5], [2.0, -30.0], [3.0, 30.0]])
  mean, variance = jax.jit(in_context.mean_and_variance)(outputs)
  np.testing.assert_array_equal(mean, [1, 2, 3])
  np.testing.assert_allclose(variance, np.exp([0.5, -10, 10]), rtol=1e-5)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: in_context.InContextTransformer(3, positions="rotary"), "positions .*'rotary'"),
    (lambda: in_context.InContextTransformer(3, embed_dim=6, num_heads=4), "num_heads 4"),
    (lambda: in_context.InContextLSTM(3, 0), "embed_dim"),
    (lambda: in_context.InContextOuterProductLSTM(3, 2, 0), "num_layers"),
    (
      lambda: jax.eval_shape(
        NETWORKS["transformer"].init, jax.random.key(0), jnp.zeros((1, N + 1, 5))
      ),
      "max_length",
    ),
    (
      lambda: jax.eval_shape(NETWORKS["lstm"].init, jax.random.key(0), jnp.zeros((1, 5))),
      "tokens must have shape",
    ),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
