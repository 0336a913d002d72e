import jax
import numpy as np
import pytest

from jaxlab import data


def test_rows_are_disjoint_and_balanced_per_class():
  labels = np.random.default_rng(0).integers(0, 4, 60)
  split = data.few_shot_split(
    jax.random.key(0), labels, num_classes=4, num_shots=3, num_validation_shots=2
  )
  assert split.train.dtype == split.validation.dtype == np.int32
  np.testing.assert_array_equal(labels[split.train], np.repeat(np.arange(4), 3))
  np.testing.assert_array_equal(labels[split.validation], np.repeat(np.arange(4), 2))
  rows = np.concatenate([split.train, split.validation, np.flatnonzero(split.rest)])
  np.testing.assert_array_equal(np.sort(rows), np.arange(60))


def test_split_depends_on_the_key():
  labels = np.arange(100) % 2

  def draw(key):
    return data.few_shot_split(key, labels, num_classes=2, num_shots=5).train

  np.testing.assert_array_equal(draw(jax.random.key(1)), draw(jax.random.PRNGKey(1)))
  assert np.any(draw(jax.random.key(1)) != draw(jax.random.key(2)))


def test_every_row_is_equally_likely():
  labels = np.zeros(5, int)
  counts = np.zeros(5)
  for seed in range(500):
    split = data.few_shot_split(
      jax.random.key(seed), labels, num_classes=1, num_shots=1, num_validation_shots=0
    )
    counts[split.train] += 1
    assert len(split.validation) == 0
  assert np.all(np.abs(counts - 100) < 4 * np.sqrt(80))


def test_other_labels_stay_in_the_rest():
  labels = np.array([0, 0, 1, 1, 7, -1])
  split = data.few_shot_split(jax.random.key(0), labels, num_classes=2, num_shots=1)
  np.testing.assert_array_equal(np.flatnonzero(split.rest), [4, 5])


def test_bad_arguments():
  key, labels = jax.random.key(0), np.array([0, 0, 0, 1, 1])
  with pytest.raises(ValueError, match="class 1 has 2 rows, 3 are needed"):
    data.few_shot_split(key, labels, num_classes=2, num_shots=2)
  for name, value in (("num_shots", 0), ("num_classes", 0), ("num_validation_shots", -1)):
    arguments = {"num_classes": 2, "num_shots": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least .*{value}"):
      data.few_shot_split(key, labels, **arguments)
  with pytest.raises(ValueError, match="labels"):
    data.few_shot_split(key, labels.astype(float), num_classes=2, num_shots=1)


def test_every_row_is_predicted_by_a_model_that_did_not_see_it():
  labels = np.repeat([0, 1, 2], (23, 11, 4))
  inputs = np.arange(38.0)[:, None]
  folds = []

  def fit(inputs, labels):
    folds.append((set(inputs[:, 0]), np.bincount(labels, minlength=3)))
    return set(inputs[:, 0])

  def predict(seen, inputs):
    assert not seen & set(inputs[:, 0]) and len(seen) + len(inputs) == 38
    return np.stack([inputs[:, 0], np.full(len(inputs), len(folds))], axis=1)

  probs = data.cross_validated_probabilities(fit, predict, inputs, labels, num_folds=4, seed=1)
  assert probs.dtype == np.float32
  np.testing.assert_array_equal(probs[:, 0], inputs[:, 0])
  assert np.ptp(np.bincount(probs[:, 1].astype(int))[1:]) <= 1
  counts = np.array([counts for _, counts in folds])
  assert (np.ptp(counts, axis=0) <= 1).all()
  again = data.cross_validated_probabilities(fit, predict, inputs, labels, num_folds=4, seed=2)
  assert (again[:, 1] - 4 != probs[:, 1]).any()


def test_cross_validation_refuses_what_cannot_be_right():
  inputs, labels = np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 1])

  def run(predict=lambda model, x: np.ones((len(x), 2)), inputs=inputs, **kwargs):
    return data.cross_validated_probabilities(lambda *_: None, predict, inputs, labels, **kwargs)

  for num_folds, text in (1, "num_folds must be at least 2, got 1"), (7, "at most 6, .* got 7"):
    with pytest.raises(ValueError, match=text):
      run(num_folds=num_folds)
  with pytest.raises(ValueError, match=r"inputs must have 6 rows, got shape \[5, 2\]"):
    run(inputs=inputs[:5])
  with pytest.raises(ValueError, match=r"probabilities 2 x k for fold 0, got shape \[2\]"):
    run(lambda model, x: np.ones(len(x)), num_folds=3)
  shapes = iter([2, 1])
  with pytest.raises(ValueError, match=r"probabilities 3 x 2 for fold 1, got shape \[3, 1\]"):
    run(lambda model, x: np.ones((len(x), next(shapes))), num_folds=2)


LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 40))


@pytest.mark.parametrize("mismatch", [0.0, 0.4, 0.8])
def test_mismatch_is_the_share_of_unknown_classes(mismatch):
  split = data.mismatch_split(
    LABELS, target_classes=[4, 1], num_labeled=3, mismatch=mismatch, num_unlabeled_target=20
  )
  np.testing.assert_array_equal(LABELS[split.labeled], [4, 4, 4, 1, 1, 1])
  assert len(split.unlabeled) == {0.0: 20, 0.4: 34, 0.8: 100}[mismatch]
  np.testing.assert_array_equal(split.is_unknown, ~np.isin(LABELS[split.unlabeled], [1, 4]))
  assert np.sum(~split.is_unknown) == 20 and len(split.rest) == 54
  rows = np.concatenate([split.labeled, split.unlabeled, split.rest])
  assert len(np.unique(rows)) == len(rows) and rows.dtype == np.int64
  assert np.isin(LABELS[split.rest], [1, 4]).all()
  plain = data.mismatch_split(
    LABELS, target_classes=[4, 1], num_labeled=3, mismatch=0.0, num_unlabeled_target=20
  )
  target_rows = split.unlabeled[~split.is_unknown]
  np.testing.assert_array_equal(np.sort(target_rows), np.sort(plain.unlabeled))


def test_mismatch_takes_all_rows_and_depends_on_the_seed():
  def draw(seed):
    return data.mismatch_split(LABELS, target_classes=[0], num_labeled=2, mismatch=0.5, seed=seed)

  assert len(draw(0).rest) == 0 and np.sum(~draw(0).is_unknown) == 38
  np.testing.assert_array_equal(draw(1).unlabeled, draw(1).unlabeled)
  assert np.any(draw(1).labeled != draw(2).labeled)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mismatch": 1.0}, r"mismatch must lie in \[0, 1\), got 1.0"),
    ({"mismatch": 0.95}, "mismatch=0.95 needs 380 rows of unknown classes, got 200"),
    ({"num_labeled": 41}, "class 2 has 40 rows"),
    ({"num_labeled": 0}, "num_labeled must be at least 1"),
    ({"num_unlabeled_target": 39}, "num_unlabeled_target must be at most the 38 rows left"),
    ({"target_classes": [2, 2]}, "target_classes must be distinct"),
  ],
)
def test_impossible_mismatch_splits(changes, message):
  arguments = {
    "target_classes": [2],
    "num_labeled": 2,
    "mismatch": 0.5,
    "num_unlabeled_target": 20,
  }
  with pytest.raises(ValueError, match=message):
    data.mismatch_split(LABELS, **(arguments | changes))
