import jax
import numpy as np
import pytest
from sklearn.feature_selection import f_classif

from jaxlab import metrics

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat([0, 1, 3], [6, 5, 4])).astype(np.int32)  # Class 2 is absent.
FEATURES = (RNG.normal(size=(15, 6)) + LABELS[:, None] * np.arange(6) / 4).astype(np.float32)
anova = jax.jit(metrics.anova_f, static_argnames="num_classes")
correlation = jax.jit(metrics.feature_correlation)


def f_of(features, labels=LABELS):
  return np.asarray(anova(features, labels, num_classes=4))


def test_f_matches_scikit_learn_and_its_formula():
  expected, _ = f_classif(FEATURES.astype(np.float64), LABELS)
  np.testing.assert_allclose(f_of(FEATURES), expected, rtol=1e-4)
  x = FEATURES[:, 3].astype(np.float64)
  groups = [x[k == LABELS] for k in (0, 1, 3)]
  between = sum(len(g) * (g.mean() - x.mean()) ** 2 for g in groups)
  within = sum(((g - g.mean()) ** 2).sum() for g in groups)
  np.testing.assert_allclose(f_of(FEATURES)[3], (between / 2) / (within / 12), rtol=1e-5)


@pytest.mark.parametrize("scale, offset", [(-3.0, 0.0), (1e20, 0.0), (1e-20, 0.0), (1.0, 100.0)])
def test_affine_maps_change_nothing(scale, offset):
  moved = (FEATURES * np.float32(scale) + np.float32(offset)).astype(np.float32)
  np.testing.assert_allclose(f_of(moved), f_of(FEATURES), rtol=1e-3)


def test_names_of_classes_do_not_matter():
  renamed = np.array([2, 0, 1, 3], np.int32)[LABELS]
  np.testing.assert_allclose(f_of(FEATURES, renamed), f_of(FEATURES), rtol=1e-4)


def test_constants_and_numbers_that_are_not_finite():
  features = FEATURES.copy()
  features[:, 0] = 0.1
  features[:, 1] = 0.1 + LABELS  # Constant within every class.
  features[2, 2], features[3, 3] = np.nan, np.inf
  statistics = f_of(features)
  assert (statistics[:2] == 0).all() and np.isnan(statistics[2:4]).all()
  np.testing.assert_array_equal(statistics[4:], f_of(FEATURES)[4:])
  assert (f_of(FEATURES, np.ones(15, np.int32)) == 0).all()
  gradient = jax.jit(jax.grad(lambda x: anova(x, LABELS, num_classes=4)[:2].sum()))(features)
  assert np.isfinite(gradient[:, :2]).all()


def test_correlation_matches_numpy():
  target = FEATURES[:, 5] + RNG.normal(size=15).astype(np.float32)
  features = FEATURES.copy()
  features[:, 0] = 0.1
  features[:, 1] = -target
  expected = [0, -1, *(np.corrcoef(x, target)[0, 1] for x in FEATURES.T[2:])]
  np.testing.assert_allclose(correlation(features, target), expected, atol=1e-5)
  assert (np.asarray(correlation(features, np.ones(15, np.float32))) == 0).all()


def test_errors():
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    metrics.anova_f(FEATURES, LABELS, num_classes=1)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), got 0 to 3"):
    metrics.anova_f(FEATURES, LABELS, num_classes=3)
  with pytest.raises(ValueError, match="labels must have shape"):
    metrics.anova_f(FEATURES, LABELS[:3], num_classes=4)
  assert np.isnan(f_of(FEATURES, LABELS - 1)).all()
