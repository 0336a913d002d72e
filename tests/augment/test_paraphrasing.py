import jax
import numpy as np
import pytest

from jaxlab import augment

# Words are 1 to 9, fillers 10 and 11, entities 12 to 15, relations 16 to 19 with synonyms 20 to 23.
V, ROWS, PAD = 24, 4000, 0
TEMPLATES = ((1, 2, -1, 3, -2, 4), (-2, 5, 6, -1), (7, -1, 4, -2, 8, 2, 4))
SYNONYMS = -np.ones((V, 2), np.int32)
SYNONYMS[16:20, 1] = np.arange(20, 24)
SYNONYMS[2] = [9, 5]
GRAMMAR = augment.ParaphraseGrammar(SYNONYMS, TEMPLATES, [10, 11])
KEY = jax.random.key(0)
say = jax.jit(augment.paraphrase, static_argnames="grammar")


def question(template, relation, entity):
  return [relation if x == -1 else entity if x == -2 else x for x in template]


def rows_of(template):
  """Marks, questions and choices, padded; and what they are made of."""
  rng = np.random.default_rng(0)
  parts = rng.integers(16, 20, ROWS), rng.integers(12, 16, ROWS), rng.integers(12, 16, (ROWS, 3))
  rows = [[13, *question(template, r, e), *choices] for r, e, choices in zip(*parts)]
  return np.array([row + [PAD] * (12 - len(row)) for row in rows], np.int32), parts


def is_synonym(token, of):
  return token == of or token in SYNONYMS[of]


def parse(row):
  """Relation, entity, choices and template of a row, by a search over all questions."""
  row = [x for x in row if x not in (10, 11, PAD)]
  for index, template in enumerate(TEMPLATES):
    for relation in range(16, 20):
      for entity in range(12, 16):
        asked = question(template, relation, entity)
        found = row[1 : 1 + len(asked)]
        if len(row) == len(asked) + 4 and all(map(is_synonym, found, asked)):
          return relation, entity, tuple(row[1 + len(asked) :]), index
  return None


@pytest.mark.parametrize("template", range(3))
def test_what_is_asked_stays(template):
  tokens, (relations, entities, choices) = rows_of(TEMPLATES[template])
  spoken = np.asarray(say(KEY, tokens, GRAMMAR, strength=1.0))
  assert spoken.shape == (ROWS, 12 + GRAMMAR.extra_length) and spoken.dtype == np.int32
  others = set()
  for row, *asked in zip(spoken[:300], relations, entities, map(tuple, choices)):
    *meant, other = parse(row)
    assert meant == asked and row[0] == 13
    others.add(other)
    length = np.count_nonzero(row)
    assert not row[length:].any()
  assert others == {0, 1, 2} - {template}


def test_strength_0_changes_nothing():
  tokens, _ = rows_of(TEMPLATES[0])
  spoken = np.asarray(say(KEY, tokens, GRAMMAR, strength=0.0))
  np.testing.assert_array_equal(spoken[:, :12], tokens)
  assert not spoken[:, 12:].any() and GRAMMAR.extra_length == 7 + 5 - 4


def test_frequencies_match_the_strength():
  tokens, (relations, _, _) = rows_of(TEMPLATES[0])
  spoken = np.asarray(say(KEY, tokens, GRAMMAR, strength=0.4))
  meant = [parse(row) for row in spoken]
  kept = np.array([index == 0 for *_, index in meant])
  shares = [(kept, 0.6), (np.array([m[3] == 1 for m in meant])[~kept], 0.5)]
  # In its own template a question has four words before which a filler may stand.
  fillers = np.isin(spoken[kept], (10, 11))
  shares.append((fillers.sum(1) / 4, 0.1))
  shares.append(((spoken[kept] == 10).sum(1)[fillers.any(1)] / fillers.sum(1)[fillers.any(1)], 0.5))
  shares.append(((spoken >= 20).any(1), 0.4))
  words = spoken[kept & ~np.isin(spoken, (10, 11)).any(1)][:, 2]
  assert set(words) == {2, 5, 9}
  shares += [(words != 2, 0.4), (words[words != 2] == 9, 0.5)]
  for values, expected in shares:
    error = np.sqrt(expected * (1 - expected) / len(values))
    assert abs(np.mean(values) - expected) < 4 * error, (np.mean(values), expected)
  np.testing.assert_array_equal(
    spoken.max(1)[(spoken >= 20).any(1)] - 4, relations[(spoken >= 20).any(1)]
  )


def test_rows_without_a_question_keep_their_order():
  rows = np.full((ROWS, 12), PAD, np.int32)
  rows[:, :6] = [1, 2, 16, 3, 12, 5]  # The last word is wrong.
  rows[0, 5] = PAD  # It ends early.
  rows[1, :6] = [1, 2, 3, 3, 12, 4]  # A word in a slot.
  spoken = np.asarray(say(KEY, rows, GRAMMAR, strength=1.0))
  assert not np.isin(spoken, (10, 11)).any() and not spoken[:, 6:].any()
  expected = [1, {5, 9}, 20, 3, 12]
  for row in spoken[2:50]:
    assert row[1] in expected[1] and [row[0], *row[2:5]] == [1, 20, 3, 12]
  assert list(spoken[1, 2:5]) == [3, 3, 12]


def test_grammars_of_one_template_or_without_fillers():
  tokens, _ = rows_of(TEMPLATES[0])
  plain = augment.ParaphraseGrammar(-np.ones((V, 1), int), TEMPLATES[:1], ())
  np.testing.assert_array_equal(say(KEY, tokens, plain, strength=1.0), tokens)
  words = augment.ParaphraseGrammar(SYNONYMS, (), ())
  spoken = np.asarray(say(KEY, tokens, words, strength=1.0))
  assert (
    spoken.shape == tokens.shape and ((spoken != tokens) == (SYNONYMS[tokens] >= 0).any(-1)).all()
  )
  assert plain == augment.ParaphraseGrammar(-np.ones((V, 1), int), [list(TEMPLATES[0])], [])


@pytest.mark.parametrize(
  ("text", "choice"),
  [
    ("Answer: C", 2),
    ("I think A. Answer: B, not D. Answer: C", 1),
    ("**Answer:** (D)", 3),
    ("It is A or B; so B.", 1),
    ("Both A) and C) fit", 2),
    ("BAD CAB, no letter stands alone", -1),
    ("Answer: E", -1),
    ("", -1),
  ],
)
def test_choices_are_read(text, choice):
  assert augment.extract_choice(text) == choice


def test_errors():
  tokens = np.ones((2, 3), np.int32)
  for strength in (-0.1, 1.5):
    with pytest.raises(ValueError, match=rf"strength must lie in \[0, 1\], got {strength}"):
      augment.paraphrase(KEY, tokens, GRAMMAR, strength=strength)
  with pytest.raises(TypeError, match="tokens must be of type int, got float32"):
    augment.paraphrase(KEY, tokens.astype(np.float32), GRAMMAR, strength=0.5)
  with pytest.raises(ValueError, match=r"synonyms must lie in \[-1, 2\)"):
    augment.ParaphraseGrammar([[-1], [2]], (), ())
  with pytest.raises(ValueError, match=r"fillers must lie in \[0, 2\)"):
    augment.ParaphraseGrammar([[-1], [1]], (), (3,))
  for templates in (((1, -1), (-1, -2)), ((-1, -1),), ((1, -2),)):
    with pytest.raises(ValueError, match="templates must have the slots -1, -2, ... once each"):
      augment.ParaphraseGrammar([[-1], [1]], templates, ())
  with pytest.raises(ValueError, match=r"templates must lie in \(-inf, 2\)"):
    augment.ParaphraseGrammar([[-1], [1]], ((1, 4),), ())
  with pytest.raises(ValueError, match="templates must not be empty"):
    augment.ParaphraseGrammar([[-1], [1]], ((),), ())
