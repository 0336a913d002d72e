import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.data.batches import batch_iterator, stack_batches


def numbers(num):
  return [{"i": np.int64(i), "x": np.full((2,), i, np.float32)} for i in range(num)]


def rows(iterator):
  return [batch["i"].tolist() for batch in iterator]


@settings(max_examples=20, deadline=None)
@given(
  num=st.integers(4, 40),
  batch_size=st.integers(1, 5),
  process_count=st.integers(1, 4),
  seed=st.integers(0, 2**32 - 1),
  shuffle=st.booleans(),
)
def test_shares_of_processes_are_disjoint_and_their_union_is_every_epoch(
  num, batch_size, process_count, seed, shuffle
):
  def epochs(process_index, **options):
    batches = rows(
      batch_iterator(
        numbers(num),
        batch_size=batch_size,
        seed=seed,
        num_epochs=2,
        shuffle=shuffle,
        process_index=process_index,
        process_count=process_count,
        **options,
      )
    )
    half = len(batches) // 2
    return sum(batches[:half], []), sum(batches[half:], []), [len(b) for b in batches]

  shares = [epochs(i, drop_remainder=False) for i in range(process_count)]
  for epoch in range(2):
    assert sorted(sum((share[epoch] for share in shares), [])) == list(range(num))
  if batch_size <= num // process_count:
    full = [epochs(i) for i in range(process_count)]
    expected = [batch_size] * (2 * (num // process_count // batch_size))
    assert [sizes for _, _, sizes in full] == [expected] * process_count
    for epoch in range(2):
      seen = sum((share[epoch] for share in full), [])
      assert len(set(seen)) == len(seen)


def test_two_processes_see_disjoint_halves():
  halves = [
    sum(
      rows(
        batch_iterator(
          numbers(12), batch_size=3, seed=0, num_epochs=1, process_index=i, process_count=2
        )
      ),
      [],
    )
    for i in range(2)
  ]
  assert [len(half) for half in halves] == [6, 6]
  assert not set(halves[0]) & set(halves[1]) and set(halves[0]) | set(halves[1]) == set(range(12))


def test_order_depends_on_the_seed_and_the_epoch_only():
  def order(seed):
    return rows(batch_iterator(numbers(30), batch_size=10, seed=seed, num_epochs=3))

  assert order(7) == order(7)
  assert order(7) != order(8)
  epochs = [sum(order(7)[k : k + 3], []) for k in (0, 3, 6)]
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert all(sorted(epoch) == list(range(30)) for epoch in epochs)


def test_every_position_is_equally_likely():
  batches = batch_iterator(numbers(8), batch_size=8, seed=0, num_epochs=800)
  counts = np.zeros((8, 8))
  for batch in batches:
    counts[np.arange(8), batch["i"]] += 1
  chi_square = ((counts - 100) ** 2 / 100).sum()
  assert chi_square < 85  # 49 degrees of freedom: the 0.999 quantile


def test_unshuffled_batches_keep_the_order_and_the_last_one_is_short():
  batches = batch_iterator(
    numbers(5), batch_size=2, seed=0, num_epochs=2, shuffle=False, drop_remainder=False
  )
  assert rows(batches) == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4]]
  batches = batch_iterator(numbers(5), batch_size=2, seed=0, num_epochs=2, shuffle=False)
  assert rows(batches) == [[0, 1], [2, 3], [0, 1], [2, 3]]


@pytest.mark.parametrize("read", [0, 1, 4, 11])
def test_a_saved_state_resumes_at_the_next_batch(read):
  def iterator():
    return batch_iterator(numbers(13), batch_size=4, seed=5)

  unbroken = iterator()
  for _ in range(read):
    next(unbroken)
  state = json.loads(json.dumps(unbroken.get_state()))
  expected = [next(unbroken) for _ in range(5)]
  resumed = iterator()
  next(resumed)
  resumed.set_state(state)
  for batch in expected:
    resumed_batch = next(resumed)
    np.testing.assert_array_equal(resumed_batch["i"], batch["i"])
    np.testing.assert_array_equal(resumed_batch["x"], batch["x"])
  # Going back on the same iterator drops what it had read ahead.
  unbroken.set_state(state)
  np.testing.assert_array_equal(next(unbroken)["i"], expected[0]["i"])


def test_transforms_see_single_examples_in_order():
  def double(example):
    assert example["x"].shape == (2,)
    return {**example, "x": 2 * example["x"]}

  def add_one(example):
    return {"i": example["i"], "y": example["x"] + 1}

  batch = next(
    batch_iterator(numbers(6), batch_size=6, seed=0, shuffle=False, transforms=(double, add_one))
  )
  assert set(batch) == {"i", "y"}
  np.testing.assert_array_equal(batch["y"], np.repeat(2 * np.arange(6)[:, None] + 1, 2, axis=1))


def test_getitems_is_used_if_the_source_has_it():
  requests = []

  class Bulk(list):
    def __getitems__(self, indices):
      requests.append(indices)
      return [self[i] for i in indices]

  batches = batch_iterator(Bulk(numbers(6)), batch_size=3, seed=0, num_epochs=1, shuffle=False)
  assert rows(batches) == [[0, 1, 2], [3, 4, 5]]
  assert sorted(requests) == [[0, 1, 2], [3, 4, 5]]


def test_an_error_in_a_transform_reaches_the_caller():
  def broken(example):
    raise RuntimeError(f"bad example {example['i']}")

  batches = batch_iterator(numbers(4), batch_size=2, seed=0, shuffle=False, transforms=(broken,))
  with pytest.raises(RuntimeError, match="bad example 0"):
    next(batches)


def test_unequal_shapes_raise_and_name_the_field():
  ragged = [{"x": np.zeros(2)}, {"x": np.zeros(3)}]
  with pytest.raises(ValueError, match=r"'x'.*\(2,\), \(3,\)"):
    next(batch_iterator(ragged, batch_size=2, seed=0))


def test_stacked_batches_group_single_batches():
  def iterator():
    return batch_iterator(numbers(14), batch_size=2, seed=3, num_epochs=1)

  single, stacked = list(iterator()), list(stack_batches(iterator(), 3))
  assert len(single) == 7 and len(stacked) == 2
  assert stacked[0]["x"].shape == (3, 2, 2)
  for group in range(2):
    for step in range(3):
      np.testing.assert_array_equal(stacked[group]["i"][step], single[3 * group + step]["i"])

  groups = stack_batches(iterator(), 3)
  next(groups)
  resumed = stack_batches(iterator(), 3)
  resumed.set_state(json.loads(json.dumps(groups.get_state())))
  np.testing.assert_array_equal(next(resumed)["i"], stacked[1]["i"])


def test_a_short_batch_cannot_be_stacked():
  short = batch_iterator(numbers(5), batch_size=3, seed=0, num_epochs=1, drop_remainder=False)
  with pytest.raises(ValueError, match="cannot be stacked"):
    next(stack_batches(short, 2))
  with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
    stack_batches(short, 0)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"batch_size": 6, "process_count": 2}, r"10 examples .*batch_size=6.*process_count=2"),
    ({"batch_size": 11}, r"10 examples .*batch_size=11"),
    ({"process_count": 11, "drop_remainder": False}, "process_count=11"),
    ({"process_count": 0}, "process_count must be at least 1, got 0"),
    ({"process_index": 2, "process_count": 2}, r"process_index .*process_count=2.*got 2"),
    ({"process_index": -1}, "process_index .*got -1"),
    ({"seed": -1}, "seed must lie .*got -1"),
    ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
  ],
)
def test_arguments_out_of_range_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    batch_iterator(numbers(10), **{"batch_size": 2, "seed": 0, **options})


def test_empty_source_raises():
  with pytest.raises(ValueError, match="source is empty"):
    batch_iterator([], batch_size=1, seed=0)
