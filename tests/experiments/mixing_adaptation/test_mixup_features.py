import jax
import numpy as np

from experiments.mixing_adaptation.mixup_features import __main__ as experiment
from experiments.mixing_adaptation.mixup_features import patches
from jaxlab import data


def test_aligned_patches_are_the_same_ones_in_order():
  drawn = data.sample_patches(jax.random.key(0), num_samples=6, dim=8)
  aligned = jax.jit(patches.aligned)(drawn)
  strength = np.abs(np.asarray(aligned.patches)[..., :4]).max(-1)
  np.testing.assert_allclose(strength, np.tile([1.0, 0.05, 0.0, 0.0], (6, 1)), atol=1e-6)
  for before, after in zip(np.asarray(drawn.patches), np.asarray(aligned.patches)):
    np.testing.assert_allclose(np.sort(before, axis=0), np.sort(after, axis=0))


def test_equal_alignment_is_where_the_reference_is_first_reached():
  curves = {
    "rare alignment": np.array([[1.0, 2.0, 4.0], [1.0, 5.0, 6.0]]),
    "rare error": np.array([[0.5, 0.4, 0.1], [0.5, 0.3, 0.2]]),
  }
  ends = patches.summary(curves, np.array([3.0, 3.0]))
  np.testing.assert_array_equal(ends["rare error"], [0.1, 0.2])
  np.testing.assert_array_equal(ends["rare error at equal alignment"], [0.1, 0.3])
  np.testing.assert_array_equal(ends["growth of the rare alignment"], [4.0, 6.0])
  ends = patches.summary(curves, np.array([3.0, 7.0]))
  assert "rare error at equal alignment" not in ends


def test_descents_differ_in_what_their_records_say():
  config = experiment.Config()
  for methods in (patches.descents(config), experiment.mixings(config)):
    names = [(method, *where.items()) for method, where, _ in methods]
    assert len(set(names)) == len(names)
    assert len({tuple(setting) for _, _, setting in methods}) == 1
