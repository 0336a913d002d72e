import jax
import numpy as np

from experiments.mixing_adaptation.self_ensembled_icl import answers, pretraining
from experiments.mixing_adaptation.self_ensembled_icl.__main__ import PRESETS, Config
from jaxlab import data


def test_single_runs_are_averaged_and_ensembles_pool_them():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 4, 2, 6, 4)).astype(np.float32)
  labels = rng.integers(0, 4, (2, 6))
  rows = jax.device_get(answers.measure(logits[None], labels[None]))
  row = dict(zip(answers.variants(2), rows))
  np.testing.assert_allclose(
    row["single run", None]["accuracy"], np.mean(logits.argmax(-1) == labels), rtol=1e-6
  )
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  for name, axes in (("both", (0, 1)), ("demonstrations", 0), ("templates", 1)):
    right = probs.mean(axes).argmax(-1) == labels
    np.testing.assert_allclose(row["mean", name]["accuracy"], right.mean(), rtol=1e-6)
  softened = row[answers.SOFTENED, None]
  confidence = softened["accuracy"] + softened["overconfidence"]
  np.testing.assert_allclose(softened["accuracy"], row["single run", None]["accuracy"], rtol=1e-6)
  np.testing.assert_allclose(confidence, probs.mean((0, 1)).max(-1).mean(), rtol=1e-4)


def test_a_prompt_asks_for_every_answer_behind_its_sentence():
  config = PRESETS["smoke"]
  keys = jax.random.split(jax.random.key(2), 12)
  draw = jax.jit(jax.vmap(lambda key: pretraining.pretraining_prompt(config, key)))
  batch = jax.tree.map(np.asarray, draw(keys))
  np.testing.assert_allclose(batch.weights.sum(1), 1, rtol=1e-6)
  for tokens, positions, labels, weights in zip(*batch):
    for position, answer in zip(positions[weights > 0], labels[weights > 0]):
      end = position - (tokens[position] == 69)
      assert tokens[position] in (68, 69) and (tokens[end - config.num_words : end] < 64).all()
      if len(set(positions)) > 1 and position < positions[-1]:
        assert tokens[position + 1] == answer


def test_rules_read_the_first_dimensions_and_keep_the_noise():
  sizes = {"num_tasks": 50, "num_examples": 20}
  whole_sizes = {"sentence_length": Config().num_words, **sizes}

  @jax.jit
  def draws(key):
    drawn = data.sample_rule_tasks(key, **whole_sizes)
    clean = data.sample_rule_tasks(key, label_noise=0.0, **whole_sizes)
    tasks = [
      pretraining.sample_tasks(Config(rule_dims=n), key, label_noise=0.1, **sizes) for n in (16, 1)
    ]
    return drawn, clean, *tasks, data.word_vectors()

  drawn, clean, whole, narrow, vectors = jax.device_get(draws(jax.random.key(0)))
  np.testing.assert_array_equal(whole.labels, drawn.labels)
  scores = vectors[drawn.sentences].mean(-2)[..., :1]
  truth = np.argmax(scores * drawn.rule[:, None, 0], -1)
  np.testing.assert_array_equal(narrow.labels != truth, drawn.labels != clean.labels)
  assert not np.any(narrow.rule[:, 1:])
