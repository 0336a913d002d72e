import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.samplers import token_filters

V = 7
ROWS = np.array(
  [
    [0.3, -1.2, 2.0, 0.9, -0.4, 1.1, -3.0],
    [1.0, 1.0, 0.0, 2.0, 2.0, 0.0, 1.0],  # Ties.
    [0.5, -np.inf, 1.5, -np.inf, 0.2, -1.0, 0.0],  # Some removed before.
    [1e4, -1e4, 0.0, 9999.0, -1e4, 1e4, 1.0],
    [0.0] * V,
  ],
  np.float32,
)
JITTED = {
  name: jax.jit(getattr(token_filters, name), static_argnames=static)
  for name, static in (
    ("filter_top_k", "top_k"),
    ("filter_top_p", "min_tokens_to_keep"),
    ("filter_min_p", "min_tokens_to_keep"),
    ("filter_typical_p", "min_tokens_to_keep"),
  )
}


def softmax(row):
  row = np.asarray(row, np.float64)
  weights = np.exp(row - row.max())
  return weights / weights.sum()


def slow_top_k(row, *, top_k):
  threshold = sorted(row, reverse=True)[min(top_k, len(row)) - 1]
  return {i for i, x in enumerate(row) if x >= threshold}


def slow_top_p(row, *, top_p, min_tokens_to_keep=1):
  kept, mass = set(range(len(row))), 0.0
  order = sorted(range(len(row)), key=lambda i: (row[i], i))
  for place, i in enumerate(order):
    mass += softmax(row)[i]
    if mass <= 1 - top_p and place < len(row) - min_tokens_to_keep:
      kept.discard(i)
  return kept


def slow_min_p(row, *, min_p, min_tokens_to_keep=1):
  probs = softmax(row)
  best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:min_tokens_to_keep]
  return {i for i in range(len(row)) if probs[i] >= min_p * probs.max()} | set(best)


def slow_typical_p(row, *, typical_p, min_tokens_to_keep=1):
  probs = softmax(row)
  with np.errstate(divide="ignore"):
    log_probs = np.log(probs)
  entropy = -sum(p * l for p, l in zip(probs, log_probs) if p > 0)
  distance = np.abs(-log_probs - entropy).astype(np.float32)
  order = sorted(range(len(row)), key=lambda i: (distance[i], i))
  below = np.cumsum(probs[order]) < typical_p
  last = min(below.sum(), len(row) - 1)
  kept = {i for i in range(len(row)) if distance[i] <= distance[order[last]]}
  return kept | set(order[:min_tokens_to_keep])


def check_kept(filtered, logits, kept_sets):
  for filtered_row, row, kept in zip(np.asarray(filtered), logits, kept_sets):
    expected = [x if i in kept else -np.inf for i, x in enumerate(row)]
    np.testing.assert_array_equal(filtered_row, np.float32(expected))


@pytest.mark.parametrize("top_k", [1, 3, V, 50])
def test_top_k_matches_a_slow_loop(top_k):
  filtered = JITTED["filter_top_k"](ROWS, top_k=top_k)
  check_kept(filtered, ROWS, [slow_top_k(row, top_k=top_k) for row in ROWS])


def test_ties_with_the_smallest_survive_top_k():
  filtered = token_filters.filter_top_k(jnp.array([3.0, 1.0, 1.0, 1.0, 0.0]), top_k=2)
  np.testing.assert_array_equal(np.isfinite(filtered), [1, 1, 1, 1, 0])


@pytest.mark.parametrize(
  "name, option, values, slow",
  [
    ("filter_top_p", "top_p", (0.05, 0.5, 0.9, 1.0), slow_top_p),
    ("filter_min_p", "min_p", (0.0, 0.1, 0.45, 1.0), slow_min_p),
    ("filter_typical_p", "typical_p", (0.05, 0.3, 0.7, 0.99), slow_typical_p),
  ],
)
@pytest.mark.parametrize("keep", [1, 3, 20])
def test_mass_filters_match_slow_loops(name, option, values, slow, keep):
  for value in values:
    filtered = JITTED[name](ROWS, **{option: value}, min_tokens_to_keep=keep)
    kept = [slow(row, **{option: value}, min_tokens_to_keep=min(keep, V)) for row in ROWS]
    check_kept(filtered, ROWS, kept)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(st.floats(-8, 8, width=32), min_size=V, max_size=V), st.floats(0.05, 1))
def test_nucleus_is_the_smallest_set_with_the_mass(row, top_p):
  kept = np.isfinite(JITTED["filter_top_p"](np.float32([row]), top_p=top_p)[0])
  probs = softmax(row)
  assert probs[kept].sum() >= top_p - 1e-5
  assert probs[kept].sum() - probs[kept].min() <= top_p + 1e-5
  assert probs[kept].min() >= probs[~kept].max(initial=0.0) - 1e-9


def test_repetition_penalty():
  seen = np.arange(V) % 2 == 0
  filtered = jax.jit(token_filters.apply_repetition_penalty)(ROWS[0], seen, penalty=1.5)
  expected = [(x * 1.5 if x < 0 else x / 1.5) if s else x for x, s in zip(ROWS[0], seen)]
  np.testing.assert_allclose(filtered, expected, rtol=1e-6)
  np.testing.assert_array_equal(
    token_filters.apply_repetition_penalty(ROWS[0], seen, penalty=1.0), ROWS[0]
  )


def test_process_logits_composes_in_order():
  options = {"top_k": 5, "top_p": 0.85, "min_p": 0.15, "typical_p": 0.9}
  filtered = jax.jit(functools.partial(token_filters.process_logits, **options))(
    ROWS, temperature=0.7
  )
  expected = []
  for row in ROWS:
    row = row.astype(np.float64) / np.float64(np.float32(0.7))
    for slow, (option, value) in zip(
      (slow_top_k, slow_top_p, slow_min_p, slow_typical_p), options.items()
    ):
      kept = slow(row, **{option: value})
      row = np.array([x if i in kept else -np.inf for i, x in enumerate(row)])
    expected.append(row)
  np.testing.assert_allclose(filtered, expected, rtol=1e-6)


def test_top_p_acts_on_the_survivors_of_top_k():
  logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
  # Of the two survivors the first has mass 0.57, enough for 0.5; of all four it has 0.4.
  both = token_filters.process_logits(logits, top_k=2, top_p=0.5)
  np.testing.assert_array_equal(np.isfinite(both), [1, 0, 0, 0])
  alone = token_filters.filter_top_p(logits, top_p=0.5)
  np.testing.assert_array_equal(np.isfinite(alone), [1, 1, 0, 0])


def test_temperature_zero_is_its_limit():
  filtered = token_filters.process_logits(ROWS, temperature=0.0, top_k=3)
  np.testing.assert_array_equal(np.isfinite(filtered).sum(-1), 1)
  np.testing.assert_array_equal(np.argmax(filtered, -1), np.argmax(ROWS, -1))
  cold = jax.nn.softmax(token_filters.process_logits(ROWS[:1], temperature=0.01))
  np.testing.assert_allclose(cold, jax.nn.softmax(filtered[:1]), atol=1e-6)


def test_options_may_be_traced_and_mapped():
  temperatures = jnp.array([0.5, 1.0, 2.0])
  process = lambda t: token_filters.process_logits(ROWS, temperature=t, top_p=t / 4, top_k=4)  # noqa: E731
  filtered = jax.jit(jax.vmap(process))(temperatures)
  for temperature, row in zip(temperatures, filtered):
    np.testing.assert_allclose(row, process(float(temperature)), rtol=1e-6)


def test_gradients_are_finite_and_zero_at_removed_tokens():
  def entropy_like(logits):
    logits = token_filters.process_logits(
      logits, temperature=0.9, top_k=4, top_p=0.9, min_p=0.01, typical_p=0.95
    )
    return jax.nn.logsumexp(logits, axis=-1).sum(), logits

  rows = ROWS[[0, 1, 3, 4]]
  slopes, filtered = jax.jit(jax.grad(entropy_like, has_aux=True))(rows)
  assert np.isfinite(slopes).all()
  np.testing.assert_array_equal(np.asarray(slopes)[~np.isfinite(filtered)], 0.0)
  np.testing.assert_allclose(slopes.sum(-1), 1 / 0.9, rtol=1e-5)


def test_half_precision_is_filtered_as_in_single():
  half = jnp.asarray(ROWS[:2], jnp.bfloat16)
  for name, options in (
    ("filter_top_p", {"top_p": 0.8}),
    ("filter_min_p", {"min_p": 0.2}),
    ("filter_typical_p", {"typical_p": 0.8}),
  ):
    filtered = JITTED[name](half, **options)
    assert filtered.dtype == jnp.bfloat16
    single = JITTED[name](half.astype(jnp.float32), **options)
    np.testing.assert_array_equal(np.isfinite(filtered), np.isfinite(single))
  assert token_filters.process_logits(half).dtype == jnp.float32


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("filter_top_k", {"top_k": 0}, "top_k.*0"),
    ("filter_top_p", {"top_p": 0.0}, "top_p.*0.0"),
    ("filter_top_p", {"top_p": 1.1}, "top_p.*1.1"),
    ("filter_top_p", {"top_p": 0.5, "min_tokens_to_keep": 0}, "min_tokens_to_keep.*0"),
    ("filter_min_p", {"min_p": -0.1}, "min_p.*-0.1"),
    ("filter_min_p", {"min_p": 0.5, "min_tokens_to_keep": 0}, "min_tokens_to_keep"),
    ("filter_typical_p", {"typical_p": 1.0}, "typical_p.*1.0"),
    ("filter_typical_p", {"typical_p": 0.5, "min_tokens_to_keep": -1}, "min_tokens_to_keep.*-1"),
    ("process_logits", {"temperature": -1.0}, "temperature.*-1.0"),
    ("process_logits", {"temperature": 0.0, "top_k": 0}, "top_k"),
    ("process_logits", {"top_p": 2.0}, "top_p"),
    ("process_logits", {"min_p": 2.0}, "min_p"),
    ("process_logits", {"typical_p": 0.0}, "typical_p"),
  ],
)
def test_errors(name, options, message):
  with pytest.raises(ValueError, match=message):
    getattr(token_filters, name)(ROWS, **options)


def test_errors_of_the_repetition_penalty():
  seen = np.ones(ROWS.shape, bool)
  with pytest.raises(ValueError, match="penalty.*0.0"):
    token_filters.apply_repetition_penalty(ROWS, seen, penalty=0.0)
  with pytest.raises(ValueError, match="seen must have shape"):
    token_filters.apply_repetition_penalty(ROWS, seen[0], penalty=1.1)
