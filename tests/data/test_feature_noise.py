"""Patches with common and rare features."""

import functools

import jax
import numpy as np
import pytest

from jaxlab import data


@functools.cache
def _sample(**arguments):
  sizes = {"num_samples": 400, "dim": 20} | arguments
  return jax.device_get(jax.jit(lambda key: data.sample_patches(key, **sizes))(jax.random.key(0)))


def test_every_example_has_its_feature_a_distractor_and_noise():
  drawn = _sample()
  assert drawn.patches.shape == (400, 4, 20)
  np.testing.assert_array_equal(drawn.features, np.eye(4, 20))
  for patches, label, is_rare in zip(drawn.patches, drawn.labels, drawn.is_rare):
    projections = patches @ drawn.features.T
    shown = np.argwhere(np.isclose(projections, 1.0))
    assert shown[:, 1].tolist() == [2 * is_rare + label]
    weak = np.argwhere(np.isclose(projections, 0.05))
    assert len(weak) == 1 and weak[0, 1] in (0, 1)
    assert np.sum(np.abs(projections) > 1e-6) == 2  # The noise is orthogonal to all features.
    noise = [p for p in range(4) if p not in (shown[0, 0], weak[0, 0])]
    assert np.abs(patches[noise]).max() > 0


def test_shares_and_noise_are_as_requested():
  drawn = _sample(num_samples=4000, rare_prob=0.2)
  for share, expected in ((drawn.is_rare.mean(), 0.2), (drawn.labels.mean(), 0.5)):
    assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / 4000)
  noise = drawn.patches[..., 4:][np.abs(drawn.patches[..., 4:]).max(-1) > 0]
  np.testing.assert_allclose(noise.std(), 0.2, rtol=0.02)


def test_positions_and_distractors_are_uniform():
  drawn = _sample(num_samples=4000)
  position = np.argmax(np.abs(drawn.patches[..., :4]).max(-1), axis=1)
  np.testing.assert_allclose(np.bincount(position, minlength=4) / 4000, 0.25, atol=0.03)
  second = np.sum(np.isclose(drawn.patches[..., 1], 0.05))
  np.testing.assert_allclose(second / 4000, 0.5, atol=0.03)


def test_stratified_counts_are_exact():
  drawn = _sample(num_samples=100, stratified=True)
  np.testing.assert_array_equal(drawn.labels, np.arange(100) % 2)
  for label in (0, 1):
    assert drawn.is_rare[drawn.labels == label].sum() == 3


@pytest.mark.parametrize("rare", [True, False])
def test_rare_argument_overrides_rare_prob(rare):
  assert (_sample(num_samples=50, rare=rare).is_rare == rare).all()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"dim": 4}, "dim must be at least 5, got 4"),
    ({"num_patches": 2, "num_distractors": 2}, "num_patches must be at least .* 3, got 2"),
    ({"rare_prob": 1.5}, "rare_prob must lie in"),
    ({"num_distractors": -1}, "num_distractors must be at least 0, got -1"),
    ({"noise_std": float("nan")}, "noise_std must lie in"),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    data.sample_patches(jax.random.key(0), num_samples=4, **arguments)
