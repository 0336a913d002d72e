import jax
import numpy as np

from experiments.kit import answer_prior

KEY = jax.random.key(0)
WIDTH = 5


def test_the_prior_draws_answers_of_its_probabilities():
  sizes = {"batch_size": 400, "num_points": 12, "width": WIDTH}
  draw = jax.jit(lambda key: answer_prior.answered_tables(key, **sizes))
  x, y, probs = map(np.asarray, draw(KEY))
  assert set(np.unique(y)) == {0, 0.5, 1} and 0 <= probs.min() < probs.max() <= 1
  used = (x != 0).any(axis=1).sum(axis=-1)
  assert set(used) == {2, 3, 4, 5}
  np.testing.assert_array_equal(x[used == 2, :, 2:], 0)
  # Answers are right on average, and their mean has half the variance of one.
  error = y - probs
  assert abs(error.mean()) < 0.02
  np.testing.assert_allclose((error**2).mean(), (probs * (1 - probs)).mean() / 2, rtol=0.1)
  # Probabilities vary within a table, and less than between tables.
  spread = probs.std(axis=1).mean()
  assert 0.05 < spread < probs.std()
  # Near points have near probabilities: of two inputs, pairs at a tenth of the median distance.
  few, chances = x[used == 2], probs[used == 2]
  apart = np.linalg.norm(few[:, :, None] - few[:, None], axis=-1)
  gaps, other = np.abs(chances[:, :, None] - chances[:, None]), ~np.eye(12, dtype=bool)
  near, far = (gaps[:, other][found] for found in (
    apart[:, other] < 0.1 * np.median(apart), apart[:, other] > np.median(apart)))  # fmt: skip
  assert len(near) > 50 and near.mean() < 0.5 * far.mean()


def test_the_network_learns_the_prior():
  fit = jax.jit(lambda key: answer_prior.fit(key, num_context=4, width=WIDTH, num_steps=300))
  fitted = jax.device_get(fit(KEY))
  assert fitted["bad_step"] == -1
  assert fitted["loss"] < -0.05  # That of a uniform law is 0.
  x = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
  run = jax.jit(lambda y, x: answer_prior.posterior(fitted["params"], x, y)(x))
  predict = lambda y, x: jax.device_get(run(y, x))  # noqa: E731
  means = {}
  for y in (0.0, 0.5, 1.0):
    mean, variance = predict(np.full(4, y, np.float32), x)
    assert ((variance > 0) & (variance < 1 / 4)).all()
    means[y] = np.mean(mean)
  assert means[0.0] + 0.1 < means[0.5] < means[1.0] - 0.1
  order = np.array([2, 0, 3, 1])
  y = np.array([0, 1, 0.5, 1], np.float32)
  for found, shuffled in zip(predict(y, x), predict(y[order], x[order])):
    np.testing.assert_allclose(found[order], shuffled, rtol=1e-4)
