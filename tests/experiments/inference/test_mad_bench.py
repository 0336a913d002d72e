import dataclasses

import jax
import numpy as np
import pytest
from scipy import special

from experiments.inference.mad_bench import answerers, questions
from experiments.inference.mad_bench.__main__ import PRESETS
from jaxlab import data
from jaxlab.data.grid_scenes import SCENE_BACKGROUNDS, SCENE_COLORS, SCENE_SHAPES

CONFIG = PRESETS["smoke"]
ID = {word: i for i, word in enumerate(data.PROMPT_WORDS)}
NAMES = "captions", "verify", "neutral", "warned", "deceptive"
MIX = dict.fromkeys(NAMES, 0.0) | {"held_out": float(questions.NONE)}
_draw_mix = jax.jit(questions.draw_mix, static_argnums=1)


def draw_mix(seed, num, setting):
  return jax.device_get(_draw_mix(jax.random.key(seed), num, setting))


def words(row):
  return [data.PROMPT_WORDS[i] for i in row if i]


def test_questions_and_replies_have_places_of_their_own():
  tokens = np.array([[30, 31, 32, 0, 0, 0, 0, 0, 0], [*range(30, 39)]], np.int32)
  answers = np.array([[40, 1, 0], [2, 41, 1]], np.int32)
  holds = np.array([True, False])

  @jax.jit
  def draw(tokens, answers, holds):
    evidence = np.array([42, 43])
    prompts, replies = questions.prompts(tokens), questions.replies(answers, evidence, holds)
    return [questions.texts(*x) for x in zip(prompts, replies)]

  warning = ["beware:", "this", "may", "be", "false"]
  before = [], warning, ["now", "here", "comes", "the", "next"], ["verify"]
  asked = [words(row) for row in tokens]
  right = [words(row) for row in answers]
  checks = [["check", words([42])[0], "holds"], ["check", words([43])[0], "does not"]]
  expected = (
    right,
    [check + answer for check, answer in zip(checks, right)],
    right,
    [[*checks[0], "end"], checks[1] + right[1]],
  )
  for kind, (text, mask) in enumerate(jax.device_get(draw(tokens, answers, holds))):
    for i in range(2):
      assert words(text[i]) == [*before[kind], *asked[i], *expected[kind][i]]
      assert words(np.where(mask[i], text[i], 0)) == expected[kind][i]
      assert words(text[i][:5]) == before[kind] and words(text[i][14:]) == expected[kind][i]
      np.testing.assert_array_equal(text[i][5:14], tokens[i])


def test_what_is_asked_after_does_not_depend_on_the_premise():
  @jax.jit
  def draw():
    scenes = data.sample_grid_scenes(jax.random.key(6), 300)
    return scenes, questions.ask(jax.random.key(7), scenes)

  scenes, asked = jax.device_get(draw())
  seen = set()
  for i in np.flatnonzero(asked.valid):
    question, answer = words(asked.tokens[0, i]), words(asked.answers[0, i])
    thing = SCENE_SHAPES.index(next(word for word in question if word in SCENE_SHAPES))
    cell = next(j for j in range(9) if scenes.shapes[i, j] == thing and not scenes.framed[i, j])
    row = ("top row", "middle row", "bottom row")[cell // 3]
    facts = {"color": SCENE_COLORS[scenes.colors[i, cell]], "row": row, "place": f"cell {cell + 1}"}
    assert answer == [facts[question[0]], "end"]
    assert words(asked.tokens[1, i])[0] == question[0]
    assert words(asked.answers[1, i])[0] == "no such"
    seen.add((int(asked.category[i]), question[0]))
  # All three of all categories, but no color where the question tells it.
  assert len(seen) == 17 and (questions.ATTRIBUTE, "color") not in seen


def test_captions_tell_what_there_is():
  @jax.jit
  def draw():
    scenes = data.sample_grid_scenes(jax.random.key(0), 6)
    return scenes, *questions.captions(scenes)

  scenes, tokens, mask = jax.device_get(draw())
  for i in range(6):
    expected = []
    for shape, color, framed in zip(scenes.shapes[i], scenes.colors[i], scenes.framed[i]):
      pair = [SCENE_COLORS[color], SCENE_SHAPES[shape]]
      expected += ["?", "?"] if shape < 0 else pair[:: -1 if framed else 1]
    assert words(tokens[i]) == ["here", *expected]
    assert words(np.where(mask[i], tokens[i], 0)) == expected


def test_cells_are_tokens_of_their_own():
  scenes = data.sample_grid_scenes(jax.random.key(0), 200)
  seen = np.asarray(jax.jit(questions.look, static_argnums=1)(scenes, False))
  shapes, colors, framed, background = map(np.asarray, scenes[1:])
  kinds = {}
  for row, *content in zip(seen[:, :9].ravel(), shapes.ravel(), colors.ravel(), framed.ravel()):
    assert kinds.setdefault(row, tuple(content)) == tuple(content)
  assert len(kinds) == len(set(kinds.values())) == 41
  used = sorted({*kinds, *seen[:, 9].tolist()})
  assert used == list(range(len(data.PROMPT_WORDS), questions.NUM_TOKENS))
  np.testing.assert_array_equal(seen[:, 9] - background, questions.NUM_TOKENS - 4)


def test_checks_tell_what_is_there():
  rows = draw_mix(5, 60, MIX | {"verify": 1.0})
  seen, kinds = 0, set()
  for row, mask in zip(rows.tokens, rows.mask):
    asked, reply = words(np.where(mask, 0, row)), words(np.where(mask, row, 0))
    if asked[0] != "verify":
      continue
    seen += 1
    check, evidence, verdict, *rest = reply
    assert check == "check" and verdict in ("holds", "does not")
    if verdict == "holds":
      assert rest == ["end"]
    else:
      assert (rest[0], rest[2]) == ("no such", "end") and rest[1] in asked
    # After a thing alone, its color is told, or that there is none; else the word that holds.
    if len(asked) == 6 or asked[4] == "real":
      assert (evidence in SCENE_COLORS) == (verdict == "holds")
      kinds.add("thing")
    else:
      assert (evidence in asked) == (verdict == "holds")
      kinds.add("word")
  assert seen > 50 and len(kinds) == 2


def test_warnings_stand_before_all_categories_but_one_that_is_held_out():
  of_category = {
    questions.COUNT: {"one", "two", "three"},
    questions.ATTRIBUTE: {*SCENE_COLORS},
    questions.BACKGROUND: {*SCENE_BACKGROUNDS},
  }
  for held_out in (questions.NONE, *questions.HELD_OUT):
    rows = draw_mix(1, 60, MIX | {"warned": 1.0, "held_out": float(held_out)})
    warned = rows.tokens[rows.tokens[:, 0] == ID["beware:"]]
    assert len(warned) > 50 if held_out == questions.NONE else 35 < len(warned) < 60
    found = {word for row in warned for word in words(row[5:14])}
    for category, its_words in of_category.items():
      assert bool(its_words & found) == (category != held_out)
    share = np.mean([ID["does not"] in row for row in warned.tolist()])
    assert 0.25 < share < 0.75


def test_plain_questions_are_deceptive_in_one_category_alone():
  rows = draw_mix(2, 60, MIX | {"neutral": 0.3, "deceptive": 1.0})
  first = {"now": 0, "row": 0, "color": 0, "place": 0}
  for row, mask in zip(rows.tokens, rows.mask):
    asked, reply = words(np.where(mask, 0, row)), words(np.where(mask, row, 0))
    if asked[0] == "here":  # A caption, where the picture admits no question.
      continue
    first[asked[0]] += 1
    question = asked[5:] if asked[0] == "now" else asked
    # "color of the SHAPE ?" alone asks after an object that may not be there.
    existence = len(question) == 5
    assert (reply[0] == "no such") == existence
  assert min(first.values()) > 0


@pytest.mark.parametrize("pixels", [True, False])
def test_a_model_that_always_objects_is_right_on_false_premises_alone(pixels):
  config = dataclasses.replace(CONFIG, pixels=pixels, num_questions_each=4)

  @jax.jit
  def answer():
    test = answerers.draw_test(config, jax.random.key(3))
    params = answerers.initial(config, jax.random.key(4))
    found = answerers.measure(config, params, test)
    return test, found, answerers.summary(found, found, np.float32(questions.NONE))

  test, found, summary = jax.device_get(answer())
  assert np.all(test.valid)
  assert found["exact"].shape == (6, 2, 6, 4) and found["margin"].shape == (6, 2, 4)
  np.testing.assert_array_equal(summary["accuracy"][-1], [[0, 1]] * 6)
  assert summary["harmonic mean"][-1] == 0
  # The first premises hold, the second do not; the words of both differ in one place.
  assert np.all(np.sum(test.tokens[:, :, 0] != test.tokens[:, :, 1], axis=-1) == 1)


def test_the_bias_is_chosen_on_validation():
  rng = np.random.default_rng(0)
  num = 40
  found = {
    "exact": np.zeros((6, 2, 6, num), bool),
    "verified": np.ones((6, 2, num), bool),
    "margin": rng.uniform(0, 2, (6, 2, num)).astype(np.float32),
  }
  # Plain answers are right if the premise holds, objections if it does not.
  found["exact"][:, 0, questions.PLAIN] = found["exact"][:, 1, 4] = True
  found["exact"][:, 1, questions.WARNING] = rng.random((6, num)) < 0.5
  found["margin"][:, 0] += 3
  summarize = jax.jit(answerers.summary)
  summary = jax.device_get(summarize(found, found, np.float32(questions.NONE)))
  assert 1.5 < summary["bias"] <= 3
  held_out = list(questions.HELD_OUT)
  accuracy = np.asarray(summary["accuracy"])[:, held_out]
  assert np.all(accuracy[0] == [1, 0]) and accuracy[3].min() > 0.97
  assert summary["harmonic mean"][0] == 0 and summary["harmonic mean"][3] > 0.98
  gained = found["exact"][held_out, 1, questions.WARNING].sum()
  # McNemar with no pair lost.
  expected = special.erfc(np.sqrt(gained / 2))
  np.testing.assert_allclose(summary["p value"], expected, rtol=1e-4)
  assert np.all(summary["verified"] == 1) and np.all(summary["noticed"] == 0)
  # One category alone: what its objections to false premises gain, its bias is chosen for.
  one = questions.ATTRIBUTE
  found["margin"][one] += 5
  summary = jax.device_get(summarize(found, found, np.float32(one)))
  assert 6.5 < summary["bias"] <= 8
  expected = special.erfc(np.sqrt(found["exact"][one, 1, questions.WARNING].sum() / 2))
  np.testing.assert_allclose(summary["p value"], expected, rtol=1e-4)
  found["margin"][one, 1, :10] = -1.0
  summary = jax.device_get(summarize(found, found, np.float32(one)))
  assert summary["noticed"][one] == 0.25
