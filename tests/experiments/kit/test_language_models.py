"""Language models of a laptop, on chains of three numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import language_models as kit
from jaxlab import data

TASK = data.ModularChainConfig(modulus=3, num_terms=2, misconception_rate=0.0, noise=0.0)
PROMPT, LENGTH = TASK.prompt_length, TASK.prompt_length + TASK.response_length
MODEL = kit.decoder(TASK.vocab_size, LENGTH, hidden_size=16, num_layers=1, num_heads=2)


def draw(key, batch_size):
  return data.modular_chain_batch(key, TASK, batch_size)


@pytest.fixture(scope="module")
def trained():
  """Parameters after training on fresh texts, and rows that it did not see."""
  fit = lambda key: kit.fit_decoder(key, MODEL, draw, num_steps=300, batch_size=32).params  # noqa: E731
  params = jax.jit(fit)(jax.random.key(0))
  return params, jax.device_get(draw(jax.random.key(9), 8))


def test_training_on_fresh_texts_learns_them(trained):
  params, rows = trained

  @jax.jit
  def answer(params):
    texts = kit.respond(
      jax.random.key(1), MODEL, params, rows.tokens[:, :PROMPT],
      num_samples=4, max_new_tokens=TASK.response_length, num_chunks=2,
    )  # fmt: skip
    parsed = data.parse_chain(TASK, texts.tokens[..., PROMPT:].reshape(32, -1))
    again = kit.response_log_probs(MODEL, params, texts.tokens, texts.mask)
    return texts, parsed.answer.reshape(8, 4), again

  texts, answers, again = jax.device_get(answer(params))
  assert (answers == rows.answers[:, None]).mean() > 0.8
  np.testing.assert_array_equal(texts.tokens[:, 0, :PROMPT], rows.tokens[:, :PROMPT])
  # What sampling reports is what the model gives for the whole text.
  np.testing.assert_allclose(texts.log_probs.sum(-1), again, atol=1e-4)


def test_training_ends_once_a_score_is_enough():
  rows = draw(jax.random.key(9), 32)

  def validate(params):
    return jnp.mean(jnp.exp(kit.token_log_probs(MODEL, params, rows.tokens))[:, PROMPT:])

  @jax.jit
  def fit(enough):
    options = {"num_steps": 40, "num_evaluations": 4, "batch_size": 32, "validate": validate}
    params, found = kit.fit_until(jax.random.key(0), MODEL, draw, enough=enough, **options)
    return found, validate(params)

  first, score = jax.device_get(fit(0.0))
  assert first["update"] == 10
  np.testing.assert_allclose(score, first["validation"], rtol=1e-6)
  last, _ = jax.device_get(fit(1.0))
  assert last["update"] == 40 and last["validation"] > first["validation"]
  middle, score = jax.device_get(fit((first["validation"] + last["validation"]) / 2))
  assert (
    10 < middle["update"] <= 40
    and middle["validation"] >= (first["validation"] + last["validation"]) / 2
  )
  np.testing.assert_allclose(score, middle["validation"], rtol=1e-6)


def test_the_loss_is_the_mean_over_tokens_of_responses(trained):
  params, rows = trained
  shown = lambda key, batch: jnp.asarray(batch.tokens).at[:, PROMPT].set(0)  # noqa: E731

  @jax.jit
  def losses_of(params):
    key = jax.random.key(0)
    plain = kit.text_loss(MODEL)(params, {}, rows, key)
    changed = kit.text_loss(MODEL, shown)(params, {}, rows, key)
    logits = MODEL.apply({"params": params}, rows.tokens).logits
    other = MODEL.apply({"params": params}, shown(None, rows))
    return plain, changed, jax.nn.log_softmax(logits), jax.nn.log_softmax(other.logits)

  plain, changed, *log_probs = jax.device_get(losses_of(params))
  for output, expected in ((plain, log_probs[0]), (changed, log_probs[1])):
    np.testing.assert_array_equal(output.weights, rows.loss_mask)
    for i, t in np.argwhere(rows.loss_mask):
      value = -expected[i, t - 1, rows.tokens[i, t]]
      np.testing.assert_allclose(output.values[i, t], value, atol=1e-5)


def test_many_texts_come_in_parts(trained, monkeypatch):
  params, rows = trained
  prompts = rows.tokens[:, :PROMPT]

  @jax.jit
  def run(params):
    key, sizes = jax.random.key(2), {"num_samples": 4, "max_new_tokens": TASK.response_length}
    texts = kit.respond(key, MODEL, params, prompts, **sizes)
    whole = kit.token_log_probs(MODEL, params, texts.tokens)
    monkeypatch.setattr(kit, "_MOST_ROWS", 20)
    parts = kit.respond(key, MODEL, params, prompts, **sizes)
    by_hand = kit.respond(key, MODEL, params, prompts, num_chunks=2, **sizes)
    return whole, kit.token_log_probs(MODEL, params, texts.tokens), parts.tokens, by_hand.tokens

  whole, mapped, parts, by_hand = jax.device_get(run(params))
  np.testing.assert_allclose(mapped, whole, atol=1e-5)
  np.testing.assert_array_equal(parts, by_hand)
  with pytest.raises(ValueError, match="num_samples=4 is no multiple of num_chunks=3"):
    kit.respond(
      jax.random.key(0), MODEL, params, rows.tokens[:, :PROMPT],
      num_samples=4, max_new_tokens=2, num_chunks=3,
    )  # fmt: skip
