import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import augment, losses

K = 5
MODES = ("both", "less", "more", "first")
decoupled = jax.jit(losses.decoupled_mixup_loss, static_argnames="eta_mode")
binary = jax.jit(losses.decoupled_mixup_binary_loss, static_argnames=("rescale_a", "rescale_b"))
coupled = jax.jit(losses.mixup_cross_entropy)
multi_mixup_cross_entropy = jax.jit(losses.multi_mixup_cross_entropy)
all_pairs_mixup_loss = jax.jit(losses.all_pairs_mixup_loss)


def log_sum_exp(scores):
  scores = np.asarray(scores, np.float64)
  return scores.max() + np.log(np.exp(scores - scores.max()).sum())


def slow_rescale(share, power, threshold):
  return 1.0 if share >= threshold else (share / threshold) ** abs(power)


def slow_decoupled(logits, a, b, ratio, *, eta=0.1, mode="both", threshold=0.5, power=0.0):
  """One row at a time, with the classes of each softmax written out."""
  losses_ = []
  for z, i, j, share in zip(np.asarray(logits, np.float64), a, b, np.asarray(ratio, np.float64)):
    total = share * (log_sum_exp(z) - z[i]) + (1 - share) * (log_sum_exp(z) - z[j])
    if i != j and min(share, 1 - share) > 1e-3:
      terms = {
        "a": slow_rescale(share, power, 1.0) * (log_sum_exp(np.delete(z, j)) - z[i]),
        "b": slow_rescale(1 - share, power, 1.0) * (log_sum_exp(np.delete(z, i)) - z[j]),
      }
      chosen = {
        "both": "ab",
        "less": "a" if share < threshold else "b",
        "more": "a" if share >= threshold else "b",
        "first": "a",
      }[mode]
      total += eta * sum(terms[name] for name in chosen)
    losses_.append(total)
  return np.array(losses_)


def slow_binary(logits, a, b, ratio, *, power, threshold, rescale_a, rescale_b):
  values = []
  for z, i, j, share in zip(np.asarray(logits, np.float64), a, b, np.asarray(ratio, np.float64)):
    y = np.zeros(len(z))
    y[i] += slow_rescale(share, power, threshold) if rescale_a else share
    y[j] += slow_rescale(1 - share, power, threshold) if rescale_b else 1 - share
    y = np.clip(y, 0, 1)
    p = 1 / (1 + np.exp(-z))
    values.append(-np.sum(y * np.log(p) + (1 - y) * np.log1p(-p)))
  return np.array(values)


@pytest.fixture(scope="module")
def batch():
  """Logits, labels and ratios, including equal labels and shares at the edges."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (8, K)).astype(np.float32)
  a = np.array([0, 1, 2, 3, 4, 0, 1, 2])
  b = np.array([1, 1, 0, 2, 3, 4, 0, 3])
  ratio = np.array([0.3, 0.4, 0.5, 0.0005, 0.8, 1.0, 0.0, 0.62], np.float32)
  return logits, a, b, ratio


@pytest.mark.parametrize("mode", MODES)
def test_decoupled_loss_matches_a_loop(batch, mode):
  for power, threshold in ((0.0, 0.5), (-0.5, 0.35)):
    result = decoupled(*batch, eta_mode=mode, threshold=threshold, rescale_power=power)
    expected = slow_decoupled(*batch, mode=mode, threshold=threshold, power=power)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_eta_0_and_equal_labels_give_mixups_loss(batch):
  plain = slow_decoupled(*batch, eta=0.0)
  np.testing.assert_allclose(coupled(*batch), plain, rtol=1e-5)
  np.testing.assert_allclose(decoupled(*batch, eta=0.0), plain, rtol=1e-5)
  logits, a, _, ratio = batch
  expected = [log_sum_exp(z) - z[i] for z, i in zip(logits, a)]
  np.testing.assert_allclose(decoupled(logits, a, a, ratio, eta=7.0), expected, rtol=1e-5)


def test_modes_less_and_more_add_up_to_both(batch):
  parts = sum(decoupled(*batch, eta_mode=mode) for mode in ("less", "more"))
  whole = decoupled(*batch, eta_mode="both") + coupled(*batch)
  np.testing.assert_allclose(parts, whole, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES[:3])
def test_loss_is_symmetric_in_the_pair(batch, mode):
  logits, a, b, ratio = (part[[0, 3, 4, 7]] for part in batch)
  result = decoupled(logits, a, b, ratio, eta_mode=mode, rescale_power=0.5)
  swapped = decoupled(logits, b, a, 1 - ratio, eta_mode=mode, rescale_power=0.5)
  np.testing.assert_allclose(result, swapped, rtol=1e-5)


def test_decoupled_term_does_not_depend_on_the_other_label():
  logits, a, b = np.array([[1.0, -2.0, 0.5, 3.0]], np.float32), np.array([0]), np.array([3])

  def loss(logits, eta):
    return decoupled(logits, a, b, 0.5, eta=eta, eta_mode="first").sum()

  slope = jax.jit(jax.grad(loss))
  # At any weight, the gradient of the other label's logit is exactly that of mixup's loss.
  assert np.array_equal(*(np.asarray(slope(logits, eta))[0, 3] for eta in (1e6, 0.0)))
  moved = np.where(np.arange(4) == 3, np.float32(-4.0), logits)
  loss = jax.jit(loss)
  np.testing.assert_allclose(
    loss(logits, 1.0) - loss(logits, 0.0), loss(moved, 1.0) - loss(moved, 0.0), rtol=1e-5
  )


def test_decoupled_terms_vanish_if_both_labels_are_confident():
  """The point of the paper: mixup's loss stops at log 2, while the decoupled terms go to 0."""
  for m in (2.0, 10.0, 40.0):
    logits = jnp.zeros((1, K)).at[0, :2].set(m)
    plain = coupled(logits, jnp.array([0]), jnp.array([1]), 0.5)
    np.testing.assert_allclose(plain, np.log(2 + (K - 2) * np.exp(-m)), rtol=1e-5)
    extra = decoupled(logits, jnp.array([0]), jnp.array([1]), 0.5, eta=1.0) - plain
    np.testing.assert_allclose(extra, 2 * np.log1p((K - 2) * np.exp(-m)), atol=1e-6)


@pytest.mark.parametrize("rescale", [(True, True), (True, False), (False, True)])
def test_binary_loss_matches_a_loop(batch, rescale):
  for power, threshold in ((1.0, 0.8), (-2.0, 1.0)):
    settings = {"power": power, "threshold": threshold}
    settings |= {"rescale_a": rescale[0], "rescale_b": rescale[1]}
    expected = slow_binary(*batch, **settings)
    np.testing.assert_allclose(binary(*batch, **settings), expected, rtol=1e-5, atol=1e-5)


def test_binary_gradient_is_probability_minus_target():
  logits = jnp.array([[0.0, 2.0, -1.0]])
  loss = lambda z, a, b: binary(z, jnp.array([a]), jnp.array([b]), 0.4, threshold=0.8).sum()  # noqa: E731
  probs = 1 / (1 + np.exp(-np.asarray(logits)))
  np.testing.assert_allclose(jax.grad(loss)(logits, 0, 1), probs - [[0.5, 0.75, 0.0]], atol=1e-6)
  # The target of equal labels is at most 1.
  np.testing.assert_allclose(jax.grad(loss)(logits, 1, 1), probs - [[0.0, 1.0, 0.0]], atol=1e-6)


def test_rescale_mix_ratio_matches_a_loop():
  rescale = jax.jit(losses.rescale_mix_ratio)
  shares = np.array([0.0, 0.1, 0.4, 0.7999, 0.8, 0.9, 1.0], np.float32)
  for power, threshold in ((1.0, 0.8), (-2.0, 0.8), (0.3, 1.0), (0.0, 0.8)):
    expected = [slow_rescale(float(x), power, threshold) for x in shares]
    result = rescale(shares, power=power, threshold=threshold)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    slopes = jax.grad(lambda x: rescale(x, power=power, threshold=threshold).sum())(shares)  # noqa: B023
    assert np.isfinite(slopes).all()
  assert float(rescale(1.0)) == 1.0 and float(rescale(0.0)) == 0.0
  assert np.isnan(rescale(jnp.nan))


def test_multi_mixup_matches_a_loop():
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(4, K)).astype(np.float32)
  labels = rng.integers(K, size=(3, 4))
  weights = np.array([0.5, 0.2, 0.3], np.float32)
  expected = [
    sum(w * (log_sum_exp(z) - z[i]) for w, i in zip(weights, row))
    for z, row in zip(logits, labels.T)
  ]
  result = multi_mixup_cross_entropy(logits, labels, weights)
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  two = multi_mixup_cross_entropy(logits, labels[:2], np.float32([0.3, 0.7]))
  np.testing.assert_allclose(two, coupled(logits, *labels[:2], 0.3), rtol=1e-5)
  one = multi_mixup_cross_entropy(logits, labels, np.float32([1, 0, 0]))
  np.testing.assert_allclose(one, coupled(logits, labels[0], labels[0], 1.0), rtol=1e-5)


def test_all_pairs_loss_matches_a_loop():
  rng = np.random.default_rng(2)
  n, labels = 4, np.array([0, 1, 1, 2])
  logits = rng.normal(size=(n, n, K)).astype(np.float32)
  cost = np.array([[[log_sum_exp(z) - z[c] for c in labels] for z in row] for row in logits])
  i, j = np.indices((n, n))
  for ratio, label_ratio in ((0.6, None), (0.6, 0.9), (1.0, None)):
    share = ratio if label_ratio is None else label_ratio
    expected = share * cost[i, j, i] + (1 - share) * cost[i, j, j]
    result = all_pairs_mixup_loss(logits, labels, ratio=ratio, label_ratio=label_ratio)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    np.testing.assert_allclose(np.diag(result), cost[i, j, i].diagonal(), rtol=1e-5)
  symmetric = logits + logits.transpose(1, 0, 2)
  half = all_pairs_mixup_loss(symmetric, labels, ratio=0.5)
  np.testing.assert_allclose(half, half.T, rtol=1e-5)


def test_one_hot_labels_are_classes(batch):
  logits, a, b, ratio = batch
  eye = np.eye(K, dtype=np.float32)
  for objective in (coupled, decoupled, binary):
    plain = objective(logits, a, b, ratio)
    for labels in ((eye[a], eye[b]), (a, eye[b])):
      np.testing.assert_allclose(objective(logits, *labels, ratio), plain, rtol=1e-4, atol=1e-5)
  # Where there is no such class, there is nothing to mix the soft label with.
  np.testing.assert_array_equal(np.isnan(coupled(logits, a + 1, eye[b], ratio)), a == 4)


def test_soft_labels_average_over_their_classes(batch):
  logits, a, b, ratio = batch
  soft = np.random.default_rng(3).dirichlet(np.ones(K), (2, 8)).astype(np.float32)
  for objective in (coupled, decoupled):
    expected = sum(
      soft[0][:, i] * soft[1][:, j] * objective(logits, a * 0 + i, b * 0 + j, ratio)
      for i, j in np.ndindex(K, K)
    )
    np.testing.assert_allclose(objective(logits, *soft, ratio), expected, rtol=1e-4)
  targets = ratio[:, None] * soft[0] + (1 - ratio[:, None]) * soft[1]
  expected = np.sum(np.logaddexp(0, logits) - targets * logits, axis=-1)
  result = binary(logits, *soft, ratio, threshold=1.0)
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
  expected = coupled(logits, *soft, np.full(8, 0.25, np.float32))
  result = multi_mixup_cross_entropy(logits, soft, np.float32([0.25, 0.75]))
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  square, eye = np.stack([logits] * 8), np.eye(K, dtype=np.float32)
  pairs = (all_pairs_mixup_loss(square, labels, ratio=0.25) for labels in (a, eye[a]))
  np.testing.assert_allclose(*pairs, rtol=1e-5)


def test_a_masked_label_without_weight_adds_nothing(batch):
  logits, a, _, ratio = batch
  other, eye, ones = (a + 1) % K, np.eye(K, dtype=np.float32), np.ones_like(ratio)
  masked = np.where(eye[other] == 1, -np.inf, logits).astype(np.float32)
  expected = [log_sum_exp(z) - z[i] for z, i in zip(masked, a)]
  for labels in ((a, other), (eye[a], eye[other])):
    np.testing.assert_allclose(coupled(masked, *labels, ones), expected, rtol=1e-5)
    np.testing.assert_allclose(decoupled(masked, *labels, ones), expected, rtol=1e-5)
    assert np.isfinite(binary(masked, *labels, ones)).all()
    for objective in (coupled, decoupled, binary):
      slope = jax.jit(jax.grad(lambda z, f=objective, y=labels: f(z, *y, ones).sum()))(masked)
      assert np.isfinite(slope).all()
  one = multi_mixup_cross_entropy(masked, np.stack([a, other]), np.float32([1, 0]))
  np.testing.assert_allclose(one, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_are_finite(scale):
  logits = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]) * scale
  labels = jnp.array([0, 2, 1]), jnp.array([1, 0, 1])
  objectives = (
    losses.mixup_cross_entropy,
    losses.decoupled_mixup_loss,
    losses.decoupled_mixup_binary_loss,
  )
  for objective in objectives:
    values, gradient = jax.jit(
      jax.value_and_grad(lambda z, r, f=objective: f(z, *labels, r).sum(), argnums=(0, 1))
    )(logits, jnp.array([0.3, 0.0, 1.0]))
    assert np.isfinite(values) and all(np.isfinite(g).all() for g in gradient)


def test_half_precision_accumulates_in_float32(batch):
  logits, *rest = batch
  half = jnp.asarray(logits, jnp.bfloat16)
  for objective in (coupled, decoupled, binary):
    result = objective(half, *rest)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, objective(np.asarray(half, np.float32), *rest), rtol=1e-6)


def test_eta_may_be_traced(batch):
  etas = np.array([0.0, 0.1, 1.0], np.float32)
  result = jax.jit(jax.vmap(lambda eta: losses.decoupled_mixup_loss(*batch, eta=eta)))(etas)
  for eta, row in zip(etas, result):
    np.testing.assert_allclose(row, decoupled(*batch, eta=eta), rtol=1e-5)


def test_nan_stays_in_its_row(batch):
  logits, *rest = batch
  logits = np.where(np.arange(len(logits))[:, None] == 1, np.nan, logits).astype(np.float32)
  for objective in (coupled, decoupled, binary):
    np.testing.assert_array_equal(np.isnan(objective(logits, *rest)), np.arange(8) == 1)


def test_labels_outside_the_classes_raise_or_give_nan(batch):
  logits, a, b, ratio = batch
  for objective in (
    losses.mixup_cross_entropy,
    losses.decoupled_mixup_loss,
    losses.decoupled_mixup_binary_loss,
  ):
    with pytest.raises(ValueError, match=r"labels_a must lie in \[0, 5\)"):
      objective(logits, a + 1, b, ratio)
    with pytest.raises(ValueError, match="labels_b"):
      objective(logits, a, b - 1, ratio)
  for objective in (coupled, decoupled, binary):  # Traced labels cannot raise.
    np.testing.assert_array_equal(np.isnan(objective(logits, a + 1, b, ratio)), a == 4)
    np.testing.assert_array_equal(np.isnan(objective(logits, a, b - 1, ratio)), b == 0)


def test_errors(batch):
  logits, a, b, ratio = batch
  loss = functools.partial(losses.decoupled_mixup_loss, *batch)
  for arguments, message in (
    ({"eta": -0.1}, "eta"),
    ({"eta_mode": "most"}, "eta_mode"),
    ({"threshold": 1.1}, "threshold"),
  ):
    with pytest.raises(ValueError, match=message):
      loss(**arguments)
  with pytest.raises(ValueError, match="3 classes"):
    losses.decoupled_mixup_loss(logits[:, :2], a * 0, b * 0 + 1, ratio)
  two = decoupled(logits[:, :2], a * 0, b * 0 + 1, ratio, eta=0.0)
  np.testing.assert_allclose(two, coupled(logits[:, :2], a * 0, b * 0 + 1, ratio), rtol=1e-5)
  for bad in (-0.1, 1.1, np.nan):
    for objective in (losses.mixup_cross_entropy, losses.decoupled_mixup_binary_loss):
      with pytest.raises(ValueError, match="ratio"):
        objective(logits, a, b, ratio * 0 + bad)
  for objective in (losses.decoupled_mixup_binary_loss, losses.rescale_mix_ratio):
    with pytest.raises(ValueError, match="threshold"):
      objective(*(batch if objective is not losses.rescale_mix_ratio else (0.5,)), threshold=0.0)
  pairs = np.zeros((2, 2, K), np.float32)
  for arguments, labels in (
    ({"ratio": 1.5}, [0, 1]),
    ({"ratio": 0.5, "label_ratio": -1.0}, [0, 1]),
    ({"ratio": 0.5}, [0, 1, 2]),
  ):
    with pytest.raises(ValueError, match="ratio|labels"):
      losses.all_pairs_mixup_loss(pairs, labels, **arguments)
  with pytest.raises(ValueError, match="labels_a must have shape"):
    losses.mixup_cross_entropy(logits, a[:3], b, ratio)
  with pytest.raises(ValueError, match="ratio must have shape"):
    losses.mixup_cross_entropy(logits, a, b, ratio[:3])
  with pytest.raises(TypeError, match="labels_a must be of type int"):
    losses.mixup_cross_entropy(logits, a.astype(np.float32), b, ratio)
  with pytest.raises(ValueError, match=r"labels_b must have shape \[8, 5\], got \[8, 1\]"):
    losses.mixup_cross_entropy(logits, a, b[:, None], ratio)
  with pytest.raises(ValueError, match=r"labels_b must lie in \[0, 1\]"):
    losses.mixup_cross_entropy(logits, a, logits, ratio)
  with pytest.raises(ValueError, match=r"weights must lie in \[0, 1\]"):
    losses.multi_mixup_cross_entropy(logits, np.stack([a, b]), [0.5, -0.5])
  with pytest.raises(ValueError, match=r"labels must have shape \[3, 8\], got \[2, 8\]"):
    losses.multi_mixup_cross_entropy(logits, np.stack([a, b]), np.ones(3, np.float32))


@pytest.mark.parametrize("policy", ["mixup", "cutmix", "saliency_box_mix"])
def test_any_policy_works_with_any_loss(policy):
  images = jax.random.uniform(jax.random.key(0), (6, 4, 4, 1))
  mixed = jax.jit(getattr(augment, policy))(jax.random.key(1), images, np.arange(6) % K)
  logits = np.asarray(mixed.inputs).reshape(6, -1)[:, :K]
  for loss in (coupled, decoupled, binary):
    values = loss(logits, mixed.labels_a, mixed.labels_b, mixed.ratio)
    assert values.shape == (6,) and np.isfinite(values).all()
