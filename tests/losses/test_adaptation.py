import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

# Jitted, because eager calls would compile every operation separately.
contrastive_loss = jax.jit(losses.multiview_contrastive_loss)
symmetric = jax.jit(losses.symmetric_cross_entropy)
marginal_entropy = jax.jit(losses.marginal_entropy)
open_set_loss = jax.jit(losses.open_set_entropy_loss)
difference = jax.jit(losses.confidence_difference)
difference_mask = jax.jit(losses.confidence_difference_mask)
information_maximization = jax.jit(losses.information_maximization_loss)
entropy_of = jax.jit(losses.softmax_entropy)

EXTREME = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [0.0, 0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def logits():
  return np.random.default_rng(0).normal(0, 2, (5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def others():
  return np.random.default_rng(1).normal(0, 2, (5, 4)).astype(np.float32)


def log_softmax(z):
  z = np.asarray(z, np.float64)
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def entropy(z):
  return -(np.exp(log_softmax(z)) * log_softmax(z)).sum(-1)


# ----------------------------------------------------------------------------- entropy, consistency


def test_softmax_entropy_of_known_distributions(logits):
  np.testing.assert_allclose(entropy_of(logits), entropy(logits), rtol=1e-5)
  np.testing.assert_allclose(entropy_of(jnp.zeros((2, 7))), np.log(7), rtol=1e-6)
  certain = jnp.array([0.0, -jnp.inf, -jnp.inf])
  assert entropy_of(certain) == 0


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_symmetric_cross_entropy_matches_a_loop(logits, others, alpha):
  expected = []
  for s, t in zip(logits, others):
    ls, lt = log_softmax(s), log_softmax(t)
    forward = -sum(np.exp(lt[j]) * ls[j] for j in range(4))
    reverse = -sum(np.exp(ls[j]) * lt[j] for j in range(4))
    expected.append((1 - alpha) * forward + alpha * reverse)
  value = symmetric(logits, others, alpha=alpha)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_symmetric_cross_entropy_identities(logits, others):
  np.testing.assert_allclose(symmetric(logits, logits, alpha=0.3), entropy(logits), rtol=1e-5)
  np.testing.assert_allclose(
    symmetric(logits, others),
    symmetric(others, logits),
    rtol=1e-5,
  )
  shaped = symmetric(logits.reshape(5, 1, 4), others.reshape(5, 1, 4))
  assert shaped.shape == (5, 1)


def test_symmetric_cross_entropy_gradient_matches_the_closed_form(logits, others):
  def total(alpha, s, t):
    return symmetric(s, t, alpha=alpha).sum()

  p, q = np.exp(log_softmax(logits)), np.exp(log_softmax(others))
  grad = jax.jit(jax.grad(total, argnums=(1, 2)))
  forward, to_teacher = grad(0.0, logits, others)
  np.testing.assert_allclose(forward, p - q, atol=1e-6)
  assert not np.any(to_teacher)
  reverse, _ = grad(1.0, logits, others)
  surprise = -log_softmax(others)
  expected = p * (surprise - (p * surprise).sum(-1, keepdims=True))
  np.testing.assert_allclose(reverse, expected, atol=1e-5)
  np.testing.assert_allclose(jnp.sum(forward + reverse, -1), 0, atol=1e-5)


def test_symmetric_cross_entropy_alpha_may_be_traced(logits, others):
  alphas = jnp.array([0.0, 0.5])
  many = jax.jit(jax.vmap(lambda a: symmetric(logits, others, alpha=a)))(alphas)
  one = symmetric(logits, others, alpha=0.5)
  np.testing.assert_allclose(many[1], one, rtol=1e-6)


@pytest.mark.parametrize(
  "fn",
  [
    losses.softmax_entropy,
    lambda z: losses.symmetric_cross_entropy(z, EXTREME[::-1]),
    lambda z: losses.open_set_entropy_loss(z, EXTREME[::-1]),
    lambda z: losses.marginal_entropy(z)[None],
    losses.information_maximization_loss,
  ],
)
def test_extreme_logits_are_finite_under_jit(fn):
  value, grad = jax.jit(jax.value_and_grad(lambda z: fn(z).sum()))(EXTREME)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
  half = jax.jit(fn)(jnp.asarray(EXTREME, jnp.bfloat16))
  assert half.dtype == jnp.float32
  # NaN must stay NaN, so that guards can detect it.
  assert np.all(np.isnan(jax.jit(fn)(jnp.full((3, 3), jnp.nan))))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_masked_class_of_the_model_without_weight_adds_nothing(logits, others, alpha):
  pair = [logits, others]
  pair[int(alpha == 0)] = np.where(np.arange(4) == 2, -np.inf, pair[int(alpha == 0)])
  log_student, log_teacher = (np.maximum(log_softmax(z), -1e9) for z in pair)
  directions = (log_teacher, log_student), (log_student, log_teacher)
  log_p, log_q = directions[int(alpha)]
  expected = -(np.exp(log_p) * log_q).sum(-1)
  np.testing.assert_allclose(symmetric(*pair, alpha=alpha), expected, rtol=1e-5)
  slope = jax.jit(jax.grad(lambda z, a: symmetric(z, pair[1], alpha=a).sum()))
  assert np.isfinite(slope(pair[0], alpha)).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
def test_symmetric_cross_entropy_checks_alpha(alpha):
  with pytest.raises(ValueError, match="alpha"):
    losses.symmetric_cross_entropy(jnp.zeros(3), jnp.zeros(3), alpha=alpha)


def test_logits_of_different_shapes_raise():
  with pytest.raises(ValueError, match=r"teacher_logits must have shape \[..., k\]"):
    losses.symmetric_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((1, 3)))


# -------------------------------------------------------------------------- contrast and prototypes


def contrastive_loop(features, temperature):
  b, v, d = features.shape
  flat = features.reshape(b * v, d).astype(np.float64)
  flat = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-12)
  result = np.zeros(b)
  for i in range(b * v):
    others = [m for m in range(b * v) if m != i]
    log_partition = np.log(sum(np.exp(flat[i] @ flat[m] / temperature) for m in others))
    for j in others:
      if j // v == i // v:
        loss = -(flat[i] @ flat[j] / temperature - log_partition) / (v - 1)
        result[i // v] += loss / v
  return result


@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 3, 5), (3, 2, 1)])
def test_contrastive_loss_matches_a_double_loop(shape):
  features = np.random.default_rng(2).normal(size=shape).astype(np.float32)
  value = contrastive_loss(features, temperature=0.3)
  np.testing.assert_allclose(value, contrastive_loop(features, 0.3), rtol=1e-5, atol=1e-6)


def test_contrastive_loss_identities():
  rng = np.random.default_rng(3)
  features = rng.normal(size=(4, 3, 5)).astype(np.float32)
  value = contrastive_loss(features)
  scaled = features * rng.uniform(0.1, 1e25, (4, 3, 1)).astype(np.float32)
  np.testing.assert_allclose(contrastive_loss(scaled), value, rtol=1e-4)
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(contrastive_loss(features[order]), value[order], rtol=1e-5)
  np.testing.assert_allclose(contrastive_loss(features[:1, :2]), 0, atol=1e-6)
  same = np.ones((4, 3, 5), np.float32)
  np.testing.assert_allclose(contrastive_loss(same), np.log(11), rtol=1e-6)


def test_contrastive_loss_is_finite_at_zero_vectors_and_in_bfloat16():
  features = jnp.zeros((2, 3, 4)).at[0, 1].set(1e-20).at[1, 0].set(3e38)
  value, grad = jax.jit(
    jax.value_and_grad(lambda x: losses.multiview_contrastive_loss(x, temperature=0.01).sum())
  )(features)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
  half = contrastive_loss(jnp.ones((2, 2, 3), jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, np.log(3), rtol=1e-6)


def test_contrastive_gradient_matches_finite_differences():
  features = np.random.default_rng(4).normal(size=(2, 2, 3)).astype(np.float32)
  grad = jax.jit(jax.grad(lambda x: contrastive_loss(x, temperature=0.5).sum()))(features)
  bump = np.zeros_like(features)
  bump[1, 0, 2] = 1e-3
  high, low = (contrastive_loop(features + s * bump, 0.5).sum() for s in (1, -1))
  np.testing.assert_allclose(grad[1, 0, 2], (high - low) / 2e-3, rtol=1e-3)


def test_contrastive_loss_errors():
  with pytest.raises(ValueError, match="two views"):
    losses.multiview_contrastive_loss(jnp.zeros((3, 1, 2)))
  with pytest.raises(ValueError, match="temperature"):
    losses.multiview_contrastive_loss(jnp.zeros((3, 2, 2)), temperature=0.0)


def test_nearest_prototypes_by_cosine():
  prototypes = jnp.array([[10.0, 0.0], [0.0, 1e-3], [0.0, 0.0]])
  features = jnp.array([[1.0, 0.5], [1.0, 1.5], [-1.0, -2.0], [1.0, 1.0]])
  index = losses.nearest_prototypes(features, prototypes)
  # Similarity 0 to the empty class is larger than negative ones; ties go to the lowest class.
  np.testing.assert_array_equal(index, [0, 1, 2, 0])
  assert index.dtype == jnp.int32
  np.testing.assert_array_equal(losses.nearest_prototypes(features * 1e30, prototypes), index)


def test_class_prototypes_are_means_and_zeros_for_empty_classes():
  rng = np.random.default_rng(5)
  features, labels = rng.normal(size=(9, 3)).astype(np.float32), rng.integers(0, 3, 9)
  labels[labels == 1] = 3
  value = losses.class_prototypes(features, labels, num_classes=5)
  for c in range(5):
    rows = features[labels == c]
    np.testing.assert_allclose(value[c], rows.mean(0) if len(rows) else np.zeros(3), atol=1e-6)


def test_class_prototypes_and_labels_outside_the_classes():
  features = jnp.arange(6.0).reshape(3, 2)
  labels = np.array([0, -1, 7])
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\)"):
    losses.class_prototypes(features, labels, num_classes=2)
  traced = jax.jit(lambda y: losses.class_prototypes(features, y, num_classes=2))(labels)
  np.testing.assert_allclose(traced, [[0, 1], [0, 0]])
  with pytest.raises(ValueError, match="num_classes"):
    losses.class_prototypes(features, labels, num_classes=0)


# ----------------------------------------------------------------------------- selection, diversity


def test_confidence_difference_is_for_the_class_of_the_source_model(logits, others):
  p, source = np.exp(log_softmax(logits)), np.exp(log_softmax(others))
  chosen = others.argmax(-1)
  expected = np.array([p[i, c] - source[i, c] for i, c in enumerate(chosen)])
  np.testing.assert_allclose(difference(logits, others), expected, atol=1e-6)
  mask = difference_mask(logits, others)
  np.testing.assert_array_equal(mask, (expected >= 0).astype(np.float32))
  assert 0 < mask.sum() < 5
  shift = np.array([[3.0], [-2.0], [0.5], [9.0], [-7.0]], np.float32)
  np.testing.assert_array_equal(difference_mask(logits + shift, others), mask)
  np.testing.assert_array_equal(difference_mask(logits, others + shift), mask)


def test_the_mask_of_a_row_of_nan_is_nan(logits, others):
  row = np.arange(5)[:, None] == 1
  for pair in ((np.where(row, np.nan, logits), others), (logits, np.where(row, np.nan, others))):
    mask = np.asarray(difference_mask(*pair))
    np.testing.assert_array_equal(np.isnan(mask), row[:, 0])
    np.testing.assert_array_equal(mask[~row[:, 0]], difference_mask(logits, others)[~row[:, 0]])


def test_high_confidences_are_still_ordered():
  source = jnp.array([[12.0, 0.0]])
  assert difference_mask(jnp.array([[11.5, 0.0]]), source)[0] == 0
  assert difference_mask(jnp.array([[12.5, 0.0]]), source)[0] == 1


def test_marginal_entropy_identities(logits):
  same = np.repeat(logits[:1], 6, axis=0)
  np.testing.assert_allclose(marginal_entropy(same), entropy(logits[0]), rtol=1e-5)
  spread = 1e4 * np.eye(4, dtype=np.float32)
  np.testing.assert_allclose(marginal_entropy(spread), np.log(4), rtol=1e-6)
  assert marginal_entropy(logits) >= entropy(logits).mean()
  weights = np.array([0.0, 2.0, 1.0, 0.0, 5.0], np.float32)
  mean = (weights[:, None] * np.exp(log_softmax(logits))).sum(0) / weights.sum()
  expected = -(mean * np.log(mean)).sum()
  np.testing.assert_allclose(marginal_entropy(logits, weights=weights), expected, rtol=1e-5)
  hidden = np.where(weights[:, None] == 0, np.nan, logits)
  np.testing.assert_allclose(marginal_entropy(hidden, weights=weights), expected, rtol=1e-5)


def test_marginal_entropy_of_no_weight_is_0_with_a_finite_gradient(logits):
  value, grad = jax.jit(
    jax.value_and_grad(lambda z: losses.marginal_entropy(z, weights=jnp.zeros(5)))
  )(logits)
  assert value == 0 and not np.any(grad)
  with pytest.raises(ValueError, match=r"weights must lie in \[0, inf\)"):
    losses.marginal_entropy(logits, weights=[1, 1, 1, 1, -1])


def test_open_set_loss_matches_boolean_indexing(logits, others):
  kept = np.asarray(difference_mask(logits, others)).astype(bool)
  mean = np.exp(log_softmax(logits)).mean(0)
  expected = entropy(logits)[kept].mean() + 0.3 * (mean * np.log(mean)).sum()
  rows = open_set_loss(logits, others, diversity_weight=0.3)
  np.testing.assert_allclose(rows.mean(), expected, rtol=1e-5)


def test_open_set_loss_of_equal_models_keeps_all_rows(logits):
  rows = open_set_loss(logits, logits, diversity_weight=0.5)
  expected = entropy(logits).mean() - 0.5 * marginal_entropy(logits)
  np.testing.assert_allclose(rows.mean(), expected, rtol=1e-5)
  plain = open_set_loss(logits, logits, diversity_weight=0.0)
  np.testing.assert_allclose(plain, entropy(logits), rtol=1e-5)


def test_open_set_loss_without_kept_rows_has_only_the_marginal_gradient(logits):
  def loss(z, source):
    return open_set_loss(z, source).mean()

  confident = 50 * np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
  value, (grad, to_source) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(logits, confident)
  marginal = jax.jit(jax.grad(marginal_entropy))(logits)
  np.testing.assert_allclose(value, -0.5 * marginal_entropy(logits), rtol=1e-5)
  np.testing.assert_allclose(grad, -0.5 * marginal, atol=1e-7)
  assert not np.any(to_source)


def test_open_set_loss_errors(logits):
  with pytest.raises(ValueError, match="diversity_weight"):
    losses.open_set_entropy_loss(logits, logits, diversity_weight=-0.1)
  for fn in (
    losses.confidence_difference,
    losses.confidence_difference_mask,
    losses.open_set_entropy_loss,
  ):
    with pytest.raises(ValueError, match=r"source_logits .*b = 5, k = 4, got \[1, 4\]"):
      fn(logits, logits[:1])


def test_information_maximization_of_known_batches(logits):
  uniform = information_maximization(jnp.zeros((6, 4)))
  np.testing.assert_allclose(uniform, 0, atol=1e-4)
  balanced = information_maximization(1e3 * jnp.eye(4))
  np.testing.assert_allclose(balanced.mean(), -np.log(4), atol=1e-3)
  shared = information_maximization(1e3 * jnp.eye(4)[jnp.zeros(5, int)])
  np.testing.assert_allclose(shared, 0, atol=1e-4)
  p = np.exp(log_softmax(logits))
  mean = p.mean(0)
  expected = -(p * np.log(p + 1e-5)).sum(-1) + (mean * np.log(mean + 1e-5)).sum()
  np.testing.assert_allclose(information_maximization(logits), expected, rtol=1e-4)
  np.testing.assert_allclose(information_maximization(logits + 5.0), expected, rtol=1e-4, atol=1e-5)


def test_vmap_matches_the_batched_call(logits, others):
  def rows(z, t):
    return entropy_of(z) + symmetric(z, t)

  np.testing.assert_allclose(jax.vmap(rows)(logits, others), rows(logits, others), rtol=1e-6)
