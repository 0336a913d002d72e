"""Blocks of the table and blocks that count on, what is right of them, and the threshold."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.entropy_adaptive_decoding import regimes as texts
from experiments.inference.entropy_adaptive_decoding import switching

OWN = texts.Regimes(modulus=5, num_blocks=3, block_length=4, hard_share=0.5, noise=0.0)
N, P = 40, OWN.prompt_length
RNG = np.random.default_rng(0)


@jax.jit
def programs(key):
  table = texts.draw_table(key, OWN)
  drawn = texts.draw_texts(key, OWN, table, N)
  noisy = texts.draw_texts(key, dataclasses.replace(OWN, noise=0.4), table, 4 * N)
  return table, drawn, noisy, texts.hard_places(OWN, drawn.tokens[:, :P])


TABLE, TEXTS, NOISY, PLACES = jax.device_get(programs(jax.random.key(0)))
check = jax.jit(
  lambda tokens: texts.check_response(OWN, jnp.array(TABLE), tokens[:, :P], tokens[:, P:])
)


def slow_validity(row):
  """Markers and values that are right, by a loop."""
  kinds, (older, newer) = row[: OWN.num_blocks], row[OWN.num_blocks : P] - texts.FIRST_VALUE
  place, markers, values = P, [], []
  for kind in kinds:
    markers.append(row[place] == kind)
    for j in range(1, 1 + OWN.block_length):
      value = row[place + j] - texts.FIRST_VALUE
      right = TABLE[newer, older] if kind == texts.HARD else (newer + 1) % OWN.modulus
      values.append(min(older, newer, value) >= 0 and value == right)
      older, newer = newer, value
    place += 1 + OWN.block_length
  return markers, values


def test_texts_follow_the_table_and_are_valid():
  for column in TABLE:
    assert sorted(column) == list(range(OWN.modulus))
  assert TEXTS.tokens.shape == (N, P + OWN.response_length) == TEXTS.loss_mask.shape
  np.testing.assert_array_equal(TEXTS.loss_mask[0], np.arange(len(TEXTS.tokens[0])) >= P)
  for row in TEXTS.tokens:
    assert all(map(all, slow_validity(row)))
  hard = TEXTS.tokens[:, : OWN.num_blocks] == texts.HARD
  assert 0.3 < hard.mean() < 0.7
  in_blocks = PLACES.reshape(N, OWN.num_blocks, -1)
  assert not in_blocks[..., 0].any()
  np.testing.assert_array_equal(in_blocks[..., 1:].all(-1), hard)
  np.testing.assert_array_equal(in_blocks[..., 1:].any(-1), hard)


def test_noise_changes_hard_values_alone():
  checked = jax.device_get(check(NOISY.tokens))
  assert checked.markers.all() and checked.values[~checked.hard].all()
  share = checked.values[checked.hard].mean()
  expected = 1 - 0.4 * (1 - 1 / OWN.modulus)
  assert abs(share - expected) < 0.06


def test_errors_are_counted_by_what_is_shown():
  tokens = TEXTS.tokens.copy()
  response = tokens[:, P:]
  others = RNG.integers(0, OWN.vocab_size, response.shape)
  response[...] = np.where(RNG.random(response.shape) < 0.2, others, response)
  checked = jax.device_get(check(tokens))
  for i, row in enumerate(tokens):
    markers, values = slow_validity(row)
    np.testing.assert_array_equal(checked.markers[i], markers)
    np.testing.assert_array_equal(checked.values[i].ravel(), values)


def test_the_smallest_threshold_with_few_tokens_by_the_large_model_is_chosen():
  config = types.SimpleNamespace(most_share=0.5)
  for shares, expected in (([0.7, 0.5, 0.1], 1), ([0.2, 0.1, 0.0], 0), ([0.9, 0.8, 0.7], 2)):
    curve = {"validation share": jnp.array(shares)}
    assert switching.cheap_enough(config, curve) == expected
