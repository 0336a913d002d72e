import jax
import numpy as np
import pytest

from jaxlab import metrics

N, K, C, M, D = 40, 4, 3, 15, 5
RNG = np.random.default_rng(0)
BASE, TRUE = RNG.dirichlet(np.ones(C), (2, N)).astype(np.float32)
MATCHES = RNG.dirichlet(np.ones(C), (N, K)).astype(np.float32)
MASK = RNG.random((N, K)) < 0.6
QUERY, CANDIDATES = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
QUERY, CANDIDATES = QUERY.astype(np.float32), CANDIDATES.astype(np.float32)
DISTANCES = ("l2", "cosine", "norm_difference")
error = jax.jit(metrics.causal_effect_error, static_argnames="distance")
top_k = jax.jit(metrics.top_k_matches, static_argnames="top_k")
faithfulness = jax.jit(metrics.order_faithfulness)


def slow_error(row, mask, distance):
  kept = MATCHES[row][mask[row]].astype(np.float64)
  if not len(kept):
    return np.nan
  estimate, effect = kept.mean(0) - BASE[row], TRUE[row].astype(np.float64) - BASE[row]
  lengths = np.linalg.norm(estimate), np.linalg.norm(effect)
  if distance == "l2":
    return np.linalg.norm(estimate - effect)
  if distance == "cosine":
    return 1 - estimate @ effect / np.prod(lengths)
  return abs(lengths[0] - lengths[1])


@pytest.mark.parametrize("distance", DISTANCES)
def test_errors_match_a_loop(distance):
  result = error(BASE, TRUE, MATCHES, match_mask=MASK, distance=distance)
  expected = [slow_error(row, MASK, distance) for row in range(N)]
  assert np.isnan(expected).any()
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_true_counterfactual_has_no_error(distance):
  matches = np.broadcast_to(TRUE[:, None], MATCHES.shape)
  np.testing.assert_allclose(error(BASE, TRUE, matches, distance=distance), 0, atol=2e-7)
  spoiled = np.where(MASK[..., None], matches, np.nan)
  result = error(BASE, TRUE, spoiled, match_mask=MASK, distance=distance)
  np.testing.assert_allclose(result[MASK.any(1)], 0, atol=2e-7)


def test_effects_of_zero():
  same = np.broadcast_to(BASE[:, None], MATCHES.shape)
  # No estimated effect, then no true effect, then neither.
  np.testing.assert_array_equal(error(BASE, TRUE, same, distance="cosine"), 1)
  np.testing.assert_array_equal(error(BASE, BASE, MATCHES, distance="cosine"), 1)
  np.testing.assert_array_equal(error(BASE, BASE, same, distance="cosine"), 0)
  np.testing.assert_allclose(
    error(BASE, TRUE, same), np.linalg.norm(TRUE - BASE, axis=1), rtol=1e-5
  )


def test_averaged_outputs_err_less_than_single_ones():
  together = np.asarray(error(BASE, TRUE, MATCHES))
  single = [
    error(BASE, TRUE, MATCHES, match_mask=np.arange(K)[None] == np.full((N, 1), k))
    for k in range(K)
  ]
  assert np.all(together <= np.mean(single, axis=0) + 1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_finite_at_the_kinks(distance):
  def total(base, true, matches):
    return error(base, true, matches, distance=distance).sum()

  slope = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  same = np.broadcast_to(BASE[:, None], MATCHES.shape)
  for true, matches in ((BASE, same), (TRUE, np.broadcast_to(TRUE[:, None], MATCHES.shape))):
    assert all(np.all(np.isfinite(x)) for x in jax.device_get(slope(BASE, true, matches)))


def test_effects_are_differences():
  effect = np.asarray(metrics.individual_causal_effect(BASE, TRUE))
  np.testing.assert_allclose(effect, TRUE - BASE, rtol=1e-6)
  np.testing.assert_allclose(
    metrics.average_causal_effect(BASE, TRUE), (TRUE - BASE).mean(0), rtol=1e-5, atol=1e-7
  )


def test_matches_are_those_of_a_loop():
  valid = RNG.random((N, M)) < 0.5
  valid[0] = False
  result = jax.device_get(top_k(QUERY, CANDIDATES, valid=valid, top_k=3, threshold=0.2))
  for row in range(N):
    scores = [
      q @ c / np.linalg.norm(q) / np.linalg.norm(c)
      for q, c in ((QUERY[row].astype(np.float64), c.astype(np.float64)) for c in CANDIDATES)
    ]
    allowed = [j for j in range(M) if valid[row, j] and scores[j] >= 0.2]
    best = sorted(allowed, key=lambda j: -scores[j])[:3]
    np.testing.assert_array_equal(result.indices[row, : len(best)], best)
    expected = [scores[j] for j in best] + [-np.inf] * (3 - len(best))
    np.testing.assert_allclose(result.similarity[row], expected, rtol=1e-4, atol=1e-6)
  assert np.isneginf(result.similarity[0]).all()


def test_a_text_is_its_own_best_match_whatever_its_length():
  scaled = np.concatenate([CANDIDATES, 7 * QUERY[:5]])
  result = jax.device_get(top_k(QUERY, scaled, top_k=1))
  np.testing.assert_array_equal(result.indices[:5, 0], M + np.arange(5))
  np.testing.assert_allclose(result.similarity[:5, 0], 1, rtol=1e-5)


def test_orders_match_a_loop():
  estimated, true = RNG.integers(0, 4, (2, N, 4)).astype(np.float32)
  right = [
    np.sign(e[i] - e[j]) == np.sign(t[i] - t[j])
    for e, t in zip(estimated, true)
    for i in range(4)
    for j in range(i)
  ]
  np.testing.assert_allclose(faithfulness(estimated, true), np.mean(right), rtol=1e-6)
  assert faithfulness(true, 3 * true + 1) == 1 and faithfulness(-estimated, estimated) < 0.5
  estimated[3, 2] = np.nan
  assert np.isnan(faithfulness(estimated, true))
  assert np.isnan(metrics.order_faithfulness(true[:, :1], true[:, :1]))


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="distance must be one of 'l2', .*got 'l1'"):
    metrics.causal_effect_error(BASE, TRUE, MATCHES, distance="l1")
  for k in (0, M + 1):
    with pytest.raises(ValueError, match=rf"top_k must lie in \[1, {M}\], got {k}"):
      metrics.top_k_matches(QUERY, CANDIDATES, top_k=k)
  with pytest.raises(ValueError, match="valid must have shape"):
    metrics.top_k_matches(QUERY, CANDIDATES, valid=np.ones((M, N), bool))
  with pytest.raises(ValueError, match="match_probs must have shape"):
    metrics.causal_effect_error(BASE, TRUE, MATCHES[:, :, :2])
