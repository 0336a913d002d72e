import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import algorithms

N, C = 200, 4
RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(C, 0.5), N).astype(np.float32)
LABELS = RNG.integers(0, C, N).astype(np.int32)
TRUE = RNG.integers(0, C, N).astype(np.int32)
THRESHOLDS = (0.0, 0.25, 0.6, 0.9, 1.0)
keep = jax.jit(
  lambda probs, labels, threshold: algorithms.agreement_mask(probs, labels, threshold=threshold)
)
report = jax.jit(algorithms.agreement_report)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_examples_on_which_the_teacher_agrees_are_kept(threshold):
  rows = [np.argmax(p) == y and p.max() >= threshold for p, y in zip(PROBS, LABELS)]
  np.testing.assert_array_equal(keep(PROBS, LABELS, threshold), rows)


def test_fewer_are_kept_as_the_threshold_rises():
  kept = [np.asarray(keep(PROBS, LABELS, t)) for t in THRESHOLDS]
  for low, high in zip(kept, kept[1:]):
    assert not np.any(high & ~low)
  assert not kept[0][PROBS.argmax(1) != LABELS].any() and not kept[-1].any()
  certain = np.eye(C, dtype=np.float32)[TRUE]
  np.testing.assert_array_equal(keep(certain, LABELS, 1.0), TRUE == LABELS)


def test_ties_are_of_the_lowest_class():
  uniform = np.full((N, C), 1 / C, np.float32)
  np.testing.assert_array_equal(keep(uniform, LABELS, 1 / C), LABELS == 0)
  assert not np.any(keep(uniform, LABELS, 0.26))


def test_bad_rows_are_not_kept():
  probs, labels = PROBS.copy(), jnp.asarray(LABELS)
  probs[:50, 1] = np.nan
  kept = keep(probs, labels.at[50:100].set(jnp.array([-1, C] * 25)), 0.0)
  assert not np.any(kept[:100])
  np.testing.assert_array_equal(kept[100:], keep(PROBS, LABELS, 0.0)[100:])


@pytest.mark.parametrize(("share", "right"), [(0.4, None), (0.0, None), (1.0, True), (0.4, False)])
def test_report_counts(share, right):
  kept = RNG.uniform(size=N) < share
  true = {None: TRUE, True: LABELS, False: LABELS + 1}[right]
  hit = true == LABELS
  result = jax.device_get(report(kept, LABELS, true))
  np.testing.assert_allclose(result.kept_share, kept.mean(), rtol=1e-6)
  np.testing.assert_allclose(result.precision, hit[kept].mean() if kept.any() else 1, rtol=1e-6)
  np.testing.assert_allclose(result.recall, kept[hit].mean() if hit.any() else 1, rtol=1e-6)


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 1.5"):
    algorithms.agreement_mask(PROBS, LABELS, threshold=1.5)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\), got 1 to 4"):
    algorithms.agreement_mask(PROBS[:2], np.array([1, 4]))
  with pytest.raises(ValueError, match="true_labels must have shape"):
    algorithms.agreement_report(LABELS == 0, LABELS, TRUE[1:])
