import numpy as np
import pytest

from jaxlab.data import SeededBatches, draw_key_data, prior_batches

OPTIONS = dict(seed=3, batch_size=8, max_context=6, group_size=2)


def batches(seed=1):
  return SeededBatches(lambda rng: draw_key_data(rng, (2, 3)), seed=seed)


def test_batches_go_on_where_they_stopped():
  unbroken = batches()
  first, second = next(unbroken), next(unbroken)
  assert first.shape == (2, 3, 2) and first.dtype == np.uint32
  assert np.any(first != second) and np.any(first != next(batches(seed=2)))
  resumed = batches()
  resumed.set_state({"position": 1})
  np.testing.assert_array_equal(next(resumed), second)
  assert resumed.get_state() == unbroken.get_state() == {"position": 2}


def test_prior_batches_are_a_function_of_seed_and_position():
  seen = [next(batches) for batches in [prior_batches(**OPTIONS)] for _ in range(3)]
  resumed = prior_batches(**OPTIONS)
  resumed.set_state({"position": 2})
  again = next(resumed)
  for name, shape in (("key", (4, 2)), ("num_context", (4,))):
    np.testing.assert_array_equal(seen[2][name], again[name])
    assert again[name].shape == shape
  assert not np.array_equal(seen[0]["key"], seen[1]["key"])
  other = next(prior_batches(**{**OPTIONS, "seed": 4}))
  assert not np.array_equal(seen[0]["key"], other["key"])


def test_context_sizes_are_shared_by_a_step_and_keep_to_their_range():
  sizes = next(prior_batches(**OPTIONS, min_context=2, steps_per_call=50))["num_context"]
  assert sizes.shape == (50, 4) and sizes.dtype == np.int32
  assert (sizes == sizes[:, :1]).all()
  assert set(np.unique(sizes)) == {2, 3, 4, 5}


def test_weighted_context_sizes_prefer_the_large_ones():
  options = {**OPTIONS, "batch_size": 2, "scheme": "weighted", "steps_per_call": 20_000}
  counts = np.bincount(next(prior_batches(**options))["num_context"][:, 0], minlength=6)
  expected = 1 / np.arange(6, 0, -1)
  np.testing.assert_allclose(counts / 20_000, expected / expected.sum(), atol=0.015)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"group_size": 3}, "batch_size 8.*group_size 3"),
    ({"group_size": 0}, "group_size .* got 0"),
    ({"batch_size": 0}, "batch_size .* got 0"),
    ({"steps_per_call": 0}, "steps_per_call .* got 0"),
    ({"min_context": 6}, "min_context.*6"),
    ({"max_context": 0}, "max_context"),
    ({"scheme": "none"}, "scheme"),
  ],
)
def test_prior_batches_errors(options, message):
  with pytest.raises(ValueError, match=message):
    prior_batches(**{**OPTIONS, **options})
