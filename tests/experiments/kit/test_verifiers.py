"""Verifiers that err at stated rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import verifiers
from experiments.kit.verifiers import ErrorRates

RATES = ErrorRates(np.array([0.0, 0.2, 0.5, 1.0]), np.array([0.0, 0.1, 0.1, 1.0]))
NUM = 20_000


def is_even(texts):
  return texts.sum(-1) % 2 == 0


@pytest.fixture(scope="module")
def found():
  @jax.jit
  def run(texts):
    keys = jax.random.split(jax.random.key(0))

    def measure(judge):
      return judge(keys[0], texts), judge(keys[0], texts), judge(keys[1], texts)

    own = verifiers.over_error_rates(measure, is_even, RATES)
    by_text = verifiers.over_error_rates(measure, is_even, RATES, by_text=True)
    scores = lambda texts: jnp.where(is_even(texts), 0.5, -2.0)  # noqa: E731
    signs = verifiers.over_error_rates(measure, scores, RATES)
    return own, by_text, signs

  texts = np.random.default_rng(0).integers(10, size=(NUM, 4)).astype(np.int32)
  return texts, jax.device_get(run(texts))


def test_errors_come_at_the_stated_rates(found):
  texts, (own, by_text, _) = found
  right = is_even(texts)
  for verdicts in (own[0], by_text[0]):
    for verdict, accepted, rejected in zip(verdicts, *RATES):
      for group, rate in ((~right, accepted), (right, rejected)):
        error = np.mean(verdict[group] != right[group])
        # Texts repeat, and with them their errors.
        assert abs(error - rate) <= 5 * np.sqrt(rate * (1 - rate) / (NUM / 8)) + 1e-9
  np.testing.assert_array_equal(own[0][0], right)
  np.testing.assert_array_equal(own[0][-1], ~right)


def test_higher_rates_keep_the_errors_of_lower_ones(found):
  texts, ((verdicts, again, other), *_) = found
  np.testing.assert_array_equal(verdicts, again)
  assert np.any(verdicts[1] != other[1])
  wrong = verdicts != is_even(texts)
  assert np.all(wrong[1] <= wrong[2])


def test_a_text_may_have_one_verdict(found):
  texts, (own, by_text, _) = found
  _, index = np.unique(texts, axis=0, return_inverse=True)
  first = np.unique(index, return_index=True)[1][index]
  np.testing.assert_array_equal(by_text[0], by_text[0][:, first])
  assert np.any(own[0] != own[0][:, first])
  # Other orders of the same tokens are other texts.
  order = np.sort(texts, axis=1)
  assert np.unique(np.asarray(verifiers._numbers(order))).size == len(np.unique(order, axis=0))


def test_scores_change_their_sign(found):
  texts, (own, _, signs) = found
  sizes = np.broadcast_to(np.where(is_even(texts), 0.5, 2.0), signs[0].shape)
  np.testing.assert_array_equal(np.abs(signs[0]), sizes)
  np.testing.assert_array_equal(signs[0] > 0, own[0])


@pytest.mark.parametrize("rates", [ErrorRates(1.2), ErrorRates(0.1, -0.5)])
def test_impossible_rates_are_refused(rates):
  with pytest.raises(ValueError, match="false_"):
    verifiers.flip_verdicts(jax.random.key(0), jnp.ones(3, bool), rates)
