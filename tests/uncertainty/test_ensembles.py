"""Tests of pooled predictions, of calibrated label scores and of verbalizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import uncertainty
from jaxlab.uncertainty import ensembles

_RULES = {
  "mean": ensembles.mean_probability,
  "max": ensembles.max_probability,
  "vote": ensembles.vote_probability,
  "weighted vote": lambda probs: ensembles.vote_probability(probs, weighted=True),
}
_JITTED = {name: jax.jit(rule) for name, rule in _RULES.items()}


def _probs(m=5, b=40, k=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.dirichlet(np.full(k, 0.7), (m, b)).astype(np.float32)


def _pool(name, probs):
  """The named rule, one query at a time."""
  m, b, k = probs.shape
  predictions, pooled = [], []
  for i in range(b):
    p = probs[:, i].astype(np.float64)
    if name in ("mean", "max"):
      q = p.mean(0) if name == "mean" else p.max(0)
      predictions.append(int(q.argmax()))
      pooled.append(q / q.sum())
      continue
    votes = [int(row.argmax()) for row in p]
    score = {c: 0.0 for c in range(k)}
    for j, c in enumerate(votes):
      score[c] += 1.0 if name == "vote" else p[j, c]
    best = max(score.values())
    winner = next(c for c in votes if score[c] == best)
    predictions.append(winner)
    pooled.append(np.mean([p[j] for j in range(m) if votes[j] == winner], axis=0))
  return np.array(predictions), np.array(pooled)


@pytest.mark.parametrize("name", _RULES)
@pytest.mark.parametrize("members", [1, 4, 5])
def test_rules_match_their_definition(name, members):
  probs = _probs(members)
  predictions, pooled = _pool(name, probs)
  for rule in (_RULES[name], _JITTED[name]):
    result = rule(probs)
    assert result.predictions.dtype == jnp.int32 and result.probs.dtype == jnp.float32
    np.testing.assert_array_equal(result.predictions, predictions)
    np.testing.assert_allclose(result.probs, pooled, atol=1e-6)
  if members == 1:
    np.testing.assert_array_equal(predictions, probs[0].argmax(-1))
    np.testing.assert_allclose(pooled, probs[0], atol=1e-6)


@pytest.mark.parametrize("name", _RULES)
def test_copies_and_order_of_members_change_nothing(name):
  probs = _probs()
  once = _JITTED[name](probs[:1])
  copies = _JITTED[name](np.repeat(probs[:1], 5, axis=0))
  np.testing.assert_array_equal(copies.predictions, once.predictions)
  np.testing.assert_allclose(copies.probs, once.probs, atol=1e-6)
  result, turned = (jax.device_get(_JITTED[name](p)) for p in (probs, probs[::-1]))
  counts = np.sort([np.sum(probs.argmax(-1) == c, axis=0) for c in range(3)], axis=0)
  clear = counts[-1] > counts[-2] if name == "vote" else np.ones(probs.shape[1], bool)
  assert clear.sum() > 10
  np.testing.assert_array_equal(result.predictions[clear], turned.predictions[clear])
  np.testing.assert_allclose(result.probs[clear], turned.probs[clear], atol=1e-6)


def test_mean_is_less_confident_and_no_less_likely_than_its_members():
  probs = _probs()
  result = jax.device_get(_JITTED["mean"](probs))
  assert (result.probs.max(-1) <= probs.max(-1).max(0) + 1e-6).all()
  nll = -np.log(probs).mean(0)
  assert (-np.log(result.probs) <= nll + 1e-5).all()
  np.testing.assert_allclose(np.sum(_JITTED["max"](probs).probs, -1), 1, atol=1e-6)


def test_unanimous_votes_and_ties():
  agreed = np.array([[[0.6, 0.4]], [[0.9, 0.1]]], np.float32)
  for name in ("vote", "weighted vote"):
    np.testing.assert_allclose(_JITTED[name](agreed).probs, [[0.75, 0.25]], atol=1e-6)
  # Classes 2 and 0 have one vote each: that of the first voter wins, although class 0 is lower.
  tied = np.array([[[0.2, 0.3, 0.5]], [[0.9, 0.1, 0.0]]], np.float32)
  assert _JITTED["vote"](tied).predictions.tolist() == [2]
  assert _JITTED["weighted vote"](tied).predictions.tolist() == [0]
  # The winner need not be the argmax of the probabilities returned by another rule.
  split = np.array([[[0.4, 0.35, 0.25]], [[0.4, 0.35, 0.25]], [[0.0, 1.0, 0.0]]], np.float32)
  assert _JITTED["vote"](split).predictions.tolist() == [0]
  assert _JITTED["mean"](split).predictions.tolist() == [1]
  # A member with tied classes votes for the lowest.
  assert _JITTED["vote"](np.full((1, 1, 3), 1 / 3, np.float32)).predictions.tolist() == [0]


@pytest.mark.parametrize("name", _RULES)
def test_half_precision_zero_mass_nan_and_vmap(name):
  probs = _probs(3, 4)
  half = _JITTED[name](jnp.asarray(probs, jnp.bfloat16))
  assert half.probs.dtype == jnp.float32
  np.testing.assert_allclose(
    half.probs, _JITTED[name](np.asarray(jnp.asarray(probs, jnp.bfloat16), np.float32)).probs, 1e-5
  )
  assert np.isfinite(_JITTED[name](np.zeros((2, 1, 3), np.float32)).probs).all()
  broken = probs.copy()
  broken[1, 2, 0] = np.nan
  result = _JITTED[name](broken)
  assert np.isfinite(np.delete(result.probs, 2, 0)).all()
  stacked = jax.jit(jax.vmap(_RULES[name]))(np.stack([probs, probs[::-1]]))
  np.testing.assert_allclose(stacked.probs[1], _JITTED[name](probs[::-1]).probs, atol=1e-6)


def test_gradient_of_the_mean_is_finite():
  grad = jax.jit(jax.grad(lambda p: ensembles.mean_probability(p).probs[0, 0]))
  assert np.isfinite(grad(jnp.zeros((2, 1, 3)))).all()


@pytest.mark.parametrize("rule", [*_RULES.values()])
@pytest.mark.parametrize(
  ("shape", "message"),
  [((4, 3), "probs must have"), ((0, 4, 3), "members must"), ((2, 4, 0), "classes must")],
)
def test_members_of_wrong_shape_raise(rule, shape, message):
  with pytest.raises(ValueError, match=message):
    rule(np.zeros(shape, np.float32))


batch_calibration = jax.jit(ensembles.batch_calibration, static_argnames="demean_only")


def _scores(n=7, k=3):
  return np.random.default_rng(1).normal(2.0, 3.0, (n, k)).astype(np.float32)


def test_batch_calibration_standardizes_columns():
  logits = _scores()
  expected = (logits - logits.mean(0)) / logits.std(0, ddof=1)
  for fn in (ensembles.batch_calibration, batch_calibration):
    result = np.asarray(fn(logits))
    np.testing.assert_allclose(result, expected, atol=1e-5)
  np.testing.assert_allclose(result.mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(result.std(0, ddof=1), 1, atol=1e-5)
  moved = batch_calibration(logits * np.array([2.0, 0.1, 30.0]) + np.array([5.0, -9, 1]))
  np.testing.assert_allclose(moved, result, atol=1e-4)
  demeaned = batch_calibration(logits, demean_only=True)
  np.testing.assert_allclose(demeaned, logits - logits.mean(0), atol=1e-5)


def test_batch_calibration_with_statistics_of_another_batch():
  logits, mean, std = _scores(), np.array([1.0, 2, 3]), np.array([2.0, 0.0, 0.5])
  result = np.asarray(batch_calibration(logits[:1], mean=mean, std=std))
  np.testing.assert_allclose(result[0, [0, 2]], ((logits[0] - mean) / np.maximum(std, 0.1))[[0, 2]])
  assert result[0, 1] == 0
  half = batch_calibration(logits, mean=mean)
  np.testing.assert_allclose(half, (logits - mean) / logits.std(0, ddof=1), rtol=1e-5)
  one = batch_calibration(logits[:1], mean=mean, demean_only=True)
  np.testing.assert_allclose(one, logits[:1] - mean, rtol=1e-6)


def test_constant_columns_are_zero_with_finite_gradients():
  logits = np.stack([np.full(3, 0.1), np.full(3, 1e4), [1.0, 2.0, 4.0]], axis=1).astype(np.float32)
  result = batch_calibration(logits)
  np.testing.assert_array_equal(result[:, :2], 0)
  assert np.abs(result[:, 2]).min() > 0
  grad = jax.jit(jax.grad(lambda z: jnp.sum(jnp.square(ensembles.batch_calibration(z)[:2]))))
  assert np.isfinite(grad(logits)).all()
  extreme = batch_calibration(np.array([[1e4], [-1e4]], np.float32))
  np.testing.assert_allclose(extreme[:, 0], [2**-0.5, -(2**-0.5)], rtol=1e-6)
  missing = batch_calibration(np.array([[np.nan, 1.0], [0.0, 2.0]], np.float32))
  assert np.isnan(missing[:, 0]).all() and np.isfinite(missing[:, 1]).all()


def test_running_statistics_match_moving_averages():
  first, second = _scores(6), 3 * _scores(5) + 1
  state = ensembles.batch_calibration_init(num_classes=3)
  np.testing.assert_allclose(
    batch_calibration(first, mean=state.mean, std=jnp.sqrt(state.var)), first
  )
  update = jax.jit(ensembles.batch_calibration_update)
  state = update(state, first)
  np.testing.assert_allclose(state.mean, first.mean(0), rtol=1e-5)
  np.testing.assert_allclose(state.var, first.var(0, ddof=1), rtol=1e-5)
  moved = update(state, second)
  np.testing.assert_allclose(moved.mean, 0.9 * first.mean(0) + 0.1 * second.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    moved.var, 0.9 * first.var(0, ddof=1) + 0.1 * second.var(0, ddof=1), rtol=1e-5
  )
  assert moved.count.dtype == jnp.int32 and int(moved.count) == 2
  replaced = ensembles.batch_calibration_update(state, second, momentum=1.0)
  np.testing.assert_allclose(
    batch_calibration(second, mean=replaced.mean, std=jnp.sqrt(replaced.var)),
    batch_calibration(second),
    atol=1e-5,
  )


def test_rank_promotion_may_be_forbidden():
  logits, probs = _scores(), _probs()
  state = ensembles.batch_calibration_init(num_classes=3)
  with jax.numpy_rank_promotion("raise"):
    for rule in _RULES.values():
      jax.eval_shape(rule, probs)
    jax.eval_shape(ensembles.batch_calibration, logits)
    jax.eval_shape(lambda: ensembles.batch_calibration(logits, mean=np.ones(3), std=[1.0, 2, 3]))
    jax.eval_shape(ensembles.batch_calibration_update, state, logits)
    jax.eval_shape(
      ensembles.verbalizer_logits, np.zeros((3, 4, 9)), np.ones((3, 2), int), np.ones((3, 2), bool)
    )


def test_batch_calibration_errors():
  state = ensembles.batch_calibration_init(num_classes=3)
  for call, text in (
    (lambda: ensembles.batch_calibration(np.zeros(3)), r"logits must .* got \[3\]"),
    (lambda: ensembles.batch_calibration(np.zeros((1, 3))), "at least 2 rows"),
    (lambda: ensembles.batch_calibration(np.zeros((1, 3)), mean=np.zeros(3)), "at least 2 rows"),
    (lambda: ensembles.batch_calibration(np.zeros((4, 3)), mean=np.zeros(2)), "mean must have"),
    (lambda: ensembles.batch_calibration(np.zeros((4, 3)), std=np.zeros(())), "std must have"),
    (lambda: ensembles.batch_calibration(np.zeros((4, 3)), std=[1.0, -1, 1]), "std must lie"),
    (lambda: ensembles.batch_calibration_init(num_classes=0), "num_classes"),
    (lambda: ensembles.batch_calibration_update(state, np.zeros((1, 3))), "at least 2 rows"),
    (lambda: ensembles.batch_calibration_update(state, np.zeros((4, 2))), r"\[n, 3\], got"),
    (
      lambda: ensembles.batch_calibration_update(state, np.zeros((4, 3)), momentum=1.5),
      "momentum must lie",
    ),
  ):
    with pytest.raises(ValueError, match=text):
      call()


def test_verbalizers_average_the_tokens_of_each_label():
  rng = np.random.default_rng(2)
  token_logits = rng.normal(size=(3, 4, 9)).astype(np.float32)
  ids = np.array([[1, 8, -1], [5, -1, -1], [1, 3, 0]])
  mask = ids >= 0
  expected = [
    [np.mean([row[t, i] for t, i in enumerate(label) if i >= 0]) for label in ids]
    for row in token_logits
  ]
  jitted = jax.jit(ensembles.verbalizer_logits)
  for fn in (ensembles.verbalizer_logits, jitted):
    np.testing.assert_allclose(fn(token_logits, ids, mask), expected, rtol=1e-5)
  words = np.array([[4], [2]])
  gathered = jitted(token_logits, words, np.ones((2, 1), bool))
  np.testing.assert_array_equal(gathered, token_logits[:, 0, [4, 2]])
  # A traced mask cannot be checked.
  empty = jitted(token_logits, ids, mask & (ids != 5))
  np.testing.assert_array_equal(empty[:, 1], 0)
  for token in (-1, 9):
    outside = jitted(token_logits, np.where(ids == 5, token, ids), mask)
    np.testing.assert_array_equal(np.isnan(outside), [[False, True, False]] * 3)


def test_narrow_tokens():
  token_logits = np.arange(600.0).reshape(2, 1, 300)
  ids = np.array([[100], [3]], np.int8)
  got = jax.jit(ensembles.verbalizer_logits)(token_logits, ids, np.ones((2, 1), bool))
  np.testing.assert_array_equal(got, [[100, 3], [400, 303]])


def test_verbalizer_errors():
  logits, ones = np.zeros((2, 3, 5)), np.ones((2, 2), int)
  for call, text in (
    (lambda: uncertainty.verbalizer_logits(logits[0], ones, ones), "token_logits must have"),
    (lambda: uncertainty.verbalizer_logits(logits, ones[0], ones), "token_ids must have"),
    (
      lambda: uncertainty.verbalizer_logits(logits[:, :1], ones, ones),
      "2 positions or more, got 1",
    ),
    (
      lambda: uncertainty.verbalizer_logits(logits, ones, np.array([[1, 1], [0, 0]])),
      "label 1 of token_mask",
    ),
    (lambda: uncertainty.verbalizer_logits(logits, 5 * ones, ones), "token_ids must lie"),
  ):
    with pytest.raises(ValueError, match=text):
      call()
