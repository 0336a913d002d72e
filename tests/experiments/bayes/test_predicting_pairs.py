import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bayes.predicting_pairs import digits, parity
from experiments.bayes.predicting_pairs.__main__ import PRESETS, validate
from jaxlab import data, losses, metrics, uncertainty

CONFIG = dataclasses.replace(PRESETS["smoke"], num_draws=20_000)
LAPTOP = PRESETS["laptop"]
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
GROUP = digits.GROUP_OF


@functools.cache
def drawn():
  """The test draws, and products of residuals of both labels from the exact posterior there."""

  draw = jax.jit(lambda parts: digits.draw_tests(CONFIG, KEY, parts)[0])
  draws = data.AmbiguousBatch(*map(np.asarray, draw(digits.draw(CONFIG, 0))))
  exact = digits.exact(CONFIG, draws)
  products = jax.jit(metrics.pair_squared_error)(exact.probs, draws.labels_a, draws.labels_b)
  return draws, exact, np.asarray(products)


def test_parts_are_disjoint_and_pixels_lie_between_0_and_1():
  parts = digits.draw(LAPTOP, 0)
  pixels = np.concatenate([part.inputs for part in parts])
  assert [len(part.labels) for part in parts] == [1197, 100, 500] and pixels.shape[1] == 64
  assert pixels.min() == 0 and pixels.max() == 1
  assert len({image.tobytes() for image in pixels}) > 1790
  assert not np.array_equal(parts.test.labels, digits.draw(LAPTOP, 1).test.labels)


def test_the_exact_posterior_is_calibrated_to_the_second_order():
  """Squared errors, residuals of both labels and variances agree in every group."""
  draws, (probs, variance), products = drawn()
  np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
  errors = np.square(draws.probs - probs).sum(1)
  gaps = {"errors": errors, "pairs": products.sum(1)}
  for group, truth in enumerate((0, 0, 0.5, None)):
    own = GROUP[draws.digits] == group
    predicted = variance.sum(1)[own]
    if truth is not None:
      np.testing.assert_allclose(predicted, truth, atol=1e-6)
    for name, values in gaps.items():
      gap = values[own] - predicted
      assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(own.sum()) + 1e-6, (group, name)


def slow_scores(draws, probs, raw, answers):
  """The scores of a prediction, by loops."""
  variance, n = np.maximum(raw, 0), len(probs)
  inside, given, sure, wrong = [], [], [], []
  for i in range(n):
    digit = draws.digits[i]
    if digit % 2:
      for y in (digit, (digit + 1) % 10):
        margin = np.sqrt(variance[i, y] / CONFIG.beta)
        inside.append(abs(draws.probs[i, y] - probs[i, y]) <= margin)
    y = answers[i]
    given.append(probs[i, y])
    sure.append(probs[i, y] ** 2 / (probs[i, y] ** 2 + variance[i, y]))
    wrong.append(draws.probs[i, y] == 0)
  kept = [np.argsort(-np.array(x), kind="stable")[: round(0.8 * n)] for x in (given, sure)]
  rows = np.arange(n)
  nll = [-np.log(probs[rows, y]).mean() for y in (draws.labels_a, draws.labels_b)]
  even = draws.digits % 2 == 0
  return {
    "coverage": np.mean(inside),
    "hallucinated, by probability": np.mean(np.array(wrong)[kept[0]]),
    "hallucinated, by confidence": np.mean(np.array(wrong)[kept[1]]),
    "NLL": np.mean(nll),
    "even digits right": np.mean(probs.argmax(1)[even] == draws.digits[even]),
  }


def test_scores_are_those_of_loops():
  draws = jax.tree.map(lambda x: x[:200], drawn()[0])
  logits = jnp.asarray(2 * RNG.normal(size=(200, 100)), jnp.float32)

  @jax.jit
  def measure(logits):
    prediction = digits.read(CONFIG, digits.PAIRS, logits)
    answers = jax.random.categorical(KEY, jnp.log(prediction.probs))
    confidence = uncertainty.pair_confidence(losses.pair_log_probs(logits.reshape(-1, 10, 10)))
    return prediction, answers, confidence, digits.score(CONFIG, KEY, draws, prediction)

  (probs, raw), answers, confidence, scores = jax.tree.map(np.asarray, measure(logits))
  np.testing.assert_allclose(confidence, probs**2 / (probs**2 + np.maximum(raw, 0)), rtol=2e-4)
  for name, expected in slow_scores(draws, probs, raw, answers).items():
    np.testing.assert_allclose(scores[name], expected, rtol=1e-4, err_msg=name)
  for i in range(4):
    own, by_group = GROUP[draws.digits] == i, scores["by group"]
    np.testing.assert_allclose(by_group["unclipped variance"][i], raw[own].sum(1).mean(), atol=1e-5)
    squares = np.square(draws.probs - probs)[own].sum(1)
    np.testing.assert_allclose(by_group["squared error"][i], squares.mean(), rtol=1e-4)


def test_the_second_head_learns_products_of_residuals():
  outputs = RNG.normal(size=(6, 20)).astype(np.float32)
  a, b = RNG.integers(0, 10, (2, 6)).astype(np.int32)
  batch = drawn()[0]._replace(labels_a=a, labels_b=b)
  loss = jax.jit(lambda x: digits.row_loss(CONFIG, digits.REGRESSION, x, batch))(outputs)
  for i in range(6):
    probs = np.exp(outputs[i, :10]) / np.exp(outputs[i, :10]).sum()
    hits = np.eye(10)
    products = (hits[a[i]] - probs) * (hits[b[i]] - probs)
    expected = -np.log(probs[a[i]] * probs[b[i]]) + np.square(outputs[i, 10:] - products).sum()
    np.testing.assert_allclose(loss[i], expected, rtol=1e-4)


def test_isotonic_regression_finds_the_scale_of_a_variance():
  variance = RNG.uniform(0, 0.01, (400, 10)).astype(np.float32)
  noisy = 20 * variance + 0.02 * RNG.normal(size=variance.shape)
  prediction = digits.Prediction(variance, variance)
  found = digits.recalibrated(prediction, (variance, noisy)).variance
  middle = (variance > 0.001) & (variance < 0.009)
  np.testing.assert_allclose(found[middle], 20 * variance[middle], atol=0.03)


def test_questions_are_answered_by_their_kind():
  draw = jax.jit(functools.partial(parity.draw, LAPTOP, batch_size=9000))
  batch = jax.tree.map(np.asarray, draw(KEY, 3))
  bits = batch.inputs[:, :24] > 0
  np.testing.assert_array_equal(batch.inputs[:, 24:].argmax(1), batch.kinds)
  easy, coin, hard = (batch.kinds == i for i in range(3))
  for labels in (batch.labels_a, batch.labels_b):
    np.testing.assert_array_equal(labels[easy], bits[easy, -1])
    np.testing.assert_array_equal(labels[hard], bits[hard, 0] ^ bits[hard, 1] ^ bits[hard, 2])
    assert abs(labels[coin].mean() - 0.5) < 0.04
  assert abs(np.corrcoef(batch.labels_a[coin], batch.labels_b[coin])[0, 1]) < 0.06
  assert (batch.probs[coin] == 0.5).all()
  np.testing.assert_array_equal(batch.probs[~coin].argmax(1), batch.labels_a[~coin])


def test_pairs_tell_a_hidden_world_from_a_coin():
  """What is not learned converges to half the identity, a coin to a quarter everywhere."""
  config = dataclasses.replace(
    LAPTOP, widths=(16,), parity_steps=1200, draws_per_update=128, learning_rate=3e-3
  )
  measure = jax.jit(functools.partial(parity.measure, config, parity.PAIRS))
  found = jax.tree.map(np.asarray, measure(KEY, 12))
  # P = ½ I has marginals ½ and variances ¼; P = ¼ has variances 0.
  np.testing.assert_allclose(found["variance"], [0, 0, 0.25], atol=0.02)
  np.testing.assert_allclose(found["squared error"], [0, 0, 0.25], atol=0.02)


@pytest.mark.parametrize(
  "change", [{"orders": (3, 2)}, {"num_bits": 12}, {"dropout": 1.0}, {"num_train": 1300}]
)
def test_impossible_sizes_are_named(change):
  name = {"num_bits": "orders", "num_train": "sizes"}.get(next(iter(change)), next(iter(change)))
  with pytest.raises(ValueError, match=name):
    validate(dataclasses.replace(LAPTOP, **change))
