import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bayes.unsup_pretraining import digits, latent
from experiments.bayes.unsup_pretraining.__main__ import PRESETS, validate
from experiments.bayes.unsup_pretraining.latent import KNOWN, PRETRAINED, RIDGE
from jaxlab import algorithms

CONFIG = PRESETS["smoke"]
WIDE = dataclasses.replace(
  CONFIG, num_dims=60, num_factors=3, rank=4, num_unlabeled=(100, 300, 3000),
  num_labeled=(50, 100, 400), penalties=(1.0, 10.0, 100.0), num_folds=5,
)  # fmt: skip
KEYS = jax.random.split(jax.random.key(0), 8)


def test_excess_risks_are_those_of_the_best_weights():
  config = dataclasses.replace(CONFIG, num_labeled=(10, 40_000))

  def risks(key):
    loadings, _, inputs, targets, best = latent.draw_factors(config, key)
    fitted = jnp.linalg.lstsq(inputs, targets.T)[0].T
    risks = jax.vmap(latent.excess_risk, in_axes=(0, 0, None))(fitted, best, loadings)
    return loadings, best, fitted, risks

  loadings, best, fitted, risks = map(np.asarray, jax.jit(risks)(jax.random.key(0)))
  # Least squares on many rows finds both, and misses by about d / n.
  np.testing.assert_allclose(fitted, best, atol=0.05)
  assert (risks < 5 * 8 / 40_000).all()
  covariance = loadings @ loadings.T + np.eye(8)
  expected = [gap @ covariance @ gap for gap in fitted - best]
  np.testing.assert_allclose(risks, expected, rtol=1e-3)


def test_the_population_covariance_gives_the_known_loadings():
  config = dataclasses.replace(CONFIG, num_dims=20, num_factors=3, num_labeled=(10, 40))

  def gap(key):
    loadings, _, inputs, targets, _ = latent.draw_factors(config, key)
    covariance = loadings @ loadings.T + jnp.eye(20)
    population = jnp.sqrt(20.0) * jnp.linalg.cholesky(covariance).T
    weights = []
    for model in (loadings, algorithms.factor_mle(population, rank=3)):
      head = algorithms.factor_regression(inputs, targets[0], model, posterior_loss=False)
      weights.append(latent.factor_map(model) @ head)
    return weights

  known, found = jax.jit(gap)(jax.random.key(0))
  np.testing.assert_allclose(found, known, atol=1e-4)


@pytest.fixture(scope="module")
def measured():
  """Problems of eight seeds, as NumPy arrays."""
  measure = jax.jit(lambda keys: jax.lax.map(lambda key: latent.measure_factors(WIDE, key), keys))
  return jax.tree.map(np.asarray, measure(KEYS))


def test_pretraining_gains_by_its_condition_alone(measured):
  """Where the factors do not determine the targets, ridge is far ahead."""
  ours, ridge, known = (measured[row]["excess risk"].mean(0) for row in (PRETRAINED, RIDGE, KNOWN))
  good, broken = 0, 1
  assert (ours[good, :, -1] < ridge[good] / 2).all()
  assert ours[broken, -1, -1] > 2 * ridge[broken, -1]
  # Without a model to estimate the risk falls as 1 / n; axes of equal span give equal predictions.
  slope = np.polyfit(np.log(WIDE.num_labeled), np.log(known[good]), 1)[0]
  assert slope == pytest.approx(-1, abs=0.2)
  np.testing.assert_allclose(measured[latent.PCA]["excess risk"].mean(0), ours, rtol=0.01)


def test_a_subset_of_rows_is_what_a_slice_of_them_is(measured):
  @jax.jit
  def slices(key):
    loadings, pool, inputs, targets, best = latent.draw_factors(WIDE, key)
    labeled, seen, risks = inputs[:50], targets[1][:50], []
    for rows in (pool[:300], pool[:300], labeled, jnp.concatenate([pool[:300], labeled])):
      model = algorithms.factor_mle(rows, rank=3)
      options = {"posterior_loss": len(risks) == 1}
      head = algorithms.factor_regression(labeled, seen, model, **options)
      risks.append(latent.excess_risk(latent.factor_map(model) @ head, best[1], loadings))
    return risks

  rows = (PRETRAINED, latent.SAMPLED, latent.OWN, latent.JOINED)
  found = [measured[row]["excess risk"][0, 1, 0] for row in rows]
  found = [np.broadcast_to(x, 3)[1] for x in found]  # The second number of unlabeled inputs.
  np.testing.assert_allclose(found, slices(KEYS[0]), rtol=2e-3)


def test_separated_components_are_found():
  config = dataclasses.replace(
    CONFIG, center_norm=8.0, mixture_dims=20, mixture_unlabeled=(60,), mixture_labeled=(40,),
    em_steps=20, num_restarts=10, head_steps=50,
  )  # fmt: skip
  measure = jax.jit(lambda keys: jax.lax.map(lambda key: latent.measure_mixture(config, key), keys))
  found = jax.tree.map(np.asarray, measure(KEYS[:4]))
  assert (found[KNOWN]["right components"] == 1).all()
  ours, known = (found[row]["excess error"] for row in (PRETRAINED, KNOWN))
  np.testing.assert_allclose(ours[:, :, 0], known, atol=1e-6)
  assert known.min() >= 0


def test_parts_of_the_digits_are_disjoint():
  for split in (digits.RANDOM, digits.BLOCKS):
    task, again, other = (digits.draw(PRESETS["laptop"], split, seed) for seed in (0, 0, 1))
    parts = task.unlabeled, task.labeled.inputs, task.test.inputs
    assert list(map(len, parts)) == [1000, 200, 597]
    assert len({image.tobytes() for part in parts for image in part}) > 1790
    np.testing.assert_array_equal(task.test.labels, again.test.labels)
    assert not np.array_equal(task.test.labels, other.test.labels)


def test_labels_beyond_the_count_are_not_seen():
  task = digits.draw(CONFIG, digits.RANDOM, 0)
  rng = np.random.default_rng(0)
  features = {
    row: (rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(40, 4)).astype(np.float32))
    for row in (PRETRAINED, digits.UNTRAINED)
  }
  evaluate = jax.jit(lambda *x: digits.evaluate(CONFIG, *x))
  labels = task.labeled.labels.copy()
  labels[20:] = (labels[20:] + 1) % 10
  changed = task._replace(labeled=task.labeled._replace(labels=labels))
  key = jax.random.key(0)
  first, second = (evaluate(key, (t, features, 20)) for t in (task, changed))
  assert set(first) == {*features, digits.PIXELS, digits.COPIES, digits.NETWORK}
  for row, accuracy in first.items():
    assert accuracy == second[row], row


@pytest.mark.parametrize(
  "change", [{"few": 30}, {"num_labeled": (11, 100)}, {"image_labels": (50, 20)}, {"num_folds": 1}]
)
def test_impossible_sizes_are_named(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    validate(dataclasses.replace(PRESETS["laptop"], **change))
