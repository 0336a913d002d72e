import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import augment, losses

B, T, V, D = 64, 12, 20, 4
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (B, T), np.int32)
STARTS, LENGTHS = RNG.integers(1, 5, (B, 1)), RNG.integers(6, T + 1, B)
LOSS_MASK = (np.arange(T) >= STARTS) & (np.arange(T) < LENGTHS[:, None])
MASK_ID = V

mask_tokens = jax.jit(
  functools.partial(augment.mask_reasoning_tokens, mask_token_id=MASK_ID, vocab_size=V)
)
noise_of = jax.jit(augment.embedding_noise)


def test_rate_0_changes_nothing():
  out = mask_tokens(KEY, TOKENS, LOSS_MASK, rate=0.0)
  np.testing.assert_array_equal(out.tokens, TOKENS)
  assert not np.any(out.replaced)
  logits = RNG.normal(size=(V, V)).astype(np.float32)  # A model that reads the last token.
  loss = jax.jit(lambda read: losses.sequence_nll(jnp.asarray(logits)[read], TOKENS, LOSS_MASK))
  np.testing.assert_array_equal(loss(out.tokens), loss(TOKENS))


def test_rate_1_replaces_every_token_of_the_response():
  out = mask_tokens(KEY, TOKENS, LOSS_MASK, rate=1.0)
  np.testing.assert_array_equal(out.tokens, np.where(LOSS_MASK, MASK_ID, TOKENS))
  np.testing.assert_array_equal(out.replaced, LOSS_MASK)


@pytest.mark.parametrize("fraction", [0.0, 0.6, 1.0])
def test_tokens_are_replaced_at_the_rates(fraction):
  rate, count = 0.4, LOSS_MASK.sum()
  out = mask_tokens(KEY, TOKENS, LOSS_MASK, rate=rate, random_fraction=fraction)
  replaced = np.asarray(out.replaced)
  assert not np.any(replaced & ~LOSS_MASK)
  np.testing.assert_array_equal(np.asarray(out.tokens)[~replaced], TOKENS[~replaced])
  assert abs(replaced.sum() - rate * count) < 3 * np.sqrt(rate * (1 - rate) * count)
  new = np.asarray(out.tokens)[replaced]
  random = (new != MASK_ID).sum()
  spread = 3 * np.sqrt(fraction * (1 - fraction) * len(new))
  assert abs(random - fraction * len(new)) <= spread
  assert new.max() <= MASK_ID and (fraction == 0 or len(set(new.tolist()) - {MASK_ID}) == V)


def test_kinds_share_the_places():
  """The draws of places, kinds and tokens have keys of their own."""
  places = [
    mask_tokens(KEY, TOKENS, LOSS_MASK, rate=0.4, random_fraction=x).replaced for x in (0.0, 0.5)
  ]
  np.testing.assert_array_equal(*places)
  plain = mask_tokens(KEY, TOKENS, LOSS_MASK, rate=0.4)
  np.testing.assert_array_equal(plain.replaced, places[0])
  np.testing.assert_array_equal(plain.tokens, np.where(places[0], MASK_ID, TOKENS))


def test_replaced_tokens_may_exceed_a_narrow_type():
  narrow = TOKENS.astype(np.int8)
  out = augment.replace_tokens(narrow, LOSS_MASK, np.full((B, T), 300))
  assert out.dtype == jnp.int32
  np.testing.assert_array_equal(out, np.where(LOSS_MASK, 300, TOKENS))


@pytest.mark.parametrize("warmup", [0.0, 0.3, 2 / 3, 1.0])
def test_schedule_rises_and_stays(warmup):
  steps, total = np.arange(61), 60
  schedule = functools.partial(
    augment.mask_rate_schedule, total_steps=total, warmup_fraction=warmup
  )
  rates = np.asarray(jax.jit(schedule)(steps))
  expected = np.minimum(0.4 * steps / (warmup * total + 1), 0.4)
  np.testing.assert_allclose(rates, expected, rtol=1e-6)
  assert rates[0] == 0 and np.all(np.diff(rates) >= 0)
  assert np.all(rates[int(np.ceil(warmup * total + 1)) :] == np.float32(0.4))


def test_a_scheduled_rate_may_be_traced():
  @jax.jit
  def at(step):
    rate = augment.mask_rate_schedule(step, total_steps=60, max_rate=1.0, warmup_fraction=0.0)
    return mask_tokens(KEY, TOKENS, LOSS_MASK, rate=rate)

  np.testing.assert_array_equal(at(0).tokens, TOKENS)
  np.testing.assert_array_equal(at(60).replaced, LOSS_MASK)


def test_noise_has_the_scale_of_its_length():
  embeddings = np.zeros((B, T, D), np.float32)
  lengths = np.where(np.arange(B) == 0, 0, LENGTHS).astype(np.int8)
  noise = np.asarray(noise_of(KEY, embeddings, lengths, alpha=3.0))
  inside = np.arange(T) < lengths[:, None]
  assert not np.any(noise[~inside])
  unit = noise[1:] * np.sqrt(lengths[1:, None, None] * D) / 3.0
  drawn = unit[inside[1:]]
  assert np.all(np.abs(drawn) <= 1 + 1e-6) and np.abs(drawn).max() > 0.95
  assert abs(drawn.mean()) < 4 * np.sqrt(1 / 3 / drawn.size)
  assert abs(np.mean(drawn**2) - 1 / 3) < 4 * np.sqrt(4 / 45 / drawn.size)
  plain = noise_of(KEY, embeddings, lengths)
  np.testing.assert_allclose(plain, noise * 5 / 3, rtol=1e-5)
  half = jax.eval_shape(noise_of, KEY, embeddings.astype(jnp.bfloat16), lengths)
  assert half.dtype == jnp.bfloat16


def test_errors():
  mask = functools.partial(augment.mask_reasoning_tokens, KEY, TOKENS)
  schedule, embeddings = augment.mask_rate_schedule, np.zeros((B, T, D))
  for call, message in (
    (lambda: mask(LOSS_MASK, rate=1.1, mask_token_id=0), r"rate must lie in \[0, 1\], got 1.1"),
    (lambda: mask(LOSS_MASK, rate=0.1, mask_token_id=-1), "mask_token_id .*-1"),
    (
      lambda: mask(LOSS_MASK, rate=0.1, mask_token_id=0, random_fraction=2.0),
      "random_fraction must lie .*2.0",
    ),
    (
      lambda: mask(LOSS_MASK, rate=0.1, mask_token_id=0, random_fraction=0.5),
      "random_fraction 0.5 needs vocab_size, got None",
    ),
    (lambda: mask(LOSS_MASK, rate=0.1, mask_token_id=0, vocab_size=0), "vocab_size .*0"),
    (lambda: mask(LOSS_MASK[1:], rate=0.1, mask_token_id=0), "loss_mask must have shape"),
    (lambda: augment.replace_tokens(TOKENS, LOSS_MASK, TOKENS[1:]), "replacements must have"),
    (lambda: schedule(-1, total_steps=2), "step .*-1"),
    (lambda: schedule(1, total_steps=0), r"total_steps must lie in \[1, inf\), got 0"),
    (lambda: schedule(1, total_steps=2, max_rate=1.5), "max_rate .*1.5"),
    (lambda: schedule(1, total_steps=2, warmup_fraction=-0.5), "warmup_fraction .*-0.5"),
    (lambda: augment.embedding_noise(KEY, embeddings, LENGTHS, alpha=-1.0), "alpha .*-1.0"),
    (lambda: augment.embedding_noise(KEY, embeddings, LENGTHS + T), r"lengths .*\[0, 12\]"),
    (lambda: augment.embedding_noise(KEY, embeddings, LENGTHS[1:]), "lengths must have shape"),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(call)
  with pytest.raises(TypeError, match="tokens must be of type int"):
    augment.replace_tokens(np.zeros((B, T)), LOSS_MASK, TOKENS)
