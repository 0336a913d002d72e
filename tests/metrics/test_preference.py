import jax
import numpy as np
import pytest

from jaxlab import metrics

CHOSEN = np.array([1.0, 2.0, 0.0, -1.0, np.inf], np.float32)
REJECTED = np.array([0.0, 2.0, 1.0, -3.0, np.inf], np.float32)
accuracy = jax.jit(metrics.pairwise_accuracy)


def test_pairwise_accuracy_counts_ties_one_half():
  assert accuracy(CHOSEN, REJECTED) == np.float32(0.6)
  weights = np.array([3, 1, 2, 0, 0])
  np.testing.assert_allclose(accuracy(CHOSEN, REJECTED, weights=weights), 3.5 / 6, rtol=1e-6)
  assert accuracy(CHOSEN, REJECTED, weights=np.zeros(5, np.int64)) == 0
  assert np.isnan(accuracy(CHOSEN * np.nan, REJECTED))


def test_errors():
  with pytest.raises(ValueError, match=r"^weights must have shape \[n\] with n = 5, got \[2\]"):
    metrics.pairwise_accuracy(CHOSEN, REJECTED, weights=np.ones(2))
  with pytest.raises(ValueError, match=r"weights must lie in \[0, inf\)"):
    metrics.pairwise_accuracy(CHOSEN, REJECTED, weights=-np.ones(5))
  with pytest.raises(ValueError, match="^rejected_rewards must have shape"):
    metrics.pairwise_accuracy(CHOSEN, REJECTED[:2])
