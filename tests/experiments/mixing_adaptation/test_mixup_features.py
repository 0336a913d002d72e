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


def test_descents_differ_in_what_their_records_say():
  descents = patches.descents(experiment.Config())
  names = [(method, *where.items()) for method, where, _ in descents]
  assert len(set(names)) == len(names)
  assert len({tuple(setting) for _, _, setting in descents}) == 1
