import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

B, D = 5, 4
SIZES = (3, 2, 4, 3)
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(B, D)).astype(np.float32)
SETS = tuple(RNG.normal(size=(B, k, D)).astype(np.float32) for k in SIZES)
NAMES = ("treatment_mask", "match_mask", "confounder_mask", "mismatch_mask")
MASKS = {name: RNG.random((B, k)) < 0.7 for name, k in zip(NAMES, SIZES)}
MASKS["treatment_mask"][0] = MASKS["match_mask"][0] = False
MASKS["treatment_mask"][1] = MASKS["mismatch_mask"][1] = False
MASKS["confounder_mask"][2] = MASKS["mismatch_mask"][2] = False
PAIRS = ((0, 2), (0, 1), (0, 3), (1, 2), (1, 3), (2, 3))
matching = jax.jit(losses.causal_matching_loss, static_argnames="reduction")
ranking = jax.jit(losses.causal_ranking_loss, static_argnames="reduction")


def total(loss):
  def of(query, sets, masks, **settings):
    return loss(query, *sets, **masks, **settings).sum()

  return jax.jit(jax.grad(of, argnums=(0, 1)))


slopes = {
  "matching": total(losses.causal_matching_loss),
  "ranking": total(losses.causal_ranking_loss),
}


def slow_sums(row, masks, temperature, reduction):
  """E of each set, and how many keys count."""
  query = QUERY[row].astype(np.float64)
  sums = []
  for keys, mask in zip(SETS, masks.values()):
    values = [
      np.exp(query @ key / np.linalg.norm(query) / np.linalg.norm(key) / temperature)
      for key, counts in zip(keys[row].astype(np.float64), mask[row])
      if counts
    ]
    sums.append((np.mean(values) if reduction == "mean" else np.sum(values)) if values else 0.0)
  return sums


def slow_matching(row, masks, temperature, reduction, weights):
  t, m, c, n = (w * e for w, e in zip(weights, slow_sums(row, masks, temperature, reduction)))
  return -np.log((t + m) / (t + m + c + n)) if t + m else 0.0


def slow_ranking(row, masks, temperature, reduction, weights):
  sums = slow_sums(row, masks, temperature, reduction)
  terms = [
    -w * np.log(sums[a] / (sums[a] + sums[b])) if sums[a] else 0.0
    for (a, b), w in zip(PAIRS, weights)
  ]
  return np.sum(terms)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_losses_match_a_loop(temperature, reduction):
  keywords = {"temperature": temperature, "reduction": reduction}
  for weights in ((1.0, 1.0, 1.0, 1.0), (1.0, 0.5, 2.0, 0.0)):
    result = matching(QUERY, *SETS, **MASKS, **keywords, set_weights=weights)
    expected = [slow_matching(row, MASKS, temperature, reduction, weights) for row in range(B)]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  weights = (1.0, 0.5, 2.0, 0.0, 1.0, 3.0)
  result = ranking(QUERY, *SETS, **MASKS, **keywords, pair_weights=weights)
  expected = [slow_ranking(row, MASKS, temperature, reduction, weights) for row in range(B)]
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_defaults_are_sums_with_all_keys_and_weights_of_one():
  every = {name: np.ones_like(mask) for name, mask in MASKS.items()}
  for loss, slow, count in ((matching, slow_matching, 4), (ranking, slow_ranking, 6)):
    expected = [slow(row, every, 0.1, "sum", (1,) * count) for row in range(B)]
    np.testing.assert_allclose(loss(QUERY, *SETS), expected, rtol=1e-5, atol=1e-6)


def test_mean_equals_sum_for_sets_of_equal_size():
  sets = [x[:, :2] for x in SETS]
  for loss in (matching, ranking):
    np.testing.assert_allclose(
      loss(QUERY, *sets, reduction="mean"), loss(QUERY, *sets), rtol=1e-5, atol=1e-6
    )


def test_lengths_of_embeddings_do_not_matter():
  scales = [np.exp(RNG.normal(size=x.shape[:-1]))[..., None].astype(np.float32) for x in SETS]
  moved = [x * scale for x, scale in zip(SETS, scales)]
  for loss in (matching, ranking):
    result = loss(1e20 * QUERY, *moved)
    np.testing.assert_allclose(result, loss(QUERY, *SETS), rtol=1e-4, atol=1e-5)


def test_loss_vanishes_for_the_perfect_space():
  near = [np.broadcast_to(QUERY[:, None], x.shape) for x in SETS[:2]]
  far = [-np.broadcast_to(QUERY[:, None], x.shape) for x in SETS[2:]]
  np.testing.assert_allclose(matching(QUERY, *near, *far, temperature=1e-4), 0, atol=1e-6)
  # And the opposite space costs the whole range of similarities.
  worst = matching(QUERY, *[-x for x in near], *[-x for x in far], temperature=1e-4)
  np.testing.assert_allclose(worst, 2e4, rtol=1e-3)


@pytest.mark.parametrize("name", ["matching", "ranking"])
def test_gradients_are_finite_and_stop_at_masks(name):
  spoiled = [np.where(m[..., None], x, np.nan) for x, m in zip(SETS, MASKS.values())]
  for temperature in (0.1, 1e-4):
    query, keys = jax.device_get(slopes[name](QUERY, spoiled, MASKS, temperature=temperature))
    assert np.all(np.isfinite(query))
    for gradient, mask in zip(keys, MASKS.values()):
      assert np.all(np.isfinite(gradient)) and not np.any(gradient[~mask])
  query, keys = jax.device_get(slopes[name](QUERY, SETS, MASKS, temperature=1.0))
  assert np.all(np.any(query[3:] != 0, axis=1))
  # Rows without positives, and without negatives, have nothing to learn from.
  if name == "matching":
    assert not np.any(query[[0, 2]]) and not any(np.any(x[[0, 2]]) for x in keys)


def test_zero_weights_leave_a_set_out():
  without = MASKS | {"match_mask": np.zeros_like(MASKS["match_mask"])}
  np.testing.assert_allclose(
    matching(QUERY, *SETS, **MASKS, set_weights=(1.0, 0.0, 1.0, 1.0)),
    matching(QUERY, *SETS, **without),
    rtol=1e-5,
    atol=1e-6,
  )
  assert not np.any(matching(QUERY, *SETS, **MASKS, set_weights=(0.0, 0.0, 1.0, 1.0)))


def test_empty_sets_and_vectors_of_zeros():
  empty = np.zeros((B, 0, D), np.float32)
  assert not np.any(matching(QUERY, empty, empty, *SETS[2:]))
  result = matching(np.zeros_like(QUERY), *SETS)
  expected = np.log(sum(SIZES) / sum(SIZES[:2]))
  np.testing.assert_allclose(result, np.full(B, expected), rtol=1e-5)


def test_bad_arguments_are_named():
  for loss, name, count in (
    (losses.causal_matching_loss, "set_weights", 4),
    (losses.causal_ranking_loss, "pair_weights", 6),
  ):
    with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\), got 0"):
      loss(QUERY, *SETS, temperature=0)
    with pytest.raises(ValueError, match="reduction must be one of 'sum', 'mean', got 'max'"):
      loss(QUERY, *SETS, reduction="max")
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, inf\), got -1"):
      loss(QUERY, *SETS, **{name: (1,) * (count - 1) + (-1,)})
    with pytest.raises(ValueError, match=f"{name} must hold {count} weights, got 3"):
      loss(QUERY, *SETS, **{name: (1, 1, 1)})
    with pytest.raises(ValueError, match="confounder_mask must have shape"):
      loss(QUERY, *SETS, confounder_mask=np.ones((B, 2), bool))
    with pytest.raises(ValueError, match="valid_match must have shape"):
      loss(QUERY, SETS[0], SETS[1][:, :, :3], *SETS[2:])


def test_half_precision_is_accumulated_in_float32():
  low = [jnp.asarray(x, jnp.bfloat16) for x in (QUERY, *SETS)]
  result = matching(*low)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, matching(QUERY, *SETS), rtol=0.1, atol=0.1)
