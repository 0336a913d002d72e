import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.algorithms.transductive import (
  cosine_logits,
  masked_prototype,
  proportion_regularized_inference,
)

N, S, H, W, C = 3, 2, 4, 5, 6
EPS = 1e-10
infer = jax.jit(
  proportion_regularized_inference, static_argnames=("num_steps", "proportion_update_step")
)


def make_task(n, shots, seed):
  """A direction for the foreground, another for the background, and noise."""
  rng = np.random.default_rng(seed)
  directions = rng.normal(size=(n, 2, C))

  def images(count):
    masks = (rng.uniform(size=(n, count, H, W)) < 0.4).astype(np.int32)
    chosen = directions[np.arange(n)[:, None, None, None], masks]
    features = chosen + 0.7 * rng.normal(size=chosen.shape)
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32), masks

  support, masks = images(shots)
  query, truth = images(1)
  masks[:, :, 0, 0] = 255
  valid = np.ones_like(truth)
  valid[:, :, -1] = 0
  return support, masks, query, valid


@pytest.fixture(scope="module")
def task():
  return make_task(N, S, 0)


def slow_start(support, masks, query, scale):
  inside = masks == 1
  w = support[inside].sum(0) / (inside.sum() + EPS)
  return w, slow_logits(query, w, scale).mean()


def slow_logits(features, w, scale):
  norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(w)
  return scale * (features @ w) / (norms + EPS)


def slow_inference(support, masks, query, valid, *, steps, scale=20.0, lr=0.025, update=10):
  """One task in float64, with the gradients written out by hand."""
  support, query = support.astype(np.float64), query.astype(np.float64)
  w, beta = slow_start(support, masks, query, scale)
  used = valid == 1

  def probs(features):
    return 1 / (1 + np.exp(-(slow_logits(features, w, scale) - beta)))

  def chain(features, d_logit):
    """Maps the gradient by the logits s - beta to those by w and beta."""
    norm_f, norm_w = np.linalg.norm(features, axis=-1, keepdims=True), np.linalg.norm(w)
    cosine = (features @ w)[..., None] / (norm_f * norm_w)
    ds_dw = scale * (features / (norm_f * norm_w) - cosine * w / norm_w**2)
    return (d_logit[..., None] * ds_dw).sum((0, 1, 2)), -d_logit.sum()

  pi = probs(query)[used].mean()
  weight = entropy_weight = 1 / len(support)
  for i in range(1, steps):
    p = probs(support)
    counts = masks != 255
    d_support = np.where(counts, p - (masks == 1), 0) / counts.sum()
    q = probs(query)
    share = q[used].mean()
    d_share = np.log(share / pi) - np.log((1 - share) / (1 - pi))
    d_prob = weight * d_share - entropy_weight * (np.log(q) - np.log(1 - q))
    d_query = np.where(used, d_prob * q * (1 - q), 0) / used.sum()
    (w_s, b_s), (w_q, b_q) = chain(support, d_support), chain(query, d_query)
    w, beta = w - lr * (w_s + w_q), beta - lr * (b_s + b_q)
    if i == update - 1:
      pi, weight = probs(query)[used].mean(), weight + 1
  return w, beta, pi, probs(query)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_matches_a_slow_loop_with_manual_gradients(task, steps):
  got = infer(*task, num_steps=steps)
  for n in range(N):
    want = slow_inference(*(a[n] for a in task), steps=steps)
    for value, target in zip(got, want):
      np.testing.assert_allclose(value[n], target, rtol=2e-3, atol=2e-4)


def test_one_step_returns_the_start(task):
  got = infer(*task, num_steps=1)
  for n in range(N):
    w, beta = slow_start(task[0][n], task[1][n], task[2][n], 20.0)
    np.testing.assert_allclose(got.prototype[n], w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.bias[n], beta, rtol=1e-4, atol=1e-5)
  still = infer(*task, learning_rate=0.0, num_steps=12)
  np.testing.assert_allclose(still.prototype, got.prototype)
  np.testing.assert_allclose(still.bias, got.bias)
  assert got.foreground.shape == (N, 1, H, W)


def test_estimate_is_the_share_after_nine_steps(task):
  nine = infer(*task, num_steps=10, proportion_update_step=1)
  valid = task[3] == 1
  share = (np.asarray(nine.foreground) * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3))
  np.testing.assert_allclose(infer(*task, num_steps=50).proportion, share, rtol=1e-5)
  np.testing.assert_allclose(infer(*task, num_steps=10).proportion, share, rtol=1e-5)
  # Nine steps come before the increase of the KL weight.
  np.testing.assert_allclose(infer(*task, num_steps=10).bias, nine.bias)


def test_batched_tasks_match_single_runs(task):
  together = infer(*task)
  for n in range(N):
    alone = infer(*(a[n : n + 1] for a in task))
    for value, target in zip(together, alone):
      np.testing.assert_allclose(value[n], target[0], rtol=1e-4, atol=1e-5)
  mapped = jax.vmap(lambda *t: proportion_regularized_inference(*(a[None] for a in t)))(*task)
  np.testing.assert_allclose(mapped.foreground[:, 0], together.foreground, rtol=1e-4, atol=1e-5)


def test_ignored_pixels_have_no_influence(task):
  support, masks, query, valid = task
  changed = np.where((masks == 255)[..., None], -3 * support, support)
  np.testing.assert_allclose(
    infer(changed, masks, query, valid).foreground, infer(*task).foreground, atol=1e-6
  )


def test_scale_of_the_features_matters_only_to_the_prototype(task):
  support, masks, query, valid = task
  before, after = (
    infer(*task, num_steps=1),
    infer(5 * support, masks, 5 * query, valid, num_steps=1),
  )
  np.testing.assert_allclose(after.foreground, before.foreground, rtol=1e-4)
  np.testing.assert_allclose(after.prototype, 5 * before.prototype, rtol=1e-4)
  # Gradients shrink as the prototype grows, so a rate that grows with its square gives the same.
  run = functools.partial(infer, num_steps=2, proportion=before.proportion)
  grown = run(5 * support, masks, 5 * query, valid, learning_rate=0.025 * 25)
  direction = np.asarray(grown.prototype) / 5
  np.testing.assert_allclose(direction, run(*task).prototype, rtol=1e-3, atol=1e-5)


def test_known_share_is_never_replaced(task):
  share = np.array([0.4, 0.2, 0.7], np.float32)
  got = infer(*task, proportion=share)
  np.testing.assert_array_equal(got.proportion, share)
  valid = task[3] == 1
  predicted = (np.asarray(got.foreground) * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3))
  free = infer(*task, kl_weight=0.0, proportion=share)
  loose = (np.asarray(free.foreground) * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3))
  assert np.abs(predicted - share).sum() < np.abs(loose - share).sum()


def test_degenerate_tasks_stay_finite(task):
  support, masks, query, valid = task
  for bad in (
    (support, np.ones_like(masks), query, valid),
    (support, np.zeros_like(masks), query, valid),
    (support, np.full_like(masks, 255), query, valid),
    (support, masks, query, np.zeros_like(valid)),
    (support, masks, np.zeros_like(query), valid),
  ):
    for value in infer(*bad):
      assert np.all(np.isfinite(value))
  sharp = infer(*task, scale=1e4)
  assert np.all(np.isfinite(sharp.foreground)) and np.all(np.isfinite(sharp.prototype))


def test_half_precision_runs_in_float32(task):
  support, masks, query, valid = task
  half = infer(support.astype(jnp.bfloat16), masks, query.astype(jnp.bfloat16), valid)
  assert half.foreground.dtype == jnp.float32
  np.testing.assert_allclose(half.foreground, infer(*task).foreground, atol=0.1)


def test_prototype_and_cosine(task):
  support, masks, query, _ = task
  one = np.zeros_like(masks)
  one[:, 1, 2, 3] = 1
  np.testing.assert_allclose(masked_prototype(support, one), support[:, 1, 2, 3], rtol=1e-6)
  w = np.asarray(masked_prototype(support, masks))
  got = jax.jit(cosine_logits)(query, w, scale=3.0)
  for n in range(N):
    np.testing.assert_allclose(got[n], slow_logits(query[n], w[n], 3.0), rtol=1e-5, atol=1e-5)
  value, grads = jax.jit(
    jax.value_and_grad(lambda f, w: cosine_logits(f, w).sum(), argnums=(0, 1))
  )(jnp.zeros((1, 1, 1, 1, C)), jnp.zeros((1, C)))
  assert value == 0 and all(np.all(np.isfinite(grad)) for grad in grads)


def test_errors(task):
  with pytest.raises(ValueError, match="num_steps.*0"):
    proportion_regularized_inference(*task, num_steps=0)
  for scale in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match="scale"):
      proportion_regularized_inference(*task, scale=scale)
    with pytest.raises(ValueError, match="scale"):
      cosine_logits(task[2], np.ones((N, C)), scale=scale)
  for options in ({"learning_rate": -1.0}, {"kl_weight": np.nan}, {"proportion": np.full(N, 1.5)}):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must lie in"):
      proportion_regularized_inference(*task, **options)
  empty = task[0][:, :0], task[1][:, :0]
  with pytest.raises(ValueError, match="number of shots must be at least 1, got 0"):
    proportion_regularized_inference(*empty, *task[2:])
  with pytest.raises(ValueError, match="support_masks must have shape"):
    proportion_regularized_inference(task[0], task[1][:, :1], *task[2:])
