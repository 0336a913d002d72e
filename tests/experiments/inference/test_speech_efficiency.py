import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.inference.speech_efficiency import corpora, recognizers
from experiments.inference.speech_efficiency.__main__ import PRESETS, positions_for
from experiments.inference.speech_efficiency.corpora import Corpus
from experiments.inference.speech_efficiency.recognizers import Shape
from jaxlab.data import Utterances

CONFIG = PRESETS["smoke"]
SIZES = dataclasses.replace(CONFIG, num_utterances=600, random_batch=16, num_buckets=4, pool=100)


def test_equal_lengths_need_no_padding_and_give_equal_batches():
  corpus = Corpus(np.full(96, 5.0), np.full(96, 20.0))
  budget = 16 * float(corpora.memory(5.0, 20.0))
  every = corpora.all_batches(SIZES, 0, corpus, budget)
  assert len(every) == 8
  for batches in every.values():
    assert [len(batch) for batch in batches] == [16] * 6
    assert sorted(np.concatenate(batches)) == list(range(96))
    found = corpora.describe(corpus, batches)
    assert found["audio padding"] == found["token padding"] == 0
    np.testing.assert_allclose(found["compute"], corpora.memory(5.0, 20.0))


def test_samplers_see_all_and_stay_within_the_memory():
  corpus = corpora.draw_corpus(0, 600)
  budget = 16 * float(corpora.memory(*(x.max() for x in corpus)))
  for name, batches in corpora.all_batches(SIZES, 0, corpus, budget).items():
    assert sorted(np.concatenate(batches)) == list(range(600)), name
    taken = [len(batch) * corpora.memory(*(x[batch].max() for x in corpus)) for batch in batches]
    assert max(taken) <= budget * (1 + 1e-6), name


def test_padding_and_compute_match_a_loop():
  corpus, batches = (
    corpora.draw_corpus(1, 30),
    np.split(np.random.default_rng(0).permutation(30), 5),
  )
  audio = tokens = compute = 0.0
  for batch in batches:
    longest, most = corpus.durations[batch].max(), corpus.tokens[batch].max()
    audio += sum(longest - corpus.durations[batch]) / (6 * longest) * longest
    tokens += sum(most - corpus.tokens[batch]) / (6 * most) * most
    compute += 6 * (longest + longest**2 / 60 + 0.15 * most + most**2 / 3000) / 30
  longest, most = (sum(x[batch].max() for batch in batches) for x in corpus)
  found = corpora.describe(corpus, batches)
  np.testing.assert_allclose(found["audio padding"], audio / longest)
  np.testing.assert_allclose(found["token padding"], tokens / most)
  np.testing.assert_allclose(found["compute"], compute)
  assert found["mean batch"] == 6 and found["batches"] == 5


def test_outliers_are_dropped_and_means_taken():
  found = corpora.compare_samplers(dataclasses.replace(SIZES, num_corpora=2, outlier=2.0), 3)
  kept, dropped = found[corpora.KEPT], found[corpora.DROPPED]
  assert set(kept) == set(dropped) and len(kept) == 9
  ideal = kept[corpora.ORACLE]
  assert ideal[corpora.ONCE] == 1 and 0 < ideal["correlation"] < 0.95
  for name, row in kept.items():
    assert row["compute"] >= ideal["compute"], name
  assert dropped[corpora.ORACLE]["mean batch"] < ideal["mean batch"]
  by_hand = []
  for i in (6, 7):
    corpus = corpora.draw_corpus(i, 600)
    by_hand.append(np.corrcoef(*corpus)[0, 1])
  np.testing.assert_allclose(ideal["correlation"], np.mean(by_hand))


def test_largest_batches_are_the_budget_over_the_cost():
  costs = np.array([3.0, 7.0, 11.0, 100.0])
  assert corpora.largest_batches(costs, 99.0) == [33, 14, 9, 1]


SHAPES = Shape(24, 3, 6), Shape(24, 7, 4), Shape(40, 7, 3)


@pytest.mark.parametrize("random", [True, False])
def test_plans_show_every_utterance_once_an_epoch(random):
  rng = np.random.default_rng(0)
  lengths = np.stack([rng.integers(4, 41, 20), rng.integers(2, 8, 20)], axis=1).astype(float)
  config = dataclasses.replace(CONFIG, num_steps=40)
  plan = recognizers.plan(config, SHAPES, 0, lengths, random=random)
  seen = [row[row >= 0] for row in plan.rows]
  epoch = np.concatenate(seen)[:20]
  assert sorted(epoch) == list(range(20))
  for batch, number, positions in zip(seen, plan.shape, plan.positions):
    shape = SHAPES[number]
    assert len(batch) <= shape.rows and (number == 2 or not random)
    frames, tokens = lengths[batch].max(axis=0)
    assert frames <= shape.frames and tokens <= shape.tokens
    assert positions == len(batch) * (np.ceil(frames / 4) + tokens)


def test_shapes_fit_whatever_may_be_drawn():
  config = dataclasses.replace(CONFIG, max_digits=5, num_train=200, buckets=(3, 2), random_rows=8)
  shapes = recognizers.bucket_shapes(config)
  assert shapes[-1] == Shape(100, 6, 8)
  assert 3 <= len(shapes) <= 6 and all(shape.frames % 4 == 0 for shape in shapes)
  for shape in shapes:
    assert 0.95 * 8 * 31 - shape.positions < shape.rows * shape.positions <= 8 * 31
    # The most digits that a duration can hold.
    most = max(x.tokens for x in shapes if x.frames == shape.frames)
    assert most == min(shape.frames // 4 + 1, 6)


def test_padding_changes_no_loss():
  rng = np.random.default_rng(0)
  frames = rng.standard_normal((2, 20, 16)).astype(np.float32)
  tokens = np.array([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0]])
  batch = Utterances(frames, np.array([20, 11]), tokens, np.array([4, 3]))
  wide = Utterances(
    np.pad(frames, ((0, 0), (0, 12), (0, 0)), constant_values=3.0),
    batch.frame_lengths, np.pad(tokens, ((0, 0), (0, 3))), batch.token_lengths,
  )  # fmt: skip
  loss = recognizers.text_loss(recognizers.network(CONFIG, (1, 1)))

  @jax.jit
  def mean(batch):
    params = recognizers.initial(CONFIG, (1, 1), jax.random.key(0))
    found = loss(params, {}, batch, None)
    return jnp.sum(found.values * found.weights), jnp.sum(found.weights)

  for narrow, padded in zip(mean(batch), mean(wide)):
    np.testing.assert_allclose(narrow, padded, rtol=1e-5)
  assert mean(batch)[1] == 5


def test_positions_for_a_loss():
  positions, losses = np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.0, 1.0])
  assert positions_for(positions, losses, 1.5) == 25
  assert positions_for(positions, losses, 4.0) == 10
  assert positions_for(positions, losses, 0.5) == 30
  # A loss that rises again was reached before.
  assert positions_for(positions, np.array([3.0, 1.0, 2.0]), 2.0) == 15
