import jax
import numpy as np
import pytest

from jaxlab import data
from jaxlab.data.deceptive_prompts import make_prompts

SIZE = 10_000
WORDS = data.PROMPT_WORDS
SHAPES, COLORS = WORDS[6:10], WORDS[10:15]
BACKGROUNDS = WORDS[15:19]
NUMBERS = {"one": 1, "two": 2, "three": 3}
RELATIONS = {
  "left of": lambda a, b: a % 3 < b % 3,
  "right of": lambda a, b: a % 3 > b % 3,
  "above": lambda a, b: a // 3 < b // 3,
  "below": lambda a, b: a // 3 > b // 3,
}
prompts_of = jax.jit(make_prompts, static_argnames=("category", "deceptive"))


@pytest.fixture(scope="module")
def scenes():
  return jax.device_get(jax.jit(data.sample_grid_scenes, static_argnums=1)(jax.random.key(0), SIZE))


@pytest.fixture(scope="module")
def twins(scenes):
  """The same questions with true and with false premises."""
  return [
    jax.device_get(prompts_of(jax.random.key(1), scenes, category=None, deceptive=deceptive))
    for deceptive in (False, True)
  ]


def solve(words, objects, background):
  """Whether the premise of a question holds, and its answer, by reading the picture.

  Objects are (cell, shape, color) of what stands outside posters.
  """

  def of(shape, color=None):
    return [x for x in objects if x[1] == shape and color in (None, x[2])]

  words = [word for word in words if word != "pad"]
  assert words.pop() == "?"
  match words:
    case ["row", "of", "the", "first", "of", "the", number, shape]:
      found = of(shape)
      rows = ("top row", "middle row", "bottom row")
      holds = len(found) == NUMBERS[number]
      return holds, rows[min(x[0] for x in found) // 3] if holds else None
    case ["color", "of", "the", shape] | ["color", "of", "the", "real", shape]:
      found = of(shape)
      assert len(found) < 2
      return len(found) == 1, found[0][2] if found else None
    case ["place", "of", "the", color, shape]:
      found = of(shape, color)
      assert len(of(shape)) == 1
      return len(found) == 1, f"cell {found[0][0] + 1}" if found else None
    case ["color", "of", "the", shape, "in", "the", place]:
      [found] = of(shape)
      return place == background, found[2]
    case ["color", "of", "the", shape, relation, "the", other]:
      [found], [partner] = of(shape), of(other)
      return RELATIONS[relation](found[0], partner[0]), found[2]
  raise AssertionError(words)


def solved(row, scenes, prompts):
  objects = [
    (cell, SHAPES[shape], COLORS[color])
    for cell, (shape, color, framed) in enumerate(
      zip(scenes.shapes[row], scenes.colors[row], scenes.framed[row])
    )
    if shape >= 0 and not framed
  ]
  words = [WORDS[token] for token in prompts.tokens[row]]
  return solve(words, objects, BACKGROUNDS[scenes.background[row]])


@pytest.mark.parametrize("deceptive", [False, True])
def test_premises_and_answers_agree_with_a_solver(scenes, twins, deceptive):
  prompts = twins[deceptive]
  assert prompts.valid.mean() > 0.98
  for row in np.flatnonzero(prompts.valid):
    holds, answer = solved(row, scenes, prompts)
    assert holds == prompts.premise_holds[row] == (not deceptive)
    if holds:
      assert [WORDS[token] for token in prompts.answer_tokens[row]] == [answer, "end", "pad"]


def test_twins_differ_in_the_false_word_alone(twins):
  true, false = twins
  np.testing.assert_array_equal(true.valid, false.valid)
  np.testing.assert_array_equal(true.category, false.category)
  valid = true.valid
  differs = (true.tokens != false.tokens)[valid]
  np.testing.assert_array_equal(differs.sum(1), 1)
  answers = false.answer_tokens[valid]
  np.testing.assert_array_equal(answers[:, 1], false.tokens[valid][differs])
  assert np.all(answers[:, [0, 2]] == [WORDS.index("no such"), WORDS.index("end")])


def test_categories_are_about_even_and_no_word_gives_a_false_premise_away(twins):
  true, false = twins
  shares = np.bincount(true.category[true.valid]) / true.valid.sum()
  assert len(shares) == len(data.CATEGORIES) == 6
  # Questions of existence and of posters need pictures of their own.
  assert np.all((shares > 0.05) & (shares < 0.35))
  for category in range(6):
    chosen = true.valid & (true.category == category)
    for word in np.unique(false.tokens[chosen]):
      rates = [np.mean(np.any(x.tokens[chosen] == word, axis=1)) for x in twins]
      assert min(rates) > 0.25 * max(rates), (category, WORDS[word], rates)


def test_one_category_may_be_asked(scenes):
  prompts = jax.device_get(
    prompts_of(jax.random.key(2), scenes, category=data.CATEGORIES.index("spatial"), deceptive=True)
  )
  assert np.all(prompts.category == 4) and 0.2 < prompts.valid.mean() < 1
  for row in np.flatnonzero(prompts.valid)[:500]:
    assert not solved(row, scenes, prompts)[0]
    shapes = scenes.shapes[row][~scenes.framed[row]]
    assert np.sum(np.bincount(shapes[shapes >= 0], minlength=4) == 1) >= 2


def test_the_warning_stands_before_the_prompt(twins):
  tokens = twins[0].tokens[:5]
  longer = np.asarray(data.add_think_twice(tokens))
  np.testing.assert_array_equal(longer[:, 5:], tokens)
  assert [WORDS[token] for token in longer[0, :5]] == ["beware:", "this", "may", "be", "false"]
  assert np.all(longer[:, :5] == longer[:1, :5])


def test_words_are_distinct():
  assert len(set(WORDS)) == len(WORDS)
  assert WORDS[:6] == ("pad", "end", "no such", "check", "holds", "does not")


def test_bad_arguments_are_named(scenes):
  for category in (-1, 6):
    with pytest.raises(ValueError, match=f"category must be one of None, 0, .*got {category}"):
      make_prompts(jax.random.key(0), scenes, category=category, deceptive=True)
  with pytest.raises(ValueError, match="scenes.colors must have shape"):
    make_prompts(
      jax.random.key(0), scenes._replace(colors=scenes.colors[:3]), category=0, deceptive=True
    )
  with pytest.raises(TypeError, match="tokens must be of type int"):
    data.add_think_twice(np.zeros((2, 3)))
