import jax
import numpy as np
from sklearn.neighbors import NearestNeighbors

from experiments.kit import epistemic
from jaxlab import data, uncertainty

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_the_order_of_the_errors_is_the_best_one():
  errors = RNG.uniform(size=20).astype(np.float32)
  found = jax.jit(epistemic.rank)(errors**2, errors, 2 + errors[:5])
  assert set(found) == {epistemic.SPEARMAN, epistemic.REJECTION, epistemic.FOREIGN}
  np.testing.assert_allclose(list(found.values()), 1, rtol=1e-5)


def test_the_settings_of_the_highest_evidence_are_chosen():
  x = RNG.uniform(size=(30, 2)).astype(np.float32)
  y = (np.sin(9 * x[:, 0]) + 0.1 * RNG.normal(size=30)).astype(np.float32)
  space = {"lengthscales": (0.05, 0.2), "outputscales": (1.0,), "noises": (0.01, 0.3)}

  @jax.jit
  def measure(x, y):
    predicted, mean = epistemic.gp_error_model(x, y, **space)(x), y.mean()
    slow = []
    for length in space["lengthscales"]:
      for noise in space["noises"]:
        settings = {"lengthscale": np.array([length, 1.0], np.float32), "noise": noise}
        evidence = uncertainty.gp_log_marginal_likelihood(x, y - mean, **settings)
        slow.append((evidence, mean + uncertainty.gp_posterior(x, y - mean, x, **settings).mean))
    return predicted, slow

  predicted, slow = jax.tree.map(np.asarray, measure(x, y))
  best = max(slow, key=lambda pair: pair[0])[1]
  np.testing.assert_allclose(predicted, best, atol=1e-4)


def test_a_point_is_answered_by_its_neighbors():
  table = epistemic.draw_table("keel/banana", 50, 40, 0)
  again, other = (epistemic.draw_table("keel/banana", 50, 40, seed) for seed in (0, 1))
  np.testing.assert_array_equal(table.queries, again.queries)
  assert not np.array_equal(table.queries, other.queries)
  arrays = data.as_arrays(data.load_source("keel/banana", split="all"))
  features = (arrays["features"] - arrays["features"].mean(0)) / arrays["features"].std(0)
  nearest = NearestNeighbors(n_neighbors=10).fit(features)
  for x, answers in zip(table.inputs[:10], table.answers):
    labels = arrays["label"][nearest.kneighbors(x[None, :2], return_distance=False)[0]]
    assert set(answers) <= set(labels)
  labels = arrays["label"][nearest.kneighbors(table.queries[:, :2], return_distance=False)]
  assert np.abs(labels.mean(1) - table.probs).max() < 0.15
  assert table.num_inputs == 2 and not table.inputs[:, 2:].any()
  # Shuffled columns hold the same numbers in other rows.
  np.testing.assert_array_equal(np.sort(table.foreign, axis=0), np.sort(table.queries, axis=0))
  assert not np.array_equal(table.foreign, table.queries)
