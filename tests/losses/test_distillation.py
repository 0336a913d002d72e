import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses


def evaluated(function, *static):
  """The function as one program that gives NumPy arrays."""
  program = jax.jit(function, static_argnames=static)
  return lambda *args, **kwargs: jax.device_get(program(*args, **kwargs))


distillation = evaluated(losses.distillation_loss)
fused = evaluated(losses.fused_distillation_loss)
features_of = evaluated(losses.trilateral_features, "parts")
class_means = evaluated(losses.class_mean_probs, "num_classes")

RNG = np.random.default_rng(0)
LOGITS, TEACHER = RNG.normal(0, 2, (2, 6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 3, 1, 0, 3], np.int32)
PARTS = {"all": 9, "probabilities": 4, "distances": 3, "angles": 2}


def softmax(z):
  z = np.float64(z)
  z = np.exp(z - z.max(-1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


def slow_distillation(logits, teacher, temperature):
  values = []
  for s, t in zip(softmax(logits / temperature), softmax(teacher / temperature)):
    values.append(temperature**2 * sum(b * (np.log(b) - np.log(a)) for a, b in zip(s, t)))
  return np.array(values)


@pytest.mark.parametrize("temperature", [0.7, 1.5, 4.0])
def test_distillation_matches_a_loop(temperature):
  value = distillation(LOGITS, TEACHER, temperature=temperature)
  expected = slow_distillation(LOGITS, TEACHER, temperature)
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  assert np.all(value > 0)
  shifted = distillation(LOGITS + 3 * np.float32(LABELS)[:, None], LOGITS, temperature=temperature)
  np.testing.assert_allclose(shifted, 0, atol=1e-5)


def test_distillation_at_a_high_temperature_compares_centered_logits():
  centered = [z - z.mean(1, keepdims=True) for z in (LOGITS, TEACHER)]
  expected = np.sum((centered[0] - centered[1]) ** 2, axis=1) / (2 * 4)
  value = distillation(LOGITS, TEACHER, temperature=100.0)
  np.testing.assert_allclose(value, expected, rtol=0.02)


def test_gradient_of_distillation():
  def total(s, t):
    return losses.distillation_loss(s, t, temperature=1.5).sum()

  of_student, of_teacher = evaluated(jax.grad(total, argnums=(0, 1)))(LOGITS, TEACHER)
  expected = 1.5 * (softmax(LOGITS / 1.5) - softmax(TEACHER / 1.5))
  np.testing.assert_allclose(of_student, expected, rtol=1e-4, atol=1e-6)
  assert np.all(of_teacher == 0)


def cross_entropy(logits, labels):
  return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def test_fused_loss_goes_from_labels_to_the_teacher():
  from_teacher = slow_distillation(LOGITS, TEACHER, 1.5)
  from_labels = cross_entropy(LOGITS, LABELS)
  ratio = np.float32([0.0, 1.0, 0.3, 0.5, 0.8, 1.0])
  value = fused(LOGITS, TEACHER, LABELS, ratio)
  np.testing.assert_allclose(value, ratio * from_teacher + (1 - ratio) * from_labels, rtol=1e-4)
  np.testing.assert_allclose(fused(LOGITS, TEACHER, LABELS, 0.0), from_labels, rtol=1e-5)
  np.testing.assert_allclose(
    fused(LOGITS, TEACHER, LABELS, 1.0), distillation(LOGITS, TEACHER), rtol=1e-6
  )


SLOPES = evaluated(
  jax.value_and_grad(
    lambda s, t, ratio: losses.fused_distillation_loss(s, t, LABELS, ratio).sum(), argnums=(0, 1, 2)
  )
)


def test_gradients_of_the_fused_loss():
  ratio = np.full(6, 0.3, np.float32)
  _, (of_student, of_teacher, of_ratio) = SLOPES(LOGITS, TEACHER, ratio)
  soft = 1.5 * (softmax(LOGITS / 1.5) - softmax(TEACHER / 1.5))
  hard = softmax(LOGITS) - np.eye(4)[LABELS]
  np.testing.assert_allclose(of_student, 0.3 * soft + 0.7 * hard, rtol=1e-4, atol=1e-6)
  assert np.all(of_teacher == 0)
  gain = slow_distillation(LOGITS, TEACHER, 1.5) - cross_entropy(LOGITS, LABELS)
  np.testing.assert_allclose(of_ratio, gain, rtol=1e-4, atol=1e-5)


def test_extreme_and_masked_logits():
  ratio = np.full(6, 0.5, np.float32)
  extreme = 1e4 * np.sign(LOGITS), 1e4 * np.sign(TEACHER)
  value, slopes = SLOPES(*extreme, ratio)
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in slopes)
  masked = np.arange(4) == 2  # No label.
  both = [np.where(masked, -np.inf, x).astype(np.float32) for x in (LOGITS, TEACHER)]
  kept = [x[:, ~masked] for x in (LOGITS, TEACHER)]
  expected = 0.5 * slow_distillation(*kept, 1.5) + 0.5 * cross_entropy(both[0], LABELS)
  value, slopes = SLOPES(*both, ratio)
  np.testing.assert_allclose(value, expected.sum(), rtol=1e-4)
  assert all(np.isfinite(x).all() for x in slopes)
  # A teacher that does not know a class is no reason to lose it.
  value, slopes = SLOPES(LOGITS, both[1], ratio)
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in slopes)


def test_class_means():
  probs = np.float32(softmax(TEACHER))
  means = class_means(probs, LABELS, num_classes=4)
  expected = np.full((4, 4), 0.25)
  for c in (0, 1, 3):
    expected[c] = probs[c == LABELS].mean(0)
  np.testing.assert_allclose(means, expected, rtol=1e-5)
  np.testing.assert_allclose(np.sum(means, axis=1), 1, rtol=1e-5)
  alone = np.array([3, 1, 0, 2, 4, 5])
  single = class_means(probs, alone, num_classes=6)
  np.testing.assert_array_equal(single[alone], probs)
  # A label outside the classes is left out; NaN stays in its class.
  means = class_means(np.where(np.arange(6)[:, None] == 3, np.nan, probs), LABELS, num_classes=2)
  np.testing.assert_array_equal(np.isnan(means).all(1), [False, True])


def test_layout_of_the_features():
  s, t = np.float32(softmax(LOGITS)), np.float32(softmax(TEACHER))
  means = class_means(t, LABELS, num_classes=4)
  out = {name: features_of(s, t, LABELS, means, parts=name) for name in PARTS}
  for i in range(6):
    g, o = np.eye(4)[LABELS[i]], means[LABELS[i]]
    a, b = s[i], t[i]
    expected = {
      "probabilities": [a, b, g, o],
      "distances": [(o - a) ** 2, (g - a) ** 2, (b - a) ** 2],
      "angles": [(o - a) * (g - a), (b - a) * (g - a)],
    }
    expected["all"] = [*expected["probabilities"], *expected["distances"]]
    expected["all"] += [(b - g) ** 2, (o - g) ** 2]
    for name, count in PARTS.items():
      assert len(expected[name]) == count
      np.testing.assert_allclose(out[name][i], np.concatenate(expected[name]), atol=1e-6)
  same = features_of(s, s, LABELS, means).reshape(6, 9, 4)
  assert np.all(same[:, 6] == 0)
  by_class = same[:, 8]
  for i in range(6):
    np.testing.assert_array_equal(by_class[i], by_class[np.argmax(LABELS[i] == LABELS)])


def test_features_have_no_gradient_and_mark_unknown_labels():
  s, t = np.float32(softmax(LOGITS)), np.float32(softmax(TEACHER))
  means = np.eye(4, dtype=np.float32)

  def total(s, t, means):
    return losses.trilateral_features(s, t, LABELS, means).sum()

  slope = evaluated(jax.grad(total, argnums=(0, 1, 2)))
  assert all(np.all(x == 0) for x in slope(s, t, means))
  for parts in ("all", "angles"):
    out = features_of(s, t, np.where(LABELS == 3, 4, LABELS), means, parts=parts)
    np.testing.assert_array_equal(np.isnan(out).any(1), LABELS == 3)


def test_half_precision():
  value = distillation(jnp.asarray(LOGITS, jnp.bfloat16), TEACHER)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, slow_distillation(LOGITS, TEACHER, 1.5), rtol=0.05, atol=0.02)


def test_errors():
  for value in (0, -1.0, np.nan):
    with pytest.raises(ValueError, match="temperature"):
      losses.distillation_loss(LOGITS, TEACHER, temperature=value)
  with pytest.raises(ValueError, match="teacher_logits must have shape"):
    losses.distillation_loss(LOGITS, TEACHER[:, :3])
  with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], got 1.5"):
    losses.fused_distillation_loss(LOGITS, TEACHER, LABELS, 1.5)
  with pytest.raises(ValueError, match="ratio must have shape"):
    losses.fused_distillation_loss(LOGITS, TEACHER, LABELS, np.full(5, 0.5))
  with pytest.raises(ValueError, match="labels must lie in"):
    losses.fused_distillation_loss(LOGITS, TEACHER, LABELS + 1, 0.5)
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    losses.class_mean_probs(TEACHER, LABELS, num_classes=1)
  with pytest.raises(ValueError, match="parts must be one of .* got 'sides'"):
    losses.trilateral_features(LOGITS, TEACHER, LABELS, np.eye(4), parts="sides")
  with pytest.raises(ValueError, match="class_means must have shape"):
    losses.trilateral_features(LOGITS, TEACHER, LABELS, np.eye(5))
