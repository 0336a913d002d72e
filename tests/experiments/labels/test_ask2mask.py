"""Speech that is partly foreign, masks of equal shares, and what the rows of the table go by."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.labels.ask2mask import masks, networks, rows, speech
from experiments.labels.ask2mask.__main__ import PRESETS
from jaxlab import augment

CONFIG = dataclasses.replace(
  PRESETS["laptop"], num_labeled=50, num_validation=2, num_test=2, num_pretraining=200
)
KEY, SPAN = jax.random.key(0), CONFIG.span_length
FOREIGN = 140  # Utterances.


@jax.jit
def programs(key):
  parts = speech.draw(CONFIG, key)
  part = parts["mismatched"]
  lengths = part.lengths
  heard = {"confidence": 1.0 - part.is_corrupted, "sounds": part.sounds}
  heard["CTC confidence"] = jnp.zeros_like(heard["confidence"])
  settings = {name: rows.TABLE[name] for name in rows.TABLE}
  # The scorer is replaced by the truth.
  guides = {name: masks.guide(part, heard, setting) for name, setting in settings.items()}
  draws = {}
  for name in (rows.RANDOM, rows.BOTH, rows.ORACLE, rows.LOUD):
    draw = functools.partial(masks.draw_mask, CONFIG, guided=settings[name]["guided"])
    keys = jax.random.split(key, 40)
    draws[name] = jax.vmap(lambda key, d=draw, n=name: d(key, guides[n].scores, lengths))(keys)
  count = jnp.maximum(jnp.round(CONFIG.start_probability * lengths), 1).astype(jnp.int32)
  tops = augment.top_confidence_frames(heard["confidence"], lengths, num_frames=count)
  return parts, guides, draws, tops


PARTS, GUIDES, DRAWS, TOPS = jax.device_get(programs(KEY))
MIXED = PARTS["mismatched"]
INSIDE = np.arange(CONFIG.num_frames)[None] < MIXED.lengths[:, None]


def test_most_of_the_speech_is_foreign_and_the_rest_partly_corrupted():
  foreign = MIXED.is_corrupted[:FOREIGN]
  np.testing.assert_array_equal(foreign, INSIDE[:FOREIGN])
  broken = MIXED.is_corrupted[FOREIGN:]
  np.testing.assert_array_equal(broken.sum(1), np.round(np.float32(0.4) * MIXED.lengths[FOREIGN:]))
  clean = PARTS["matched"].frames[FOREIGN:]
  np.testing.assert_array_equal(MIXED.frames[FOREIGN:][~broken], clean[~broken])
  assert not PARTS["matched"].is_corrupted.any() and not PARTS["labeled"].is_corrupted.any()


def test_labels_are_digits_and_faint_frames_are_silent():
  part = PARTS["labeled"]
  for frames, length, labels, sounds in zip(*part[:4]):
    said = labels[labels > 0]
    assert 2 <= len(said) <= 4 and not labels[len(said) :].any() and said.max() <= 10
    heard = [x for x in sounds[:length] if x != speech.SILENCE]
    # What sounds, without repeats, is what is said, but for a digit that is said twice.
    runs = [x for i, x in enumerate(heard) if i == 0 or heard[i - 1] != x]
    assert runs == [x for i, x in enumerate(said) if i == 0 or said[i - 1] != x]
    assert not sounds[length:].any() and not frames[length:].any()
  inside = np.arange(CONFIG.num_frames)[None] < part.lengths[:, None]
  energy, silent = np.linalg.norm(part.frames, axis=-1), part.sounds == speech.SILENCE
  assert energy[inside & silent].mean() < 0.8 * energy[inside & ~silent].mean()
  assert 0.1 < silent[inside].mean() < 0.35


def test_all_rows_mask_as_many_frames_as_random_starts():
  expected = masks.expected_masked(CONFIG)
  for length in (1, 5, CONFIG.num_frames):
    slow = sum(1 - 0.92 ** min(t + 1, SPAN) for t in range(length))
    np.testing.assert_allclose(expected[length], slow)
  wanted = expected[MIXED.lengths]
  for name, draws in DRAWS.items():
    assert not draws[:, ~INSIDE].any()
    np.testing.assert_allclose(draws.sum(2).mean(), wanted.mean(), rtol=0.02, err_msg=name)
  by_length = DRAWS[rows.LOUD].sum(2).mean(0)
  assert np.abs(by_length - wanted).max() < 4 * SPAN / 2 / np.sqrt(40)


def test_a_scorer_that_is_the_truth_gives_the_row_of_the_truth():
  """The implementation check: clean starts, no weight of foreign utterances, the same masks."""
  some = np.flatnonzero((~MIXED.is_corrupted & INSIDE).sum(1) >= TOPS.sum(1))
  assert len(some) >= 200 - FOREIGN and not np.any(TOPS[some] & MIXED.is_corrupted[some])
  assert not GUIDES[rows.ORACLE].weights[:FOREIGN].any()
  assert np.all(GUIDES[rows.ORACLE].weights[FOREIGN:] > 0)
  for ours, theirs in zip(GUIDES[rows.BOTH], GUIDES[rows.ORACLE]):
    np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(DRAWS[rows.BOTH], DRAWS[rows.ORACLE])


def test_rows_go_by_what_their_names_say():
  sure = 1.0 - MIXED.is_corrupted
  mean = (sure * INSIDE).sum(1) / INSIDE.sum(1)
  for name in (rows.BOTH, rows.WEIGHTS, rows.SOUNDING):
    np.testing.assert_allclose(GUIDES[name].weights, mean, rtol=1e-6)
  for name in (rows.RANDOM, rows.FRAMES, rows.LABELS):
    np.testing.assert_array_equal(GUIDES[name].weights, 1)
  np.testing.assert_allclose(GUIDES[rows.UNSURE].scores, 1 - sure)
  sounding = sure - (MIXED.sounds == speech.SILENCE)
  np.testing.assert_allclose(GUIDES[rows.SOUNDING].scores, sounding)
  half, counts = np.unique(GUIDES[rows.HALF].order, return_counts=True)
  assert len(half) == 100 and set(counts) == {2}
  assert mean[half].min() >= np.delete(mean, half).max()
  np.testing.assert_array_equal(GUIDES[rows.FRAMES].order, np.arange(200))


def test_losses_and_errors_match_a_loop():
  config = dataclasses.replace(CONFIG, encoder=(8, 1, 2, 3))
  module, codes = networks.Encoder(config), networks.Encoder(config, 5)
  part = jax.tree.map(lambda x: x[:6], PARTS["labeled"])
  mask = DRAWS[rows.RANDOM][0][:6] * (np.arange(CONFIG.num_frames)[None] < part.lengths[:, None])
  weights = np.linspace(0, 1, 6, dtype=np.float32)
  centers = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)

  @jax.jit
  def measure(key):
    params, of_codes = (m.init(key, part.frames)["params"] for m in (module, codes))
    batch, rows_ = part[:2], (part.frames, part.lengths)
    targets = rows.nearest(part.frames, centers)
    masked = networks.masked_loss(codes, lambda key, scores, lengths: jnp.asarray(mask))
    outputs = [
      networks.label_loss(module, of_frames=True)(params, {}, (*batch, part.sounds), key),
      networks.label_loss(module, of_frames=False)(params, {}, (*batch, part.labels), key),
      masked(of_codes, {}, (*batch, targets, mask, weights), key),
    ]
    logits = module.apply({"params": params}, *rows_)
    spoiled = module.apply(
      {"params": params}, jnp.asarray(part.frames).at[:, -1].set(9.0), part.lengths
    )
    hidden = codes.apply({"params": of_codes}, *rows_, mask)
    changed = jnp.where(mask[..., None] == 1, 7.0, part.frames)
    same = codes.apply({"params": of_codes}, changed, part.lengths, mask)
    scores = [f(module, params, part) for f in (networks.frame_accuracy, networks.token_errors)]
    # The first utterance without padding.
    end, said = int(part.lengths[0]), part.labels[:1, part.labels[0] > 0]
    alone = optax.ctc_loss(logits[:1, :end], jnp.zeros((1, end)), said, jnp.zeros(said.shape))
    return outputs, logits, spoiled, hidden, same, targets, scores, alone

  found = jax.device_get(measure(KEY))
  outputs, logits, spoiled, hidden, same, targets, scores, alone = found
  inside = np.arange(CONFIG.num_frames)[None] < part.lengths[:, None]
  # What is after the end, and what is masked, is not seen.
  ends = part.lengths < CONFIG.num_frames
  np.testing.assert_allclose(spoiled[ends][inside[ends]], logits[ends][inside[ends]], atol=1e-5)
  np.testing.assert_allclose(hidden, same, atol=1e-5)
  distance = np.square(part.frames[:, :, None] - centers).sum(-1)
  np.testing.assert_array_equal(targets[inside], distance.argmin(-1)[inside])

  log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))  # noqa: E731
  values = -np.take_along_axis(log(logits), part.sounds[..., None], -1)[..., 0]
  np.testing.assert_allclose(outputs[0].values, values, rtol=1e-4)
  np.testing.assert_array_equal(outputs[0].weights, inside)
  rows_ = [-np.take_along_axis(log(x), y[:, None], -1)[:, 0] for x, y in zip(hidden, targets)]
  slow = [w * x[m == 1].mean() for w, x, m in zip(weights, rows_, mask)]
  np.testing.assert_allclose(outputs[2].values, slow, rtol=1e-4)
  np.testing.assert_allclose(outputs[1].values[:1], alone, rtol=1e-4)

  best = logits.argmax(-1)
  np.testing.assert_allclose(scores[0], (best == part.sounds)[inside].mean(), rtol=1e-5)
  wrong = 0
  for row, length, labels in zip(best, part.lengths, part.labels):
    read = [x for i, x in enumerate(row[:length]) if x and (i == 0 or row[i - 1] != x)]
    wrong += distance_of(read, labels[labels > 0])
  np.testing.assert_allclose(scores[1], 100 * wrong / (part.labels > 0).sum(), rtol=1e-5)


def distance_of(some, others):
  row = list(range(len(others) + 1))
  for i, x in enumerate(some, 1):
    last, row = row, [i]
    for j, y in enumerate(others, 1):
      row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
  return row[-1]
