"""The synthetic few-shot language and its prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import data


@pytest.fixture(scope="module")
def tasks():
  sample = jax.jit(lambda key: data.sample_rule_tasks(key, num_tasks=30, num_examples=100))
  return jax.tree.map(np.asarray, sample(jax.random.key(3)))


def test_labels_follow_the_rule_except_for_noise(tasks):
  assert tasks.sentences.shape == (30, 100, 8) and tasks.rule.shape == (30, 16, 4)
  assert tasks.sentences.dtype == tasks.labels.dtype == np.int32
  vectors = np.asarray(data.word_vectors())
  wrong = []
  for sentences, labels, rule in zip(*tasks):
    clean = [np.argmax(vectors[words].mean(0) @ rule) for words in sentences]
    wrong.append(np.mean(clean != labels))
  assert abs(np.mean(wrong) - 0.1) < 4 * np.sqrt(0.09 / 3000)
  assert tasks.sentences.min() == 0 and tasks.sentences.max() == 63
  assert set(np.unique(tasks.labels)) == {0, 1, 2, 3}
  assert abs(tasks.rule.std() - 1) < 0.1


def test_extreme_noise_and_other_sizes():
  arguments = {"num_tasks": 2, "vocab_size": 5, "sentence_length": 3, "num_classes": 2}
  draw = jax.jit(
    lambda noise: data.sample_rule_tasks(
      jax.random.key(1), label_noise=noise, num_examples=6, **arguments
    )
  )
  clean, flipped = draw(0.0), draw(1.0)
  np.testing.assert_array_equal(clean.labels, 1 - flipped.labels)
  assert clean.sentences.shape == (2, 6, 3) and clean.sentences.max() < 5


def test_demonstrations_are_distinct_and_never_the_excluded_one():
  labels = np.zeros(6, np.int32)
  keys = jax.random.split(jax.random.key(0), 600)
  rows = jax.jit(
    jax.vmap(lambda k, i: data.draw_demonstrations(k, labels, num_shots=3, exclude=i))
  )(keys, np.arange(600) % 6)
  rows = np.asarray(rows)
  assert rows.dtype == jnp.int32 and rows.shape == (600, 3)
  assert all(len(set(row)) == 3 for row in rows.tolist())
  assert not np.any(rows == (np.arange(600) % 6)[:, None])
  np.testing.assert_allclose(np.bincount(np.asarray(rows).ravel(), minlength=6) / 1800, 1 / 6, 0.2)
  everything = jax.jit(lambda key: data.draw_demonstrations(key, labels, num_shots=6))(keys[0])
  assert sorted(everything.tolist()) == list(range(6))
  assert data.draw_demonstrations(keys[0], labels[:1], num_shots=0, exclude=0).shape == (0,)


def _render(words, shots, labels, template):
  """One prompt, token after token."""
  separator = [69, 69] if template == 2 else [68]
  out = []
  for sentence, label in zip(shots, labels):
    word = 64 + ((1, 2, 3, 0)[label] if template == 3 else label)
    if template == 1:
      out += [word, *separator, *sentence, *separator]
    else:
      out += [*sentence, *separator, word, *separator]
  return out + [*words, *separator]


@pytest.mark.parametrize("num_shots", [0, 3])
def test_prompts_match_their_templates(num_shots):
  rng = np.random.default_rng(0)
  templates = np.array([2, 0, 3, 1, 1])
  sentences = rng.integers(0, 64, (2, 8))
  shots = rng.integers(0, 64, (5, 2, num_shots, 8))
  labels = rng.integers(0, 4, (5, 2, num_shots))
  render = jax.jit(lambda *args: data.render_prompts(*args[:3], template_ids=args[3]))
  eager = data.render_prompts(sentences, shots, labels, template_ids=templates)
  prompts = jax.device_get(render(sentences, shots, labels, templates))
  jax.tree.map(np.testing.assert_array_equal, eager, prompts)
  assert prompts.tokens.shape == (5, 2, num_shots * 13 + 10)
  for i, template in enumerate(templates):
    for j in range(2):
      expected = _render(sentences[j], shots[i, j], labels[i, j], template)
      length = int(prompts.lengths[i, j])
      assert prompts.tokens[i, j, :length].tolist() == expected
      assert not np.any(prompts.tokens[i, j, length:])
  assert int(prompts.lengths[0, 0]) == prompts.tokens.shape[-1]


def test_label_words_are_rotated_in_the_last_template():
  words = data.label_words(np.array([0, 3]))
  assert words.tolist() == [[64, 65, 66, 67], [65, 66, 67, 64]]


def test_errors():
  key = jax.random.key(0)

  def render(sentences=(1, 8), shots=(1, 1, 2, 8), labels=(1, 1, 2), templates=(1,), **values):
    arrays = [
      np.full(shape, values.get(name, 0))
      for name, shape in (("word", sentences), ("shot", shots), ("label", labels))
    ]
    return data.render_prompts(*arrays, template_ids=np.full(templates, values.get("template", 0)))

  draw = data.draw_demonstrations
  for call, text in (
    (lambda: data.sample_rule_tasks(key, num_tasks=0), "num_tasks"),
    (lambda: data.sample_rule_tasks(key, num_tasks=1, vocab_size=0), "vocab_size"),
    (lambda: data.sample_rule_tasks(key, num_tasks=1, num_classes=1), "num_classes"),
    (lambda: data.sample_rule_tasks(key, num_tasks=1, num_examples=0), "num_examples"),
    (lambda: data.sample_rule_tasks(key, num_tasks=1, label_noise=1.1), "label_noise"),
    (lambda: draw(key, np.zeros(3), num_shots=4), r"num_shots must lie in \[0, 3\]"),
    (lambda: draw(key, np.zeros(3), num_shots=3, exclude=0), r"\[0, 2\]"),
    (lambda: draw(key, np.zeros(3), num_shots=-1), "num_shots"),
    (lambda: draw(key, np.zeros(3), num_shots=1, exclude=3), "exclude"),
    (
      lambda: draw(key, np.zeros((3, 1)), num_shots=1),
      r"labels must have shape \[n\], got \[3, 1\]",
    ),
    (lambda: render(shots=(1, 2, 8)), r"demonstrations must have shape \[m, b, s, w\]"),
    (lambda: render(sentences=(2, 8)), "sentences must have shape"),
    (lambda: render(labels=(1, 1, 3)), "demonstration_labels must have shape"),
    (lambda: render(templates=(2,)), "template_ids must have shape"),
    (lambda: render(word=64), "sentences must lie"),
    (lambda: render(shot=-1), "demonstrations must lie"),
    (lambda: render(label=4), "demonstration_labels must lie"),
    (lambda: render(template=4), "template_ids must lie"),
  ):
    with pytest.raises(ValueError, match=text):
      call()
