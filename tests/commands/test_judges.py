import jax
import numpy as np
import pytest

from jaxlab.commands.judges import Judge
from jaxlab.commands.rows import Row
from jaxlab.experiment import UsageError

TEXTS = np.array([[7, 8, 9], [7, 0, 0], [1, 1, 1]], np.int32)
LENGTHS = np.array([2, 1, 3], np.int32)


def decode(tokens, *, skip_special_tokens):
  assert skip_special_tokens
  return "-".join(map(str, tokens))


def judge_of(values):
  judge = Judge(lambda text, columns: values[text, columns["id"]], decode)
  judge.begin([Row(i, f"data, line {i}", "p", (), True, {"id": i}) for i in (1, 2)])
  return judge


def test_rewards_become_scores_and_what_has_none_is_counted():
  values = {("7-8", 1): True, ("7", 2): False, ("1-1-1", 1): 0.75}
  judge = judge_of(values)
  rows = np.array([0, 1, 0], np.int32)
  np.testing.assert_array_equal(judge.scores(rows, TEXTS, LENGTHS), [1, -1, 0.5])
  assert judge.finish() == [0, 0]
  judge = judge_of({("7-8", 1): None, ("7", 2): float("nan"), ("1-1-1", 1): float("nan")})
  for _ in range(2):  # A text that is asked for again counts once.
    np.testing.assert_array_equal(judge.scores(rows, TEXTS, LENGTHS), [0, 0, 0])
  assert judge.finish() == [2, 1]


def test_programs_may_ask():
  judge = judge_of({("7-8", 1): True, ("7", 2): False, ("1-1-1", 1): 0.75})
  ask = jax.jit(jax.vmap(judge.evaluate))
  scores = ask(np.array([0, 1, 0], np.int32), TEXTS, LENGTHS)
  np.testing.assert_array_equal(scores, [1, -1, 0.5])


@pytest.mark.parametrize(
  "reward, message",
  [
    (-1.0, r"line 2: a judge must give True, False, None or a number in \[0, 1\], got -1 for '7'"),
    (2, "line 2: a judge must give"),
    ("1", "line 2: the verifier fails on '7': TypeError: a reward must be a number"),
  ],
)
def test_what_it_must_not_give_ends_the_search_afterwards(reward, message):
  judge = judge_of({("7-8", 1): True, ("7", 2): reward})
  np.testing.assert_array_equal(judge.scores(np.array([0, 1]), TEXTS[:2], LENGTHS[:2]), [1, 0])
  assert judge.scores(np.array([0]), TEXTS[2:], LENGTHS[2:]) == [0]  # Nothing is asked any more.
  with pytest.raises(UsageError, match=message):
    judge.finish()
