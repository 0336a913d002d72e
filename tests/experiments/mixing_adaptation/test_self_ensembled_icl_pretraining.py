import jax
import numpy as np

from experiments.mixing_adaptation import self_ensembled_icl as icl
from experiments.mixing_adaptation import self_ensembled_icl_pretraining as pretraining
from jaxlab import data


def test_a_prompt_asks_for_every_answer_behind_its_sentence():
  config = icl.PRESETS["smoke"]
  keys = jax.random.split(jax.random.key(2), 12)
  draw = jax.vmap(lambda key: pretraining.pretraining_prompt(config, key))
  batch = jax.tree.map(np.asarray, draw(keys))
  np.testing.assert_allclose(batch.weights.sum(1), 1, rtol=1e-6)
  for tokens, positions, answers, weights in zip(*batch):
    for position, answer in zip(positions[weights > 0], answers[weights > 0]):
      assert tokens[position] in (68, 69) and (tokens[position - 3 : position - 1] < 64).all()
      if len(set(positions)) > 1 and position < positions[-1]:
        assert tokens[position + 1] == answer


def test_rules_read_the_first_dimensions_and_keep_the_noise():
  sizes = {"num_tasks": 50, "num_examples": 20}
  drawn = data.sample_rule_tasks(jax.random.key(0), **sizes)
  clean = data.sample_rule_tasks(jax.random.key(0), label_noise=0.0, **sizes)
  whole = pretraining.sample_tasks(icl.Config(rule_dims=16), jax.random.key(0), **sizes)
  np.testing.assert_array_equal(whole.labels, drawn.labels)
  narrow = pretraining.sample_tasks(icl.Config(rule_dims=1), jax.random.key(0), **sizes)
  scores = np.asarray(data.word_vectors())[drawn.sentences].mean(-2)[..., :1]
  truth = np.argmax(scores * np.asarray(drawn.rule)[:, None, 0], -1)
  np.testing.assert_array_equal(narrow.labels != truth, drawn.labels != clean.labels)
  assert not np.any(narrow.rule[:, 1:])


def test_a_key_a_prompt():
  config = icl.PRESETS["smoke"]
  several = next(pretraining.prompt_keys(config, seed=1, steps_per_call=2))["key"]
  assert several.shape == (2, config.pretraining_batch, 2)
  single = next(pretraining.prompt_keys(config, seed=1, steps_per_call=1))["key"]
  np.testing.assert_array_equal(single, several[0])
