import functools

import jax
import numpy as np
import pytest

from jaxlab.samplers import tasks

KEY, TASK_KEY = jax.random.key(0), jax.random.key(7)
MEMBER_KEYS = [jax.random.fold_in(TASK_KEY, m) for m in range(3)]
RNG = np.random.default_rng(0)
B, N, D, OUT, K = 64, 6, 5, 3, 4
INPUTS = RNG.normal(size=(12, D)).astype(np.float32)
LABELS = RNG.integers(0, K, 12).astype(np.int32)
SIZES = {"input_dim": D, "output_dim": OUT, "num_classes": K}


@functools.cache
def draw_tasks(batch_size=B, **settings):
  return jax.jit(
    lambda key, task_key, identity_prob: tasks.sample_projection_tasks(
      key,
      batch_size=batch_size,
      task_key=task_key,
      identity_prob=identity_prob,
      **SIZES,
      **settings,
    )
  )


def test_a_task_projects_and_renames():
  inputs = RNG.normal(size=(3, N, D)).astype(np.float32)
  labels = RNG.integers(0, K, (3, N))
  projections = RNG.normal(size=(3, OUT, D)).astype(np.float32)
  permutations = np.array([RNG.permutation(K) for _ in range(3)])
  apply = jax.jit(tasks.apply_projection_task)
  batch = apply(inputs, labels, projections, permutations)
  assert batch.x is batch.inputs and batch.y is batch.targets is batch.labels
  batch = jax.tree.map(np.asarray, batch)
  for b in range(3):
    for i in range(N):
      np.testing.assert_allclose(batch.inputs[b, i], projections[b] @ inputs[b, i], rtol=1e-4)
      assert batch.labels[b, i] == permutations[b, labels[b, i]]
  inverse = np.argsort(permutations, axis=1)
  again = apply(inputs, batch.labels, projections, inverse)
  np.testing.assert_array_equal(again.labels, labels)
  labels[0, :2] = -1, K
  outside = np.asarray(apply(inputs, labels, projections, permutations).labels)
  assert (outside[0, :2] == K).all()
  np.testing.assert_array_equal(outside[1:], batch.labels[1:])


def test_nearest_neighbors_see_the_same_in_any_projection_of_their_own():
  """Projecting sequences is projecting the data set."""
  task = jax.tree.map(np.asarray, draw_tasks(1)(KEY, KEY, 0.0))
  batch = jax.jit(tasks.apply_projection_task)(INPUTS[None], LABELS[None], *task)
  batch = jax.tree.map(np.asarray, batch)

  def nearest(points, names):
    distances = np.square(points[:, None] - points[None]).sum(-1) + 1e9 * np.eye(len(points))
    return names[distances.argmin(axis=1)]

  base = nearest(INPUTS @ task.projection[0].T, LABELS)
  np.testing.assert_array_equal(
    nearest(batch.inputs[0], batch.labels[0]), task.permutation[0][base]
  )


def test_new_tasks_have_random_matrices_and_permutations():
  drawn = jax.tree.map(np.asarray, draw_tasks(4096)(KEY, KEY, 0.0))
  assert drawn.projection.dtype == np.float32 and drawn.permutation.dtype == np.int32
  np.testing.assert_allclose(drawn.projection.std(), D**-0.5, rtol=0.02)
  # The norm of a vector is kept on average, up to the ratio of the dimensions.
  vector = INPUTS[0]
  norms = np.square(drawn.projection @ vector).sum(-1)
  expected = OUT / D * np.square(vector).sum()
  assert abs(norms.mean() - expected) < 4 * norms.std() / len(norms) ** 0.5
  assert (np.sort(drawn.permutation, axis=1) == np.arange(K)).all()
  for place in range(K):
    counts = np.bincount(drawn.permutation[:, place], minlength=K)
    assert (abs(counts - 1024) < 4 * np.sqrt(4096 * 0.25 * 0.75)).all()
  # So that the first label of a sequence is anybody's guess.
  assert abs((drawn.permutation[:, 2] == 1).mean() - 1 / K) < 3 * np.sqrt(3 / 16 / 4096)


def test_identity_prob():
  kept = np.asarray(draw_tasks(4096)(KEY, KEY, 1.0).permutation)
  assert (kept == np.arange(K)).all()
  half = np.asarray(draw_tasks(4096)(KEY, KEY, 0.5).permutation)
  share = (half == np.arange(K)).all(axis=1).mean()
  expected = 0.5 + 0.5 / 24
  assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4096)


def test_a_finite_set_of_tasks():
  drawn = jax.tree.map(np.asarray, draw_tasks(num_tasks=3)(KEY, TASK_KEY, 0.5))
  one = jax.jit(functools.partial(tasks.projection_task, **SIZES, identity_prob=0.5))
  members = [jax.tree.map(np.asarray, one(key)) for key in MEMBER_KEYS]
  found = []
  for b in range(B):
    matches = [np.allclose(drawn.projection[b], m.projection, rtol=1e-5) for m in members]
    found.append(matches.index(True))
    np.testing.assert_array_equal(drawn.permutation[b], members[found[-1]].permutation)
  assert set(found) == {0, 1, 2}
  alone = jax.tree.map(np.asarray, draw_tasks(num_tasks=1)(KEY, TASK_KEY, 0.5))
  assert (alone.projection == alone.projection[:1]).all()
  np.testing.assert_allclose(alone.projection[0], members[0].projection, rtol=1e-5)


def test_sequences_are_drawn_without_replacement():
  draw = jax.jit(
    functools.partial(
      tasks.sample_task_sequences,
      batch_size=B,
      sequence_length=N,
      output_dim=D,
      num_classes=K,
      num_tasks=1,
      task_key=TASK_KEY,
    )
  )
  batch = jax.tree.map(np.asarray, draw(KEY, INPUTS, LABELS))
  assert batch.inputs.shape == (B, N, D) and batch.labels.shape == (B, N)
  one = functools.partial(tasks.projection_task, input_dim=D, output_dim=D, num_classes=K)
  task = jax.tree.map(np.asarray, jax.jit(one)(MEMBER_KEYS[0]))
  projected = INPUTS @ task.projection.T
  gaps = np.square(batch.inputs[:, :, None] - projected[None, None]).sum(-1)
  chosen = gaps.argmin(-1)
  assert gaps.min(-1).max() < 1e-8
  assert all(len(set(row)) == N for row in chosen)
  np.testing.assert_array_equal(batch.labels, task.permutation[LABELS[chosen]])
  counts = np.bincount(chosen.ravel(), minlength=12)
  assert (abs(counts - B / 2) < 5 * np.sqrt(B / 4)).all()
  few = jax.tree.map(np.asarray, draw(KEY, INPUTS[:2], LABELS[:2]))
  assert few.inputs.shape == (B, N, D)
  gaps = np.square(few.inputs[:, :, None] - projected[None, None, :2]).sum(-1)
  assert gaps.min(-1).max() < 1e-8


def test_previous_label_one_hot():
  labels = np.array([[1, 3, 0]])
  encode = jax.jit(functools.partial(tasks.previous_label_one_hot, num_classes=K))
  encoded = np.asarray(encode(labels))
  expected = np.zeros((1, 3, K))
  expected[0, 1, 1] = expected[0, 2, 3] = 1
  np.testing.assert_array_equal(encoded, expected)
  outside = np.asarray(encode(np.array([[K, -1, 0]])))
  assert not outside[0, 0].any() and np.isnan(outside[0, 1:]).all()


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: tasks.projection_task(KEY, **SIZES, identity_prob=1.5), "identity_prob .*1.5"),
    (lambda: tasks.sample_projection_tasks(KEY, batch_size=2, **SIZES, num_tasks=-1), "num_tasks"),
    (lambda: tasks.sample_projection_tasks(KEY, batch_size=2, **SIZES, num_tasks=2), "task_key"),
    (lambda: tasks.sample_projection_tasks(KEY, batch_size=0, **SIZES), "batch_size"),
    (lambda: tasks.previous_label_one_hot([[K]], num_classes=K), "labels .*4"),
    (
      lambda: tasks.sample_task_sequences(
        KEY,
        INPUTS[:0],
        LABELS[:0],
        batch_size=1,
        sequence_length=1,
        output_dim=1,
        num_classes=2,
      ),
      "inputs must not be empty",
    ),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
