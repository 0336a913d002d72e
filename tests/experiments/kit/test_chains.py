"""Chains as texts of a language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import chains as kit
from jaxlab import data

TERSE = data.ModularChainConfig(5, 4, False, 0.3, 0.6, 0.0)
VERBOSE = data.ModularChainConfig(5, 4, True, 0.3, 0.6, 0.0)
NUM = 6


def programs(chains):
  """The functions of this file as one program, which gives all that the tests look at."""
  model = kit.network(chains, (8, 1), num_heads=2)

  @jax.jit
  def run(key):
    batch = data.modular_chain_batch(key, chains, NUM)
    params = model.init(key, batch.tokens)["params"]
    texts = batch.tokens, batch.answers
    greedy = kit.greedy_texts(model, params, chains, batch.tokens)
    return {
      "batch": batch,
      "parsed": kit.parse(chains, batch.tokens[None]),
      "right": kit.right_steps(chains, batch.tokens),
      "greedy": greedy,
      "answers": kit.parse(chains, greedy).answer,
      "accuracy": kit.greedy_accuracy(model, params, chains, *texts),
      "log_probs": kit.step_log_probs(model, params, chains, batch.tokens),
      "logits": jax.nn.log_softmax(model.apply({"params": params}, batch.tokens).logits),
      "prefixes": kit.complete_prefixes(key, model, params, chains, texts, num_rollouts=2),
      "others": kit.replace_steps(
        key, model, params, chains, texts, jnp.arange(NUM) % 3, num_candidates=2, num_rollouts=2
      ),
      "table": kit.misconception_table(key, chains),
    }

  return jax.device_get(run(jax.random.key(0)))


@pytest.fixture(scope="module", params=[TERSE, VERBOSE], ids=["terse", "verbose"])
def found(request):
  return request.param, programs(request.param)


def test_step_ids():
  np.testing.assert_array_equal(kit.step_ids(TERSE), [-1] * 8 + [0, 1, 2, 2])
  np.testing.assert_array_equal(kit.step_ids(VERBOSE), [-1] * 8 + [0] * 3 + [1] * 3 + [2] * 4)


def test_texts_are_parsed_and_judged(found):
  chains, out = found
  np.testing.assert_array_equal(out["parsed"].steps[0], out["batch"].steps)
  np.testing.assert_array_equal(out["parsed"].answer[0], out["batch"].steps[:, -1])
  terms, operators = out["batch"].tokens[:, 0:7:2] - 6, out["batch"].tokens[:, 1:7:2] - 3
  value = terms[:, 0]
  for i in range(3):
    other, shown = terms[:, i + 1], out["batch"].steps[:, i]
    results = np.stack([value + other, value - other, value * other])[operators[:, i], range(NUM)]
    np.testing.assert_array_equal(out["right"][:, i], results % 5 == shown)
    # Without noise, every wrong step is the table's.
    wrong = out["table"][operators[:, i], value, other]
    np.testing.assert_array_equal(shown, np.where(out["right"][:, i], results % 5, wrong))
    value = shown
  assert np.sum(out["table"] >= 0) == round(0.3 * 75)


def test_log_probs_of_steps_are_sums_over_their_tokens(found):
  chains, out = found
  ids = kit.step_ids(chains)
  for row, log_probs, logits in zip(out["batch"].tokens, out["log_probs"], out["logits"]):
    tokens = [logits[t - 1, row[t]] for t in range(1, len(row))]
    expected = [sum(p for p, i in zip(tokens, ids[1:]) if i == step) for step in range(3)]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4)


def test_greedy_texts_keep_their_problems(found):
  chains, out = found
  prompt = chains.prompt_length
  np.testing.assert_array_equal(out["greedy"][:, :prompt], out["batch"].tokens[:, :prompt])
  assert out["accuracy"] == np.float32(np.mean(out["answers"] == out["batch"].answers))


def test_completions_keep_what_is_done(found):
  chains, out = found
  hits = out["prefixes"]["hits"]
  assert hits.shape == (NUM, 4, 2)
  ended = out["batch"].steps[:, -1] == out["batch"].answers
  np.testing.assert_array_equal(hits[:, -1], np.stack([ended, ended], axis=1))
  length, tokens = kit.step_length(chains), out["others"]["tokens"]
  assert out["others"]["hits"].shape == (NUM, 2, 2)
  for i, row in enumerate(out["batch"].tokens):
    done = chains.prompt_length + i % 3 * length
    np.testing.assert_array_equal(tokens[i, :, :done], np.stack([row[:done]] * 2))
    assert not tokens[i, :, done + length :].any()
  # Every completion that follows draws at least one token; the longest takes a whole solution.
  drawn, most = out["prefixes"]["sampled tokens"], NUM * 2 * 3 * chains.response_length
  assert NUM * 2 * 3 <= drawn <= most
