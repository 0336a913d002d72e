"""Pairs of classes, and the losses of uncertain rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit.datasets import Split
from experiments.labels.shrinkmatch import __main__ as shrinkmatch
from experiments.labels.shrinkmatch import methods, pairs
from experiments.labels.shrinkmatch.__main__ import Config
from jaxlab import losses
from jaxlab.experiment import Results, check_claims

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(6, 0.2), 40).astype(np.float32)
LOGITS = RNG.normal(size=(40, 6)).astype(np.float32)
THRESHOLD = 0.8


def cross_entropy(logits, label):
  return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


def shrunk(row):
  """How many classes go, and whether the threshold is reached, by trial."""
  ordered = np.sort(row)[::-1]
  for num in range(1, len(row) - 1):
    if ordered[0] / (ordered[0] + ordered[1 + num :].sum()) >= THRESHOLD:
      return num, True
  return len(row) - 2, False


@pytest.mark.parametrize("num_marks", [2, 4])
def test_marks_are_fair_and_hidden_in_half_of_the_rows(num_marks):
  split = Split(np.zeros((200, 40, 1), np.float32), np.repeat(np.arange(10), 20))
  marked = pairs.mark(np.random.default_rng(0), split, num_marks, Config(mark_noise=0.01))
  digits, marks = np.divmod(marked.labels, num_marks)
  np.testing.assert_array_equal(digits, split.labels)
  counts = np.bincount(marked.labels, minlength=10 * num_marks)
  np.testing.assert_array_equal(counts, 20 // num_marks)
  assert marked.inputs.shape == (200, 44, 1) and not marked.inputs[:, :40].any()
  steps = np.round(marked.inputs[:, 40:, 0])
  hidden = ~steps.any(axis=1)
  assert hidden.sum() == 100
  np.testing.assert_array_equal(steps[~hidden], pairs.MARKS[marks[~hidden]])


def test_losses_match_a_loop():
  truth = RNG.integers(0, 6, 40)
  shared = jax.jit(functools.partial(methods.shared_losses, threshold=THRESHOLD))
  unit = jax.jit(functools.partial(methods.unit_losses, threshold=THRESHOLD))
  inputs = jax.random.key(0), LOGITS, PROBS, truth
  (_, full, _, nothing), (plain, true) = jax.device_get((shared(*inputs), unit(*inputs)))
  assert not nothing.any()
  for i, row in enumerate(PROBS):
    top, guess, (num, reached) = row.max(), row.argmax(), shrunk(row)
    uncertain = top < THRESHOLD
    np.testing.assert_allclose(full[i], uncertain * top * cross_entropy(LOGITS[i], guess), 1e-4)
    np.testing.assert_allclose(true[i], uncertain * cross_entropy(LOGITS[i], truth[i]), 1e-4)
    kept = [guess, *np.argsort(-row)[1 + num :]]
    value = uncertain * reached * cross_entropy(LOGITS[i][kept], 0)
    np.testing.assert_allclose(plain[i], value, rtol=1e-4, atol=1e-6)
  assert 4 <= (PROBS.max(1) >= THRESHOLD).sum() <= 20


def test_random_removal_takes_as_many_classes_but_never_the_top_one():
  loss = functools.partial(methods.randomly_shrunk_loss, threshold=THRESHOLD)

  @jax.jit
  def slopes(key):
    return jax.grad(lambda logits: jnp.sum(loss(key, logits, PROBS)))(LOGITS)

  removed = np.zeros((40, 6))
  for seed in range(30):
    slope = np.asarray(slopes(jax.random.key(seed)))
    assert np.isfinite(slope).all()
    for i, row in enumerate(PROBS):
      num, reached = shrunk(row)
      counts = row.max() < THRESHOLD and reached
      assert (slope[i] != 0).sum() == (6 - num if counts else 0)
      removed[i] += counts * (slope[i] == 0)
  assert removed[np.arange(40), PROBS.argmax(1)].max() == 0
  some = removed.sum(1) > 0
  assert (removed[some] > 0).sum(1).min() == 5  # Every other class is removed now and then.


def test_removal_matches_a_loop():
  labels = RNG.integers(0, 6, 40)
  found = jax.jit(methods.removal, static_argnums=(2, 3))(PROBS, labels, 2, THRESHOLD)
  uncertain, right, taken, chance = [], [], [], []
  for row, label in zip(PROBS, labels):
    uncertain.append(row.max() < THRESHOLD)
    if row.max() >= THRESHOLD:
      continue
    num, _ = shrunk(row)
    right.append(row.argmax() // 2 == label // 2)
    if row.argmax() != label:
      taken.append(label in np.argsort(-row)[1 : 1 + num])
      chance.append(num / 5)
  expected = {
    "uncertain": uncertain,
    "right digit where uncertain": right,
    "true class removed": taken,
    "removed by chance": chance,
  }
  assert set(found) == set(expected)
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], np.mean(values), rtol=1e-5, err_msg=name)


def test_a_pair_of_classes_is_learned_against_all_others_but_not_decided():
  probs = np.full((10, 20), 0.02 / 18, np.float32)
  for i in range(10):
    probs[i, 2 * i : 2 * i + 2] = 0.49

  @functools.partial(jax.jit, static_argnums=0)
  def learn(loss_fn):
    def step(table, _):
      return table - jax.grad(lambda t: jnp.sum(loss_fn(t, probs)))(table), None

    return jax.lax.scan(step, jnp.zeros((10, 20)), None, length=500)[0]

  logits = np.asarray(learn(losses.shrunk_class_loss))
  for i, row in enumerate(logits):
    others = np.delete(row, [2 * i, 2 * i + 1])
    assert row[2 * i] - others.max() >= 4 and row[2 * i + 1] == 0
  assert not np.any(learn(losses.soft_pseudo_label_loss))


def test_claims_of_both_sets():
  config, results, rng = Config(), Results(), np.random.default_rng(0)
  high, low = {"used in the second half": 0.9}, {"used in the second half": 0.5}
  removal = {
    "true class removed": 0.8,
    "removed by chance": 0.1,
    "right digit where uncertain": 0.7,
  }
  known = {
    shrinkmatch.SHRINK: {"accuracy": 0.8, **high, **removal},
    shrinkmatch.FIXMATCH: {"accuracy": 0.75, **low, **removal},
    shrinkmatch.ORACLE: {"accuracy": 0.85},
    shrinkmatch.LABELS: {"accuracy": 0.6},
    shrinkmatch.CHEAPEST: {"accuracy": 0.77},
  }
  for i in range(2):
    rows = [*shrinkmatch.rows_of(config, i), *([shrinkmatch.CHEAPEST] if i == 0 else [])]
    for method in rows:
      scores = known.get(method, {"accuracy": 0.7})
      values = {name: x + 0.001 * rng.normal(size=10) for name, x in scores.items()}
      results.add({method: values}, dataset=shrinkmatch.name_of(config, i))
  claims = shrinkmatch.claims(config, results)
  check_claims(claims)
  assert [claim.verdict for claim in claims] == ["shown"] * 6
