import jax
import numpy as np
import pytest
import scipy.special

from jaxlab.samplers import guided_decoding, guided_text
from jaxlab.samplers.guided_text import Completion, TextModel, nudged_generate_text

V, T, EOS, CASES = 6, 9, 5, 60
RNG = np.random.default_rng(0)
BASE = (RNG.normal(size=(CASES, V, V)) * RNG.choice([0.5, 3], (CASES, V, 1))).astype(np.float32)
NUDGING = (2 * RNG.normal(size=(CASES, V, V))).astype(np.float32)
NUDGING[..., EOS] = -1e4  # Else it would end as soon as it looks ahead to an end.


def table_model(table):
  """A Markov model whose every token is a word."""
  probs = scipy.special.softmax(table.astype(float), axis=1)

  def complete(prompt, max_tokens):
    last, tokens, tops = int(prompt[-1]), [], []
    while len(tokens) < max_tokens:
      top, last = probs[last].max(), int(np.argmax(table[last]))
      if last == EOS:
        return Completion(tokens, tops, True)
      tokens.append(f" {last}")
      tops.append(top)
    return Completion(tokens, tops, False)

  return TextModel(complete)


def test_words_of_one_token_give_the_decoding_of_tokens():
  decode = lambda base, nudging: guided_decoding.markov_nudged_decode(  # noqa: E731
    base, nudging, np.zeros(1, np.int32), max_new_tokens=T, eos_token_id=EOS
  )
  output = jax.tree.map(np.asarray, jax.jit(jax.vmap(decode))(BASE, NUDGING))
  whole = 0
  for case in range(CASES):
    models = table_model(BASE[case]), table_model(NUDGING[case])
    result = nudged_generate_text(*models, "0", "0", max_new_tokens=T, look_ahead=4)
    words = result.text.split()
    assert words == list(map(str, output.tokens[case, 0, : len(words)]))
    nudged = " ".join(result.nudging_words).split()
    assert len(nudged) == output.nudged[case, 0, : len(words)].sum()
    if result.stop_reason == "max_new_tokens":
      assert len(words) == T
      whole += 1
    else:
      assert result.stop_reason == "repeated_words"
  assert whole > CASES / 2 and 0.1 < output.nudged.mean() < 0.9


def scripted(*completions, asked=None):
  """A model that gives its completions in turn, and the last one for ever."""
  left = list(completions)

  def complete(prompt, max_tokens):
    if asked is not None:
      asked.append((prompt, max_tokens))
    tokens, tops, finished = left.pop(0) if len(left) > 1 else left[0]
    return Completion(tokens[:max_tokens], tops[:max_tokens], finished)

  return TextModel(complete)


UNSURE = ([" x", " y"], [0.1, 0.1], False)


def test_a_completion_that_ends_is_taken_whole():
  nudging = scripted(([" It", " ends", "."], [0.9] * 3, True))
  result = nudged_generate_text(scripted(UNSURE), nudging, "Q", "P")
  assert result == guided_text.NudgedText(" It ends.", (" It ends.",), "finished")


def test_words_are_accepted_until_the_base_model_agrees():
  asked = []
  nudging = scripted(
    ([" Su", "re", ",", " he", "re", " is"], [0.5] * 6, False), ([" end"], [0.5], True)
  )
  base = scripted(UNSURE, ([" i", "t", " go"], [0.3, 0.9, 0.2], False), asked=asked)
  result = nudged_generate_text(base, nudging, "Q:", "P:", look_ahead=6)
  # The base model begins " is" as the nudging model does, then writes until it is unsure.
  assert result.text == " Sure, here it end"
  assert result.nudging_words == (" Sure, here", " end") and result.stop_reason == "finished"
  assert asked == [("Q: Sure,", 6), ("Q: Sure, here", 6)]


def test_a_certain_base_model_takes_over_and_a_cut_word_does_not_count():
  ends = (["."], [0.5], True)
  nudging = scripted(([" one", " two", " thr"], [0.5] * 3, False), ends)
  certain = ([" or", " so"], [0.8, 0.8], True)
  result = nudged_generate_text(scripted(UNSURE, certain), nudging, "", "", look_ahead=3)
  assert result.text == " one two or so." and result.nudging_words == (" one two", ".")
  nudging = scripted(([" one", " two", " thr"], [0.5] * 3, False), ends)
  result = nudged_generate_text(scripted(UNSURE), nudging, "", "", look_ahead=3)
  assert result.text == " one two."


def test_a_single_word_is_accepted_without_asking():
  asked = []
  nudging = scripted((["  lo", "ng"], [0.5] * 2, False), (["er"], [0.5], True))
  result = nudged_generate_text(scripted(UNSURE, asked=asked), nudging, "", "", look_ahead=2)
  assert result.text == "  longer" and not asked


def test_double_spaces_are_kept():
  nudging = scripted(([" a", "  b", " c"], [0.5] * 3, False), (["!"], [0.5], True))
  asked = []
  result = nudged_generate_text(scripted(UNSURE, asked=asked), nudging, "", "", look_ahead=3)
  assert result.text == " a  b!" and [prompt for prompt, _ in asked] == [" a ", " a  b"]


def test_only_the_nudging_model_ends_a_text():
  nudging = scripted(([" a", " b"], [0.5] * 2, False), ([" c"], [0.5], True))
  result = nudged_generate_text(scripted(([], [], True)), nudging, "", "", look_ahead=2)
  assert result.text == " a c" and result.nudging_words == (" a", " c")


def test_the_same_words_again_and_again_stop():
  nudging = scripted(([" a", " b"], [0.5] * 2, False))
  result = nudged_generate_text(scripted(UNSURE), nudging, "", "", look_ahead=2)
  assert result == guided_text.NudgedText(" a a a", (" a",) * 3, "repeated_words")


def test_a_repeated_block_goes_back_to_the_nudging_model():
  block = [f" {word}" for word in "abcdef"]
  nudging = scripted(([" go", " on"], [0.5] * 2, False), ([" end"], [0.5], True))
  base = scripted((block, [0.9] * 6, False))
  result = nudged_generate_text(base, nudging, "", "", look_ahead=6)
  assert result.text == " go a b c d e f end" and result.nudging_words == (" go", " end")


def test_repeated_suffixes_are_removed():
  part = " and once more the very same words"
  nudging = scripted(([" So", part, part, part], [0.5] * 4, True))
  result = nudged_generate_text(scripted(UNSURE), nudging, "", "")
  assert result.text == " So" + part
  short = scripted(([" ha", " ha"], [0.5] * 2, True))
  assert nudged_generate_text(scripted(UNSURE), short, "", "").text == " ha ha"


def test_tokens_and_rounds_are_limited():
  nudging = scripted(*[([f" {i}", " b"], [0.5] * 2, False) for i in range(9)])
  result = nudged_generate_text(scripted(UNSURE), nudging, "", "", max_rounds=4)
  assert result.text == " 0 1 2 3" and result.stop_reason == "max_rounds"
  nudging = scripted(*[([f" {i}", " b"], [0.5] * 2, False) for i in range(9)])
  certain = scripted(([" x", " y", " z"], [0.9] * 3, False))
  result = nudged_generate_text(certain, nudging, "", "", max_new_tokens=4)
  assert result.text == " 0 x y z" and result.stop_reason == "max_new_tokens"


@pytest.mark.parametrize(
  "options, message",
  [
    ({"top_prob_threshold": -0.1}, "top_prob_threshold must lie"),
    ({"look_ahead": 0}, "look_ahead must be at least 1, got 0"),
    ({"max_rounds": 0}, "max_rounds must be at least 1, got 0"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError, match=message):
    nudged_generate_text(scripted(UNSURE), scripted(UNSURE), "", "", **options)


def test_completions_are_checked():
  for tokens, tops in (([" a"], []), ([" a"] * 3, [0.5] * 3)):
    model = TextModel(lambda prompt, most, x=(tokens, tops): Completion(*x, False))
    with pytest.raises(ValueError, match="nudging must complete at most 2 tokens"):
      nudged_generate_text(scripted(UNSURE), model, "", "", look_ahead=2)
