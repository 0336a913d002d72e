import numpy as np

from experiments.kit.seeded_batches import SeededBatches, key_data


def batches(seed=1):
  return SeededBatches(lambda rng: key_data(rng, (2, 3)), seed=seed)


def test_batches_go_on_where_they_stopped():
  unbroken = batches()
  first, second = next(unbroken), next(unbroken)
  assert first.shape == (2, 3, 2) and first.dtype == np.uint32
  assert np.any(first != second) and np.any(first != next(batches(seed=2)))
  resumed = batches()
  resumed.set_state({"position": 1})
  np.testing.assert_array_equal(next(resumed), second)
  assert resumed.get_state() == unbroken.get_state() == {"position": 2}
