import functools

import jax
import numpy as np
import pytest

from jaxlab.losses import pairs

RNG = np.random.default_rng(0)
B, K, M = 5, 4, 3
LOGITS = RNG.normal(size=(B, K, K)).astype(np.float32)
MIXTURE = RNG.normal(size=(B, M)).astype(np.float32)
COMPONENTS = RNG.normal(size=(B, M, K)).astype(np.float32)
LABELS = RNG.integers(0, K, (2, B)).astype(np.int32)


@functools.cache
def compiled(name, **settings):
  return jax.jit(functools.partial(getattr(pairs, name), **settings))


def joint(logits):
  return np.asarray(compiled("pair_log_probs")(logits))


def slow_joint(logits, symmetric):
  scores = np.array(logits, float)
  if symmetric:
    scores = (scores + scores.swapaxes(1, 2)) / 2
  scores = np.exp(scores)
  return np.log(scores / scores.sum(axis=(1, 2), keepdims=True))


@pytest.mark.parametrize("symmetric", [True, False])
def test_pairs_match_a_loop(symmetric):
  log_probs = compiled("pair_log_probs", symmetric=symmetric)(LOGITS)
  expected = slow_joint(LOGITS, symmetric)
  np.testing.assert_allclose(log_probs, expected, rtol=1e-4)
  losses = compiled("pair_nll", symmetric=symmetric)(LOGITS, *LABELS)
  expected = [-expected[b, LABELS[0, b], LABELS[1, b]] for b in range(B)]
  np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_order_does_not_matter_if_symmetric():
  losses = compiled("pair_nll", symmetric=True)(LOGITS, *LABELS)
  swapped = compiled("pair_nll", symmetric=True)(LOGITS, *LABELS[::-1])
  np.testing.assert_array_equal(losses, swapped)
  transposed = compiled("pair_nll", symmetric=True)(LOGITS.swapaxes(1, 2).copy(), *LABELS)
  np.testing.assert_array_equal(losses, transposed)


def softmax(logits):
  scores = np.exp(np.array(logits, float))
  return scores / scores.sum(axis=-1, keepdims=True)


def test_mixtures_match_a_loop():
  log_probs = np.asarray(compiled("mixture_pair_log_probs")(MIXTURE, COMPONENTS))
  losses = compiled("mixture_pair_nll")(MIXTURE, COMPONENTS, *LABELS)
  for b in range(B):
    weights, answers = softmax(MIXTURE[b]), softmax(COMPONENTS[b])
    expected = sum(w * np.outer(q, q) for w, q in zip(weights, answers))
    np.testing.assert_allclose(np.exp(log_probs[b]), expected, rtol=1e-4)
    np.testing.assert_allclose(losses[b], -np.log(expected[tuple(LABELS[:, b])]), rtol=1e-4)
    # Its covariance is that of the components, which has no negative eigenvalue.
    mean = weights @ answers
    covariance = np.exp(log_probs[b]) - np.outer(mean, mean)
    inner = np.einsum("m,mi,mj->ij", weights, answers, answers) - np.outer(mean, mean)
    np.testing.assert_allclose(covariance, inner, atol=1e-6)
    assert np.linalg.eigvalsh(covariance.astype(float)).min() > -1e-6


def test_one_component_is_a_product():
  log_probs = compiled("mixture_pair_log_probs")(MIXTURE[:, :1], COMPONENTS[:, :1])
  answers = softmax(COMPONENTS[:, 0])
  expected = answers[:, :, None] * answers[:, None]
  np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-4)


def test_masked_classes_cost_nothing():
  logits, components = LOGITS.copy(), COMPONENTS.copy()
  logits[:, K - 1] = logits[:, :, K - 1] = components[..., K - 1] = -np.inf
  labels = np.minimum(LABELS, K - 2)

  @jax.jit
  def both(logits, components):
    def total(logits, components):
      joints = (
        pairs.pair_log_probs(logits),
        pairs.mixture_pair_log_probs(MIXTURE, components),
      )
      plain = pairs.pair_nll(logits, *labels).sum()
      mixed = pairs.mixture_pair_nll(MIXTURE, components, *labels).sum()
      kept = sum(joint[..., : K - 1, : K - 1].sum() for joint in joints)
      return plain + mixed + kept, joints

    return jax.grad(total, argnums=(0, 1), has_aux=True)(logits, components)

  gradients, joints = both(logits, components)
  for gradient in gradients:
    assert np.isfinite(gradient).all()
  for masked in joints:
    assert np.isneginf(np.asarray(masked)[..., K - 1, :]).all()
    np.testing.assert_allclose(np.exp(masked).sum(axis=(1, 2)), 1, rtol=1e-5)


def test_labels_outside_the_classes():
  outside = LABELS.copy()
  outside[0, 1], outside[1, 2] = -1, K
  expected = np.isin(np.arange(B), (1, 2))
  for losses in (
    compiled("pair_nll", symmetric=True)(LOGITS, *outside),
    compiled("mixture_pair_nll")(MIXTURE, COMPONENTS, *outside),
  ):
    np.testing.assert_array_equal(np.isnan(losses), expected)
  with pytest.raises(ValueError, match="labels_a must lie"):
    pairs.pair_nll(LOGITS, *outside)
  with pytest.raises(ValueError, match="labels_b must lie"):
    pairs.mixture_pair_nll(MIXTURE, COMPONENTS, LABELS[0], outside[1])


def test_shapes_are_checked():
  with pytest.raises(ValueError, match="logits must have shape"):
    pairs.pair_nll(LOGITS[:, :2], *LABELS)
  with pytest.raises(ValueError, match="component, got none"):
    pairs.mixture_pair_log_probs(MIXTURE[:, :0], COMPONENTS[:, :0])


def test_training_finds_what_is_hidden():
  """A hidden bit gives half the identity, a coin a quarter everywhere."""

  @jax.jit
  def fit(key):
    def step(logits, key):
      first, second = jax.random.bernoulli(key, shape=(2, 256)).astype(np.int32)

      def loss(logits):
        hidden, coin = (jax.numpy.broadcast_to(x, (256, 2, 2)) for x in logits)
        return (pairs.pair_nll(hidden, first, first) + pairs.pair_nll(coin, first, second)).mean()

      return logits - 2.0 * jax.grad(loss)(logits), None

    logits, _ = jax.lax.scan(step, np.zeros((2, 2, 2), np.float32), jax.random.split(key, 200))
    return jax.numpy.exp(pairs.pair_log_probs(logits))

  hidden, coin = np.asarray(fit(jax.random.key(0)))
  np.testing.assert_allclose(hidden, np.eye(2) / 2, atol=0.05)
  np.testing.assert_allclose(coin, 0.25, atol=0.05)
