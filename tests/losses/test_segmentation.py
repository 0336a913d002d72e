import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.losses.segmentation import foreground_cross_entropy, pixel_entropy, proportion_kl

EPS = 1e-10
N, S, H, W = 3, 2, 3, 4


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  foreground = rng.uniform(0.02, 0.98, (N, S, H, W))
  masks = rng.choice([0, 1, 255], (N, S, H, W))
  return foreground, masks, (masks != 255).astype(np.int32), rng.uniform(0.1, 0.9, N)


def slow(foreground, masks, valid, proportion):
  """All three losses, pixel by pixel."""
  rows = []
  for p_task, m_task, v_task, pi in zip(foreground, masks, valid, proportion):
    pixels = list(zip(p_task.ravel(), m_task.ravel(), v_task.ravel()))
    ce = [-np.log((p if m == 1 else 1 - p) + EPS) for p, m, _ in pixels if m != 255]
    used = [p for p, _, v in pixels if v]
    entropy = [-sum(q * np.log(q + EPS) for q in (p, 1 - p)) for p in used]
    mean = np.mean(used)
    kl = sum(q * np.log(q / (t + EPS)) for q, t in ((1 - mean, 1 - pi), (mean, pi)))
    rows.append([np.mean(ce), np.mean(entropy), kl])
  return np.array(rows)


@jax.jit
def all_three(foreground, masks, valid, proportion):
  return jnp.stack(
    [
      foreground_cross_entropy(foreground, masks),
      pixel_entropy(foreground, valid),
      proportion_kl(foreground, proportion, valid),
    ],
    axis=-1,
  )


def test_losses_match_a_slow_loop(batch):
  got = np.asarray(all_three(*batch))
  np.testing.assert_allclose(got, slow(*batch), rtol=1e-5, atol=1e-6)
  assert np.all(got[:, 0] >= 0) and np.all(got[:, 1] <= np.log(2) + 1e-6)
  assert np.all(got[:, 2] >= -1e-6)


def test_tasks_are_independent_and_half_precision_sums_in_float32(batch):
  alone = np.concatenate([all_three(*(a[i : i + 1] for a in batch)) for i in range(N)])
  np.testing.assert_allclose(all_three(*batch), alone, rtol=1e-6)
  half = all_three(jnp.asarray(batch[0], jnp.bfloat16), *batch[1:])
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, alone, rtol=0.03, atol=0.01)


def test_pixels_that_do_not_count_have_no_influence(batch):
  foreground, masks, valid, proportion = batch
  changed = np.where(masks == 255, np.nan, foreground)
  np.testing.assert_array_equal(all_three(changed, masks, valid, proportion), all_three(*batch))


def test_narrow_masks_other_values_and_unknown_shares(batch):
  foreground, masks, valid, proportion = batch
  plain = np.asarray(all_three(*batch))
  narrow = all_three(foreground, masks.astype(np.uint8), valid.astype(np.int8), proportion)
  np.testing.assert_array_equal(narrow, plain)
  # In 8 signed bits 255 is -1, which is no class.
  wrapped = all_three(foreground, masks.astype(np.int8), valid.astype(np.int8), proportion)
  np.testing.assert_array_equal(np.isnan(wrapped), [[True, False, False]] * N)
  first = np.arange(N) == 0
  unknown = np.where(first[:, None, None, None], np.nan, foreground)
  np.testing.assert_array_equal(
    np.isnan(all_three(unknown, *batch[1:])), np.tile(first[:, None], 3)
  )
  share = np.where(first, np.nan, proportion)
  np.testing.assert_array_equal(np.isnan(all_three(*batch[:3], share)[:, 2]), first)


def test_kl_and_its_gradient_vanish_at_the_predicted_share(batch):
  foreground, _, valid, _ = batch
  share = (foreground * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3))
  value, grad = jax.jit(
    jax.value_and_grad(lambda p: proportion_kl(p, share.astype(np.float32), valid).sum())
  )(jnp.asarray(foreground, jnp.float32))
  assert abs(value) < 1e-6 and np.all(np.abs(grad) < 1e-6)


def test_task_without_valid_pixels_has_no_loss():
  empty = jnp.full((1, 1, 2, 2), 255)
  value, grad = jax.jit(
    jax.value_and_grad(lambda p: all_three(p, empty, 0 * empty, jnp.ones(1)).sum())
  )(jnp.full((1, 1, 2, 2), 0.3))
  assert value == 0 and np.all(np.asarray(grad) == 0)


@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.0, 1.0, 0.5])
def test_saturated_pixels_stay_finite_under_jit(probability, share):
  foreground = jnp.full((1, 1, 2, 2), probability)
  masks = jnp.array([[[[0, 1], [0, 1]]]])
  for i in range(3):
    value, grads = jax.jit(
      jax.value_and_grad(
        lambda p, s, i=i: all_three(p, masks, jnp.ones_like(masks), s)[0, i], argnums=(0, 1)
      )
    )(foreground, jnp.array([share]))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grads[0])) and np.all(np.isfinite(grads[1]))


def test_gradients_match_finite_differences(batch):
  foreground, masks, valid, proportion = batch
  with jax.enable_x64(True):
    for i in range(3):

      def loss(p, i=i):
        return all_three(p, masks, valid, proportion)[:, i].sum()

      grad = np.asarray(jax.grad(loss)(jnp.asarray(foreground)))
      assert grad.dtype == np.float64
      for index in [(0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 1, 2)]:
        step = np.zeros_like(foreground)
        step[index] = 1e-6
        want = (loss(foreground + step) - loss(foreground - step)) / 2e-6
        np.testing.assert_allclose(grad[index], want, rtol=1e-5, atol=1e-8)


def test_shapes_are_checked(batch):
  foreground, masks, valid, proportion = batch
  for name, call in (
    ("foreground", lambda: foreground_cross_entropy(foreground[0], masks[0])),
    ("masks", lambda: foreground_cross_entropy(foreground, masks[:, :1])),
    ("valid", lambda: pixel_entropy(foreground, valid[..., :2])),
    ("proportion", lambda: proportion_kl(foreground, proportion[:2], valid)),
  ):
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
      jax.eval_shape(call)
