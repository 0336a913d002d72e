import jax
import numpy as np
import pytest

from jaxlab import algorithms

REWARDS = np.array([[1.0, 3.0, np.nan, 3.0], [np.inf, -1.0, -1.0, -1.0]], np.float32)


def weigh(objective):
  return jax.jit(objective.weigh_fn)(REWARDS)


def test_the_best_samples_are_kept_the_first_of_equals():
  weights, samples = weigh(algorithms.best_of_n_objective(num_best=2))
  np.testing.assert_array_equal(samples, [[1, 3], [1, 2]])
  np.testing.assert_array_equal(weights, np.ones((2, 2)))


def test_what_cannot_be_scored_is_never_chosen():
  weights, samples = weigh(algorithms.best_of_n_objective(num_best=4))
  np.testing.assert_array_equal(weights, [[1, 1, 1, 0], [1, 1, 1, 0]])
  np.testing.assert_array_equal(samples[:, -1], [2, 0])
  weights, samples = weigh(algorithms.rejection_sampling_objective(threshold=3.0))
  assert samples is None
  np.testing.assert_array_equal(weights, [[0, 1, 0, 1], [0, 0, 0, 0]])
  weights, samples = weigh(algorithms.online_dpo_objective())
  np.testing.assert_array_equal(weights, [[1, 1], [0, 0]])
  np.testing.assert_array_equal(samples[0], [1, 0])


@pytest.mark.parametrize(
  "function, options, message",
  [
    ("rloo_objective", {"clip_low": -0.1}, r"clip_low must lie in \[0, inf\), got -0.1"),
    ("grpo_objective", {"clip_high": -1.0}, r"clip_high must lie in \[0, inf\), got -1.0"),
    ("grpo_objective", {"scale": "groups"}, "scale must be one of 'group', 'batch', 'none'"),
    ("grpo_objective", {"kl_coefficient": np.inf}, "kl_coefficient must lie in"),
    ("best_of_n_objective", {"num_best": 0}, "num_best must be at least 1, got 0"),
    ("rejection_sampling_objective", {"threshold": np.nan}, "threshold must lie in"),
    ("online_dpo_objective", {"beta": 0.0}, r"beta must lie in \(0, inf\), got 0.0"),
    ("online_dpo_objective", {"label_smoothing": 0.6}, "label_smoothing must lie in"),
  ],
)
def test_bad_arguments_are_named(function, options, message):
  with pytest.raises(ValueError, match=message):
    getattr(algorithms, function)(**options)


def test_a_group_that_is_too_small_is_named():
  with pytest.raises(ValueError, match="num_best=5 exceeds the 4 samples of a group"):
    algorithms.best_of_n_objective(num_best=5).weigh_fn(REWARDS)
