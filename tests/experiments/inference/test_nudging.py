"""Texts of several styles, and the answers that they give."""

import jax
import numpy as np

from experiments.inference.nudging import problems as texts
from jaxlab import data
from jaxlab.data.reasoning import EOS_TOKEN

CHAINS = data.ModularChainConfig(7, 6, misconception_rate=0.0, noise=0.0)
STYLES = texts.Styles()
N, WIDTH, P, R = 600, 40, CHAINS.prompt_length, CHAINS.response_length
FILLERS = [CHAINS.vocab_size + i for i in range(texts.NUM_FILLERS)]


@jax.jit
def programs(key):
  aligned = texts.draw_problems(key, CHAINS, N, max_new_tokens=WIDTH)
  base = texts.draw_base_texts(key, CHAINS, STYLES, N, max_new_tokens=WIDTH)
  answers = [texts.answers_of(CHAINS, drawn.tokens[:, P:]) for drawn in (aligned, base)]
  # The same problems, whose working is that of the base texts.
  worked = texts.draw_problems(jax.random.split(key)[0], CHAINS, N, max_new_tokens=WIDTH)
  return aligned, base, answers, worked, texts.begins_with_plus(base.tokens)


ALIGNED, BASE, ANSWERS, WORKED, PLUS = jax.device_get(programs(jax.random.key(0)))


def test_aligned_texts_work_and_are_right():
  assert ALIGNED.tokens.shape == ALIGNED.loss_mask.shape == (N, P + WIDTH)
  np.testing.assert_array_equal(ANSWERS[0], ALIGNED.answers)
  assert (ALIGNED.tokens[:, P + R - 1] == EOS_TOKEN).all()
  np.testing.assert_array_equal(ALIGNED.loss_mask[0], [*[0] * P, *[1] * R, *[0] * (WIDTH - R)])


def test_base_texts_work_digress_or_stop_where_style_is_decided():
  counts = np.zeros((2, 3), int)
  for i, (row, mask) in enumerate(zip(BASE.tokens, BASE.loss_mask)):
    np.testing.assert_array_equal(row[:P], WORKED.tokens[i, :P])
    written, right = row[P:].tolist(), WORKED.tokens[i, P:].tolist()
    place, t, ended, kind = 0, 0, False, int(PLUS[i])
    while t < WIDTH and not ended:
      if place in STYLES.places:
        if written[t] == FILLERS[0]:
          counts[kind, 1] += 1
          assert written[t : t + 3] == FILLERS[: WIDTH - t]
          t += 3
          continue
        ended = written[t] == EOS_TOKEN
        counts[kind, 2 if ended else 0] += 1
      if not ended:
        assert written[t] == right[place]
        ended = written[t] == EOS_TOKEN
      place, t = place + 1, t + 1
    t = min(t, WIDTH)
    assert not any(written[t:])
    np.testing.assert_array_equal(
      mask, (np.arange(P + WIDTH) >= P) & (np.arange(P + WIDTH) < P + t)
    )
  for count, shares in zip(counts, (STYLES.shares, STYLES.plus_shares)):
    np.testing.assert_allclose(count / count.sum(), shares, atol=4 * 0.5 / np.sqrt(count.sum()))


def test_answers_count_where_the_chain_ends():
  for row, answer, true in zip(BASE.tokens[:, P:].tolist(), ANSWERS[1], BASE.answers):
    worked = [token for token in row if token not in FILLERS]
    assert answer == (true if EOS_TOKEN in worked and worked.index(EOS_TOKEN) == R - 1 else -1)
  assert 0.1 < np.mean(ANSWERS[1] >= 0) < 0.6
