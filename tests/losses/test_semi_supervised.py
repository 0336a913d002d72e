import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

fixmatch_loss = jax.jit(losses.fixmatch_loss)
class_threshold_loss = jax.jit(losses.class_threshold_loss)
soft_pseudo_label_loss = jax.jit(losses.soft_pseudo_label_loss)
shrink_class_space = jax.jit(losses.shrink_class_space)
shrunk_class_loss = jax.jit(losses.shrunk_class_loss)
weighted_pseudo_label_loss = jax.jit(losses.weighted_pseudo_label_loss)
consistency_mse_loss = jax.jit(losses.consistency_mse_loss)
js_divergence_loss = jax.jit(losses.js_divergence_loss)
view_difference_loss = jax.jit(losses.view_difference_loss)
pseudo_label_mix_weight = jax.jit(losses.pseudo_label_mix_weight)

WEAK = np.float32([[9.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0], [4.0, 4.0, -9.0]])
STRONG = np.float32([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [0.5, 0.0, -1.0], [2.0, 0.0, 1.0]])
LOG_PROBS = STRONG - np.log(np.sum(np.exp(np.float64(STRONG)), axis=-1, keepdims=True))


def test_confident_rows_get_the_cross_entropy_to_the_guess():
  result = fixmatch_loss(STRONG, WEAK)
  np.testing.assert_allclose(result, [-LOG_PROBS[0, 0], 0.0, -LOG_PROBS[2, 2], 0.0], rtol=1e-6)


def test_ties_go_to_the_first_class_and_the_threshold_applies():
  result = fixmatch_loss(STRONG, WEAK, threshold=0.4)
  np.testing.assert_allclose(result, -LOG_PROBS[[0, 1, 2, 3], [0, 1, 2, 0]], rtol=1e-6)


def test_nan_stays_in_its_row_and_masked_classes_do_not_reach_other_rows():
  row = np.arange(4)[:, None] == 1
  for pair in ((np.where(row, np.nan, STRONG), WEAK), (STRONG, np.where(row, np.nan, WEAK))):
    np.testing.assert_array_equal(np.isnan(fixmatch_loss(*pair)), row[:, 0])
  # The class that an uncertain weak view guesses may be masked in the strong view.
  masked = np.where(np.arange(3) == 1, -np.inf, STRONG)
  values, slope = jax.jit(jax.value_and_grad(lambda z: fixmatch_loss(z, WEAK)[1]))(masked)
  assert values == 0 and not np.any(slope)


def test_no_gradient_reaches_the_weak_view():
  slope = jax.jit(jax.grad(lambda *z: fixmatch_loss(*z).sum(), argnums=(0, 1)))
  strong, weak = map(np.asarray, slope(STRONG, WEAK))
  assert not np.any(weak)
  np.testing.assert_array_equal(np.any(strong, axis=-1), [True, False, True, False])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_are_finite(scale):
  value, gradient = jax.jit(
    jax.value_and_grad(lambda z: fixmatch_loss(z * scale, z * scale).sum())
  )(STRONG)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_half_precision_leading_axes_and_errors():
  result = fixmatch_loss(STRONG[None].astype(jnp.bfloat16), WEAK[None].astype(jnp.bfloat16))
  assert result.shape == (1, 4) and result.dtype == jnp.float32
  np.testing.assert_allclose(np.asarray(result)[0], fixmatch_loss(STRONG, WEAK), rtol=1e-2)
  with pytest.raises(ValueError, match="threshold"):
    losses.fixmatch_loss(STRONG, WEAK, threshold=1.5)
  with pytest.raises(ValueError, match="weak_logits must have shape"):
    fixmatch_loss(STRONG, WEAK[:2])


def test_pseudo_label_mix_weight():
  prob = np.array([0.96, 0.94, 0.8, 0.8, 0.3, np.nan], np.float32)
  ratio = np.array([0.5, 0.9, 0.9, 0.7, 1.0, 0.9], np.float32)
  constant = pseudo_label_mix_weight(prob, ratio)
  np.testing.assert_array_equal(constant, [1, 0, 0, 0, 0, np.nan])
  looser = pseudo_label_mix_weight(prob, ratio, cutoff=0.95, mix_cutoff=0.2)
  np.testing.assert_array_equal(looser, [1, 1, 1, 1, 1, np.nan])
  np.testing.assert_array_equal(
    pseudo_label_mix_weight(prob[:4], np.float32([0.5, 0.9, 0.15, 0.1]), mix_cutoff=0.2),
    [1, 1, 0, 0],
  )
  unknown = pseudo_label_mix_weight(prob, np.where(np.arange(6) == 2, np.float32(np.nan), ratio))
  np.testing.assert_array_equal(np.isnan(unknown), [0, 0, 1, 0, 0, 1])
  with pytest.raises(ValueError, match="mix_cutoff"):
    losses.pseudo_label_mix_weight(ratio, ratio, mix_cutoff=2.0)


def softmax(logits):
  z = np.exp(logits - np.max(logits, axis=-1, keepdims=True), dtype=np.float64)
  return z / z.sum(-1, keepdims=True)


def slow_shrink(probs, threshold):
  """Removed classes, those left, and the share of the top class, of one row."""
  order = sorted(range(len(probs)), key=lambda c: (-probs[c], c))
  if probs[order[0]] >= threshold:
    return 0, set(order), probs[order[0]]
  removed, share = 0, probs[order[0]]
  for removed in range(1, len(probs) - 1):
    share = probs[order[0]] / (probs[order[0]] + sum(probs[c] for c in order[removed + 1 :]))
    if share >= threshold:
      break
  return removed, {order[0], *order[removed + 1 :]}, share


# Peaked rows, flat ones, a tie, a uniform one and a one-hot one.
_RNG = np.random.default_rng(0)
PROBS = np.concatenate(
  [
    softmax(_RNG.normal(size=(40, 10)) * np.linspace(0.5, 5, 40)[:, None]),
    [[0.4, 0.4, 0.1, 0.04, 0.02, 0.01, 0.01, 0.01, 0.01, 0.0]],
    np.full((1, 10), 0.1),
    np.eye(10)[3:4],
  ]
).astype(np.float32)
LOGITS = _RNG.normal(size=PROBS.shape).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.95, 0.7, 0.4])
def test_shrinking_matches_a_loop(threshold):
  space = jax.device_get(shrink_class_space(PROBS, threshold=threshold))
  values = np.asarray(shrunk_class_loss(LOGITS, PROBS, threshold=threshold))
  for i, (row, logits) in enumerate(zip(PROBS.astype(np.float64), LOGITS.astype(np.float64))):
    removed, left, share = slow_shrink(row, threshold)
    assert space.num_removed[i] == removed and set(np.flatnonzero(space.keep[i])) == left
    np.testing.assert_allclose(space.confidence[i], share, rtol=1e-5)
    assert bool(space.reached[i]) == (share >= threshold)
    top = np.argmax(row)
    weight = row[top] * (row[top] < threshold <= share)
    kept = logits[sorted(left)]
    slow = weight * (np.log(np.sum(np.exp(kept))) - logits[top])
    np.testing.assert_allclose(values[i], slow, rtol=1e-5, atol=1e-6)
  if threshold == 0.95:
    # Uniform: the top class can reach one half. One-hot: certain.
    assert space.num_removed[-2] == 8 and not space.reached[-2] and values[-2] == 0
    assert space.num_removed[-1] == 0 and space.keep[-1].all() and values[-1] == 0


def test_shrinking_is_monotone_and_follows_the_classes():
  counts = [shrink_class_space(PROBS, threshold=x).num_removed for x in (0.4, 0.7, 0.95)]
  assert np.all(np.diff(np.stack(counts), axis=0) >= 0)
  order = np.random.default_rng(1).permutation(10)
  distinct = slice(0, 40)  # Ties go to the first class.
  keep = np.asarray(shrink_class_space(PROBS, threshold=0.7).keep)
  permuted = np.asarray(shrink_class_space(PROBS[:, order], threshold=0.7).keep)
  np.testing.assert_array_equal(permuted[distinct], keep[distinct][:, order])
  values = np.asarray(shrunk_class_loss(LOGITS, PROBS, threshold=0.7))
  moved = np.asarray(shrunk_class_loss(LOGITS[:, order], PROBS[:, order], threshold=0.7))
  np.testing.assert_allclose(moved[distinct], values[distinct], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_leave_little_to_remove(num_classes):
  probs = softmax(np.random.default_rng(2).normal(size=(20, num_classes))).astype(np.float32)
  space = jax.device_get(shrink_class_space(probs, threshold=0.95))
  assert space.num_removed.max() == num_classes - 2
  if num_classes == 2:
    np.testing.assert_array_equal(space.confidence, probs.max(-1))
    assert not np.any(shrunk_class_loss(probs, probs, threshold=0.95))


def test_removed_classes_get_no_gradient_and_neither_do_probabilities():
  slope = jax.jit(jax.grad(lambda z, p: shrunk_class_loss(z, p, threshold=0.7).sum(), (0, 1)))
  of_logits, of_probs = map(np.asarray, slope(LOGITS, PROBS))
  space = jax.device_get(shrink_class_space(PROBS, threshold=0.7))
  assert not np.any(of_probs) and not np.any(of_logits[~np.asarray(space.keep)])
  np.testing.assert_allclose(of_logits.sum(-1), 0.0, atol=1e-6)
  active = np.asarray(space.reached) & (PROBS.max(-1) < 0.7)
  np.testing.assert_array_equal(np.any(of_logits != 0, axis=-1), active)
  for scale in (1e4, -1e4):
    assert np.isfinite(slope(scale * LOGITS, PROBS)[0]).all()
  # All classes that a row without a loss would keep may be masked.
  masked = np.where(np.isin(np.arange(10), (0, 9)), -np.inf, LOGITS).astype(np.float32)
  assert np.isfinite(shrunk_class_loss(masked[-2:-1], PROBS[-2:-1], threshold=0.95)).all()


def test_shrunk_loss_pushes_all_but_the_confused_class():
  """A pair at .49 each, and 18 classes that share .02."""
  probs = np.float32([[0.49, 0.49] + [0.02 / 18] * 18])
  step = jax.jit(jax.grad(lambda z: shrunk_class_loss(z, probs).sum()))
  slope = np.asarray(step(np.zeros_like(probs)))[0]
  assert slope[0] < 0 and slope[1] == 0 and np.all(slope[2:] > 0)
  assert soft_pseudo_label_loss(np.zeros_like(probs), probs) == 0


def test_soft_guesses_of_confident_rows():
  probs = softmax(WEAK)
  confident = np.float64(probs.max(-1) >= 0.95)
  expected = -confident * np.sum(probs * LOG_PROBS, axis=-1)
  np.testing.assert_allclose(soft_pseudo_label_loss(STRONG, np.float32(probs)), expected, rtol=1e-5)
  slope = jax.jit(jax.grad(lambda *x: soft_pseudo_label_loss(*x).sum(), argnums=1))
  assert not np.any(slope(STRONG, np.float32(probs)))


def test_each_class_has_a_threshold_of_its_own():
  thresholds = np.float32([0.5, 0.6, 0.999])
  result = np.asarray(class_threshold_loss(STRONG, WEAK, thresholds))
  # Confidences 1, .58, .99 and .5 (a tie, so just below .5 in float32 or at it).
  np.testing.assert_allclose(result[:3], [-LOG_PROBS[0, 0], 0.0, 0.0], rtol=1e-6)
  equal = class_threshold_loss(STRONG, WEAK, np.full(3, 0.95, np.float32))
  np.testing.assert_allclose(equal, fixmatch_loss(STRONG, WEAK), rtol=1e-6)


def test_weighted_pseudo_labels():
  labels, weights = np.array([0, 2, 1, 0]), np.float32([1.0, 0.5, 0.0, 2.0])
  expected = -weights * LOG_PROBS[range(4), labels]
  np.testing.assert_allclose(
    weighted_pseudo_label_loss(STRONG, labels, weights), expected, rtol=1e-6
  )
  slope = jax.jit(jax.grad(lambda w: weighted_pseudo_label_loss(STRONG, labels, w).sum()))
  assert not np.any(slope(weights))


def test_consistency_of_a_student_and_its_teacher():
  expected = np.mean((softmax(STRONG) - softmax(WEAK)) ** 2, axis=-1)
  np.testing.assert_allclose(consistency_mse_loss(STRONG, WEAK), expected, rtol=1e-5)
  opposite = consistency_mse_loss(np.float32([[1e4, 0, 0]]), np.float32([[0, 1e4, 0]]))
  np.testing.assert_allclose(opposite, 2 / 3, rtol=1e-6)
  slope = jax.jit(jax.grad(lambda *z: consistency_mse_loss(*z).sum(), argnums=(0, 1)))
  student, teacher = slope(STRONG, WEAK)
  assert np.any(student) and not np.any(teacher)


def test_js_divergence_of_two_networks():
  p, q = softmax(STRONG), softmax(WEAK)
  entropy = lambda p: -np.sum(p * np.log(p), axis=-1)  # noqa: E731
  expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
  np.testing.assert_allclose(js_divergence_loss(STRONG, WEAK), expected, rtol=1e-4)
  np.testing.assert_allclose(js_divergence_loss(WEAK, STRONG), expected, rtol=1e-4)
  np.testing.assert_allclose(js_divergence_loss(STRONG, STRONG), 0.0, atol=1e-6)
  apart = js_divergence_loss(
    1e4 * np.eye(3, dtype=np.float32), 1e4 * np.eye(3, dtype=np.float32)[[1, 2, 0]]
  )
  np.testing.assert_allclose(apart, np.log(2), atol=2e-6)
  slope = jax.jit(jax.grad(lambda *z: js_divergence_loss(*z).sum(), argnums=(0, 1)))
  assert all(np.any(x) and np.isfinite(x).all() for x in slope(STRONG, WEAK))
  assert all(np.isfinite(x).all() for x in slope(1e4 * STRONG, -1e4 * WEAK))


def test_difference_between_a_view_and_its_attack():
  np.testing.assert_allclose(
    view_difference_loss(STRONG, STRONG), -np.sum(softmax(STRONG) * LOG_PROBS, axis=-1), rtol=1e-5
  )
  expected = -np.sum(softmax(WEAK) * LOG_PROBS, axis=-1)
  np.testing.assert_allclose(view_difference_loss(WEAK, STRONG), expected, rtol=1e-4)
  slope = jax.jit(jax.grad(lambda *z: view_difference_loss(*z).sum(), argnums=(0, 1)))
  assert all(np.any(x) for x in slope(WEAK, STRONG))


def test_errors_of_losses_of_guesses():
  for function in (losses.shrunk_class_loss, losses.soft_pseudo_label_loss):
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 0"):
      function(STRONG, STRONG, threshold=0)
    with pytest.raises(ValueError, match="probs must have shape"):
      function(STRONG, STRONG[:, :2])
  with pytest.raises(ValueError, match="threshold"):
    losses.shrink_class_space(STRONG, threshold=1.1)
  with pytest.raises(ValueError, match=r"thresholds must have shape \[k\]"):
    losses.class_threshold_loss(STRONG, WEAK, np.ones(2, np.float32))
  with pytest.raises(ValueError, match="labels must lie in"):
    losses.weighted_pseudo_label_loss(STRONG, np.array([0, 1, 2, 3]), np.ones(4))
  with pytest.raises(ValueError, match="teacher_logits must have shape"):
    losses.consistency_mse_loss(STRONG, WEAK[:2])
