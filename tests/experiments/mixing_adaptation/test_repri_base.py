import numpy as np

from experiments.mixing_adaptation import repri, repri_base


def test_base_masks_number_the_base_classes_and_keep_what_is_ignored():
  masks = np.array([[[0, 9], [3, 3]], [[255, 1], [1, 1]]]).repeat(2, 1).repeat(2, 2)
  split = repri_base.base_batch(None, masks, repri.PRESETS["smoke"])
  np.testing.assert_array_equal(split.labels, [[[0, 0], [3, 3]], [[255, 1], [1, 1]]])
