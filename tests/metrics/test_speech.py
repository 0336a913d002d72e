import itertools

import jax
import numpy as np
import optax
import pytest
from scipy.special import softmax

from jaxlab import metrics

B, T, V, R = 30, 8, 4, 6
RNG = np.random.default_rng(0)
LOGITS = (2 * RNG.normal(size=(B, T, V))).astype(np.float32)
LENGTHS = np.concatenate([[0, 1, T], RNG.integers(0, T + 1, B - 3)]).astype(np.int32)
MASK = (np.arange(T)[None] < LENGTHS[:, None]).astype(np.int32)
REFERENCES = RNG.integers(1, V, (B, R)).astype(np.int32)
REFERENCE_LENGTHS = np.concatenate([[0, 0, 3], RNG.integers(0, R + 1, B - 3)]).astype(np.int32)
frame = jax.jit(metrics.frame_confidence)
utterance = jax.jit(metrics.utterance_confidence)
collapse = jax.jit(metrics.ctc_greedy_collapse, static_argnames="blank")
errors = jax.jit(metrics.token_error_rate)


@pytest.mark.parametrize("shift", [0.0, 100.0, -1e4])
def test_frame_confidence_is_the_largest_probability(shift):
  confidence = np.asarray(frame(LOGITS + np.float32(shift)))
  np.testing.assert_allclose(confidence, softmax(LOGITS, -1).max(-1), rtol=2e-3)
  assert np.all((confidence >= 1 / V) & (confidence <= 1))
  np.testing.assert_allclose(frame(np.zeros_like(LOGITS) + shift), 1 / V, rtol=1e-6)
  assert np.all(frame(np.float32(1e4) * LOGITS) == 1)


def test_utterance_confidence_is_the_mean_over_its_frames():
  confidence = np.where(MASK, frame(LOGITS), np.nan)
  expected = [np.mean(c[m == 1]) if m.any() else 0 for c, m in zip(confidence, MASK)]
  np.testing.assert_allclose(utterance(confidence, MASK), expected, rtol=1e-5)
  constant = utterance(np.full_like(confidence, 0.7), MASK)
  np.testing.assert_allclose(constant, 0.7 * (LENGTHS > 0), rtol=1e-6)


@pytest.mark.parametrize("blank", [0, 3])
def test_collapse_matches_groups_of_equal_frames(blank):
  result = jax.device_get(collapse(LOGITS, LENGTHS, blank=blank))
  assert result.tokens.shape == (B, T) and result.tokens.dtype == result.lengths.dtype == np.int32
  for row, length in enumerate(LENGTHS):
    best = LOGITS[row, :length].argmax(-1)
    said = [int(k) for k, _ in itertools.groupby(best) if k != blank]
    assert result.lengths[row] == len(said)
    np.testing.assert_array_equal(result.tokens[row], said + [blank] * (T - len(said)))


def test_what_is_read_has_a_small_ctc_loss():
  """The reading of sure logits is what `optax.ctc_loss` says is certain."""
  sure = np.float32(50) * np.eye(V, dtype=np.float32)[LOGITS.argmax(-1)]
  read = jax.device_get(collapse(sure, LENGTHS))
  label_padding = (np.arange(T)[None] >= read.lengths[:, None]).astype(np.float32)
  loss = jax.jit(optax.ctc_loss)(sure, 1.0 - MASK, read.tokens, label_padding)
  assert np.all(np.asarray(loss)[LENGTHS > 0] < 1e-3)


def slow_errors(said, reference):
  rows = list(range(len(reference) + 1))
  for i, token in enumerate(said):
    last, rows = rows, [i + 1]
    for j, other in enumerate(reference):
      rows.append(min(rows[j] + 1, last[j + 1] + 1, last[j] + (token != other)))
  return rows[-1] / max(len(reference), 1)


def test_token_error_rate_matches_the_table_of_distances():
  tokens, lengths = jax.device_get(collapse(LOGITS, LENGTHS))
  rate = np.asarray(errors(tokens, lengths, REFERENCES, REFERENCE_LENGTHS))
  assert rate.dtype == np.float32
  rows = zip(tokens, lengths, REFERENCES, REFERENCE_LENGTHS)
  np.testing.assert_allclose(rate, [slow_errors(a[:n], b[:m]) for a, n, b, m in rows], rtol=1e-6)
  # Nothing said of nothing is right, and insertions are counted by tokens.
  assert rate[0] == 0 and rate.max() > 1
  np.testing.assert_array_equal(errors(tokens, lengths, tokens, lengths), np.zeros(B))


def test_lengths_out_of_range():
  tokens, bad = np.ones((B, T), np.int32), REFERENCE_LENGTHS.copy()
  bad[:2] = -1, R + 1
  rate = errors(tokens, LENGTHS, REFERENCES, bad)
  np.testing.assert_array_equal(np.isnan(rate), np.arange(B) < 2)
  with pytest.raises(ValueError, match=r"reference_lengths must lie in \[0, 6\]"):
    metrics.token_error_rate(tokens, LENGTHS, REFERENCES, bad)
  with pytest.raises(ValueError, match=r"^lengths must lie in \[0, 8\]"):
    metrics.token_error_rate(tokens, LENGTHS + 1, REFERENCES, REFERENCE_LENGTHS)
  with pytest.raises(ValueError, match=r"lengths must lie in \[0, 8\]"):
    metrics.ctc_greedy_collapse(LOGITS, LENGTHS - 1)
  with pytest.raises(ValueError, match=r"blank must lie in \[0, 4\), got 4"):
    metrics.ctc_greedy_collapse(LOGITS, LENGTHS, blank=4)
  with pytest.raises(ValueError, match="mask must have shape"):
    metrics.utterance_confidence(LOGITS[..., 0], MASK[:, 1:])
