import functools
import math

import jax
import numpy as np
import pytest

from jaxlab.metrics import in_context

RNG = np.random.default_rng(0)


def test_accuracy_by_position():
  logits = RNG.normal(size=(5, 4, 3)).astype(np.float32)
  logits[0, 1] = 0.0  # A tie goes to the first class.
  labels = RNG.integers(0, 3, (5, 4))
  expected = [np.mean([logits[b, i].argmax() == labels[b, i] for b in range(5)]) for i in range(4)]
  measure = jax.jit(in_context.accuracy_by_position)
  np.testing.assert_allclose(measure(logits, labels), expected, rtol=1e-6)
  outside = labels.copy()
  outside[2, 3] = 3
  traced = np.asarray(measure(logits, outside))
  np.testing.assert_allclose(traced[:3], expected[:3], rtol=1e-6)
  assert np.isnan(traced[3])
  with pytest.raises(ValueError, match="labels must lie"):
    in_context.accuracy_by_position(logits, labels + 3)


def test_learning_improvement():
  correct = RNG.uniform(size=(5, 8)) < 0.5
  expected = correct[:, -3:].mean() - correct[:, :3].mean()
  improvement = jax.jit(functools.partial(in_context.learning_improvement, window=3))
  np.testing.assert_allclose(improvement(correct), expected, atol=1e-6)
  assert improvement(np.tile(correct[:, :1], (1, 8))) == 0
  for window in (0, 5):
    with pytest.raises(ValueError, match=f"window .*{window}"):
      in_context.learning_improvement(correct, window=window)


@pytest.mark.parametrize(
  ("architecture", "size"), [("transformer", 1200), ("lstm", 60), ("outer_product", 300)]
)
def test_accessible_state_size(architecture, size):
  given = in_context.accessible_state_size(
    architecture, num_layers=3, embed_dim=10, sequence_length=20
  )
  assert given == size


def test_accessible_state_size_errors():
  with pytest.raises(ValueError, match="architecture .*'gru'"):
    in_context.accessible_state_size("gru", num_layers=1, embed_dim=1, sequence_length=1)
  with pytest.raises(ValueError, match="num_layers"):
    in_context.accessible_state_size("lstm", num_layers=0, embed_dim=1, sequence_length=1)


def slow_plateau(losses, decay, fraction):
  average = 0.0
  for step, loss in enumerate(losses):
    average = decay * average + (1 - decay) * loss
    if average / (1 - decay ** (step + 1)) < fraction * math.log(4):
      return step
  return len(losses)


def test_plateau_length():
  steps = np.arange(200)
  fall = math.log(4) * np.where(steps < 80, 1.0, np.exp(-(steps - 80) / 30))
  losses = (fall + 0.05 * RNG.normal(size=200)).astype(np.float32)
  find = jax.jit(
    lambda losses, decay, fraction: in_context.plateau_length(
      losses, num_classes=4, decay=decay, start_fraction=fraction
    )
  )
  for decay in (0.0, 0.9, 0.98):
    for fraction in (0.5, 0.9, 1.0):
      assert int(find(losses, decay, fraction)) == slow_plateau(losses, decay, fraction)
  constant = np.full(200, math.log(4), np.float32)
  assert find(constant, 0.98, 0.9) == 200
  assert find(np.where(steps < 50, constant, np.nan), 0.98, 0.9) == 200
  assert find(constant, 0.98, 0.9).dtype == np.int32


@pytest.mark.parametrize(
  ("options", "word"),
  [({"decay": 1.0}, "decay"), ({"start_fraction": 0.0}, "start_fraction"), ({}, "num_classes")],
)
def test_plateau_length_errors(options, word):
  with pytest.raises(ValueError, match=word):
    in_context.plateau_length(np.ones(3), num_classes=2 if options else 1, **options)


@pytest.mark.parametrize(
  ("measured", "regime"),
  [
    ((0.5, 0.1, 0.9), "general"),
    ((0.1, 0.09, 0.9), "task_identification"),
    ((0.05, 0.05, 0.4), "memorisation"),
    ((0.05, 0.05, 0.39), "no_learning"),
  ],
)
def test_in_context_regime(measured, regime):
  assert in_context.in_context_regime(*measured, num_classes=5) == regime


def test_in_context_regime_errors():
  with pytest.raises(ValueError, match="seen_last_accuracy"):
    in_context.in_context_regime(0.0, 0.0, 1.1, num_classes=5)
