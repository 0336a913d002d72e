import jax
import numpy as np
from scipy import special

from experiments.inference.mad_bench import answerers, questions
from experiments.inference.mad_bench.__main__ import PRESETS
from jaxlab import data
from jaxlab.data.grid_scenes import SCENE_BACKGROUNDS, SCENE_COLORS, SCENE_SHAPES

CONFIG = PRESETS["smoke"]
ID = {word: i for i, word in enumerate(data.PROMPT_WORDS)}
NAMES = "captions", "verify", "neutral", "warned", "elsewhere", "deceptive"
MIX = dict.fromkeys(NAMES, 0.0)
_draw_mix = jax.jit(questions.draw_mix, static_argnums=1)


def draw_mix(seed, num, setting):
  return jax.device_get(_draw_mix(jax.random.key(seed), num, setting))


def words(row):
  return [data.PROMPT_WORDS[i] for i in row if i]


def test_replies_stand_right_behind_their_prompts():
  tokens = np.array([[30, 31, 32, 0, 0, 0, 0, 0, 0], [*range(30, 39)]], np.int32)
  answers = np.array([[40, 1, 0], [2, 41, 1]], np.int32)
  holds = np.array([True, False])

  @jax.jit
  def texts(tokens, answers, holds):
    prompts, replies = questions.prompts(tokens), questions.replies(answers, holds)
    return [questions.packed(*x) for x in zip(prompts, replies)]

  warning = ["beware:", "this", "may", "be", "false"]
  before = [], warning, ["now", "here", "comes", "the", "next"], ["verify"]
  asked = [words(row) for row in tokens]
  right = [words(row) for row in answers]
  checks = [["check", "holds"], ["check", "does not"]]
  expected = (
    right,
    [check + answer for check, answer in zip(checks, right)],
    right,
    [[*check, "end"] for check in checks],
  )
  for kind, (text, mask) in enumerate(jax.device_get(texts(tokens, answers, holds))):
    for i in range(2):
      assert words(text[i]) == [*before[kind], *asked[i], *expected[kind][i]]
      assert words(np.where(mask[i], text[i], 0)) == expected[kind][i]


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


def test_warnings_stand_before_three_categories_unless_all_are_meant():
  held_out = {*SCENE_BACKGROUNDS, "left of", "right of", "above", "below", "real"}
  for elsewhere in (0.0, 1.0):
    rows = draw_mix(1, 60, MIX | {"warned": 1.0, "elsewhere": elsewhere})
    warned = rows.tokens[rows.tokens[:, 0] == ID["beware:"]]
    assert len(warned) > 50 if elsewhere else 20 < len(warned) < 50
    found = held_out & {word for row in warned for word in words(row)}
    assert bool(found) == bool(elsewhere)
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
    # "color of the SHAPE ?" asks after an object that may not be there.
    existence = len(question) == 5 and question[0] == "color"
    assert (reply[0] == "no such") == existence
  assert min(first.values()) > 0


def test_a_model_that_always_objects_is_right_on_false_premises_alone():
  @jax.jit
  def answer():
    test = answerers.draw_test(jax.random.key(3), 4)
    params = answerers.initial(CONFIG, jax.random.key(4))
    found = answerers.measure(CONFIG, params, test)
    return test, found, answerers.summary(found, found)

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
  summary = jax.device_get(jax.jit(answerers.summary)(found, found))
  assert 1.5 < summary["bias"] <= 3
  held_out = list(questions.HELD_OUT)
  accuracy = np.asarray(summary["accuracy"])[:, held_out]
  assert np.all(accuracy[0] == [1, 0]) and accuracy[3].min() > 0.97
  assert summary["harmonic mean"][0] == 0 and summary["harmonic mean"][3] > 0.98
  gained = found["exact"][held_out, 1, questions.WARNING].sum()
  # McNemar with no pair lost.
  expected = special.erfc(np.sqrt(gained / 2))
  np.testing.assert_allclose(summary["p value"], expected, rtol=1e-4)
  assert np.all(summary["verified"] == 1)
