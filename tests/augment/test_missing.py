import jax
import numpy as np
import pytest

from jaxlab import augment

RNG = np.random.default_rng(0)
B, T, C = 4, 9, 3
VALUES, IMPUTED = RNG.normal(size=(2, B, T, C)).astype(np.float32)
MASK = RNG.random((B, T, C)) < 0.4
MASK[1] = False
TIMES = np.cumsum(RNG.random((B, T)), axis=1).astype(np.float32)
RATE, BIAS = np.array([0.3, -0.2, 0.0], np.float32), np.array([0.05, 0.4, 0.1], np.float32)
KEY = jax.random.key(0)
decay = jax.jit(augment.decay_impute)
fill = jax.jit(augment.forward_fill)
drop = jax.jit(augment.observation_dropout, static_argnames="num_draws")
hide = jax.jit(augment.mask_not_at_random)
SPOILED = np.where(MASK, VALUES, np.nan)


def decayed(values=VALUES, mask=MASK, rate=RATE, bias=BIAS):
  return np.asarray(decay(values, IMPUTED, mask, TIMES, rate=rate, bias=bias))


def slow_decay(rate, bias):
  out = np.zeros((B, T, C))
  for b in range(B):
    for c in range(C):
      last = last_time = 0.0
      for t in range(T):
        if MASK[b, t, c]:
          last, last_time = VALUES[b, t, c], TIMES[b, t]
          out[b, t, c] = last
        else:
          share = np.exp(-max(0.0, rate[c] * (TIMES[b, t] - last_time) + bias[c]))
          out[b, t, c] = share * last + (1 - share) * IMPUTED[b, t, c]
  return out


def test_decay_matches_a_loop_and_never_reads_missing_values():
  np.testing.assert_allclose(decayed(), slow_decay(RATE, BIAS), atol=1e-6)
  np.testing.assert_array_equal(decayed(SPOILED), decayed())


def test_limits_of_the_decay():
  zeros = np.zeros(C, np.float32)
  alone = decayed(rate=zeros, bias=zeros + np.inf)
  np.testing.assert_array_equal(alone, np.where(MASK, VALUES, IMPUTED))
  forward = decayed(rate=zeros, bias=zeros)
  np.testing.assert_allclose(forward, fill(VALUES, MASK), atol=1e-7)
  np.testing.assert_array_equal(decayed(mask=np.ones_like(MASK)), VALUES)


def test_gradients_of_the_decay_are_finite():
  @jax.jit
  def gradients(values, imputed, rate, bias):
    def total(imputed, rate, bias):
      filled = augment.decay_impute(values, imputed, MASK, TIMES, rate=rate, bias=bias)
      return (filled**2).sum()

    return jax.grad(total, argnums=(0, 1, 2))(imputed, rate, bias)

  for gradient in gradients(SPOILED, IMPUTED, RATE, BIAS):
    assert np.isfinite(gradient).all() and (np.asarray(gradient) != 0).any()
  imputed = gradients(SPOILED, IMPUTED, RATE, BIAS)[0]
  assert (np.asarray(imputed)[MASK] == 0).all()


def test_forward_fill():
  filled = np.asarray(fill(SPOILED, MASK, fill=7.0))
  for b in range(B):
    for c in range(C):
      last = 7.0
      for t in range(T):
        last = VALUES[b, t, c] if MASK[b, t, c] else last
        assert filled[b, t, c] == np.float32(last)


def test_dropout_keeps_a_part_with_its_probability():
  kept, log_prob = drop(KEY, MASK, rate=0.4, num_draws=(2, 300))
  kept = np.asarray(kept)
  assert kept.shape == (2, 300, B, T, C) and not (kept & ~MASK).any()
  num_kept = kept.sum((-2, -1))
  num_dropped = MASK.sum((-2, -1)) - num_kept
  np.testing.assert_allclose(
    log_prob, num_kept * np.log(0.6) + num_dropped * np.log(0.4), rtol=1e-5
  )
  share = kept[..., MASK].mean()
  assert abs(share - 0.6) < 4 * np.sqrt(0.24 / (600 * MASK.sum()))
  kept, log_prob = drop(KEY, MASK, rate=0.0, num_draws=(2, 300))
  np.testing.assert_array_equal(kept, np.broadcast_to(MASK, kept.shape))
  np.testing.assert_array_equal(log_prob, 0)


def test_masks_that_depend_on_values():
  values = np.random.default_rng(1).normal(size=(2000, T, C)).astype(np.float32)
  offset = augment.calibrate_mask_offset(values, observed_share=0.3)
  observed = np.asarray(hide(KEY, values, offset=offset))
  np.testing.assert_allclose(observed.mean((0, 1)), 0.3, atol=0.015)
  assert values[observed].mean() < -0.4 < 0.1 < values[~observed].mean()
  probs = 1 / (1 + np.exp(-(np.asarray(offset) - 1.5 * values.astype(np.float64))))
  np.testing.assert_allclose(probs.mean((0, 1)), 0.3, atol=1e-5)
  assert not hide(KEY, values, offset=offset - 1e4).any()


def test_errors():
  for rate in (-0.1, 1.0):
    with pytest.raises(ValueError, match=rf"rate must lie in \[0, 1\), got {rate}"):
      augment.observation_dropout(KEY, MASK, rate=rate)
  for share in (0.0, 1.0):
    with pytest.raises(ValueError, match=rf"observed_share must lie in \(0, 1\), got {share}"):
      augment.calibrate_mask_offset(VALUES, observed_share=share)
  with pytest.raises(ValueError, match=r"rate must have shape \[C\] with C = 3, got \[2\]"):
    augment.decay_impute(VALUES, IMPUTED, MASK, TIMES, rate=RATE[:2], bias=BIAS)
  with pytest.raises(TypeError, match="mask must be of type bool"):
    augment.forward_fill(VALUES, MASK.astype(int))
