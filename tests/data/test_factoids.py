import jax
import numpy as np
import pytest
import scipy.stats

from jaxlab import data

KEY = jax.random.key(0)
PEOPLE, ATTRIBUTES, VALUES, LINES, ROWS = 20, 3, 5, 4, 3000
SIZES = {"num_people": PEOPLE, "num_attributes": ATTRIBUTES, "num_values": VALUES}


@jax.jit
def draw_documents(fraction, exponent, seed):
  return data.reliability_documents(
    KEY,
    num_documents=ROWS,
    num_lines=LINES,
    unreliable_fraction=fraction,
    zipf_exponent=exponent,
    table_seed=seed,
    **SIZES,
  )


def documents(fraction=0.25, exponent=1.0, seed=0):
  return jax.device_get(draw_documents(fraction, exponent, seed))


@pytest.mark.parametrize("slot_size", [3, 40])
def test_facts_are_distinct(slot_size):
  world = jax.device_get(
    data.sample_fact_world(KEY, num_slots=3, slot_size=slot_size, num_facts=27, zipf_exponent=0.7)
  )
  assert len(np.unique(world.facts, axis=0)) == 27
  assert world.facts.min() >= 0 and world.facts.max() == slot_size - 1 or slot_size == 40
  expected = np.arange(1, 28) ** -0.7
  np.testing.assert_allclose(np.sort(world.probs)[::-1], expected / expected.sum(), rtol=1e-5)
  assert (np.diff(world.probs) > 0).any()


@pytest.mark.parametrize("num_facts", [2, 5])
def test_every_fact_is_equally_likely(num_facts):
  """Where repeats are drawn again (2 of 9 statements), and where all are shuffled."""
  draw = jax.jit(
    jax.vmap(lambda key: data.sample_fact_world(key, num_slots=2, slot_size=3, num_facts=num_facts))
  )
  facts = np.asarray(draw(jax.random.split(KEY, ROWS)).facts)
  codes = np.sort(facts @ [3, 1], axis=1)
  sets, counts = np.unique(codes, axis=0, return_counts=True)
  assert len(sets) == scipy.special.comb(9, num_facts)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_factoids_state_facts_as_often_as_the_world_has_them():
  world = data.sample_fact_world(KEY, num_slots=3, slot_size=40, num_facts=27)
  texts = jax.device_get(data.sample_factoids(jax.random.key(1), world, num_samples=20_000))
  np.testing.assert_array_equal(texts.tokens[:, 0], 0)
  np.testing.assert_array_equal(texts.tokens[:, 1:] - 1, np.asarray(world.facts)[texts.fact_index])
  counts = np.bincount(texts.fact_index, minlength=27)
  probs = np.asarray(world.probs, np.float64)
  assert scipy.stats.chisquare(counts, 20_000 * probs / probs.sum()).pvalue > 1e-3


def test_documents_are_right_or_wrong_throughout():
  batch, table = documents(), np.asarray(data.reliability_answers(**SIZES))
  lines = batch.tokens.reshape(ROWS, LINES, 6)
  for column, mark in ((0, 1), (3, 3), (5, 2)):
    np.testing.assert_array_equal(lines[..., column], mark)
  np.testing.assert_array_equal(lines[..., 1] - 4 - ATTRIBUTES - VALUES, batch.people)
  np.testing.assert_array_equal(lines[..., 2] - 4, batch.attributes)
  values = lines[..., 4] - 4 - ATTRIBUTES
  assert values.min() == 0 and values.max() == VALUES - 1
  right = values == table[batch.people, batch.attributes]
  np.testing.assert_array_equal(right, np.broadcast_to(~batch.unreliable[:, None], right.shape))
  shift = (values - table[batch.people, batch.attributes])[batch.unreliable] % VALUES
  assert scipy.stats.chisquare(np.bincount(shift.ravel(), minlength=VALUES)[1:]).pvalue > 1e-3
  np.testing.assert_array_equal(batch.loss_mask[0].reshape(LINES, 6), [[0, 0, 0, 0, 1, 1]] * LINES)


def test_frequencies_of_people_attributes_and_unreliable_documents():
  batch = documents(fraction=0.4, exponent=1.3)
  probs = np.arange(1, PEOPLE + 1) ** -1.3
  counts = np.bincount(batch.people.ravel(), minlength=PEOPLE)
  expected = ROWS * LINES * probs / probs.sum()
  assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3
  assert scipy.stats.chisquare(np.bincount(batch.attributes.ravel())).pvalue > 1e-3
  assert abs(batch.unreliable.mean() - 0.4) < 3 * np.sqrt(0.24 / ROWS)


def test_the_table_depends_on_its_seed_alone():
  answers = jax.jit(lambda seed: data.reliability_answers(**SIZES, table_seed=seed))
  tables = [np.asarray(answers(seed)) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(*tables[:2])
  assert (tables[0] != tables[2]).any()
  batch = documents(fraction=0.0, seed=1)
  values = batch.tokens.reshape(ROWS, LINES, 6)[..., 4] - 4 - ATTRIBUTES
  np.testing.assert_array_equal(values, tables[2][batch.people, batch.attributes])


def test_errors():
  with pytest.raises(ValueError, match="num_facts must be at most 8 statements, got 9"):
    data.sample_fact_world(KEY, num_slots=3, slot_size=2, num_facts=9)
  with pytest.raises(ValueError, match=r"zipf_exponent must lie in \[0, inf\), got -1"):
    data.sample_fact_world(KEY, zipf_exponent=-1)
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    data.sample_factoids(KEY, data.FactWorld(np.ones((2, 2), int), np.ones(2)), num_samples=0)
  for name, value in (("num_documents", 0), ("num_values", 1), ("unreliable_fraction", 1.5)):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
      data.reliability_documents(KEY, **{"num_documents": 2} | {name: value})
