import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import models, samplers

V, P, T, B = 7, 3, 9, 8  # The last token is the backspace.
BACK, EOS = V - 1, 0
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(0, V - 1, (B, P)).astype(np.int32)
ACTIONS = np.where(RNG.random((B, T)) < 0.4, BACK, RNG.integers(0, V - 1, (B, T))).astype(np.int32)
ACTIONS[0, :3], ACTIONS[1, :4] = BACK, (1, 2, BACK, BACK)
LENGTHS = np.array([T, T, 0, 4, T, 6, T, 7])


def jitted(function, *static, **keywords):
  return functools.partial(jax.jit(function, static_argnames=(*static, *keywords)), **keywords)


DECODING = {"backspace_token_id": BACK, "max_new_tokens": 5, "max_steps": T, "eos_token_id": EOS}
layout = jitted(samplers.backspace_layout, backspace_token_id=BACK)
applied = jitted(samplers.apply_backspaces, backspace_token_id=BACK, pad_token_id=5)
corrected = jitted(samplers.insert_corrections, backspace_token_id=BACK, pad_token_id=4)
sample = jitted(samplers.generate_with_backspace, **DECODING)
greedy = jitted(samplers.generate_with_backspace, **DECODING, temperature=0.0)
KEY = jax.random.key(3)


@functools.cache
def decoder():
  """A decoder with random parameters: its module and them."""
  sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": 32}
  model = models.DecoderLM(models.decoder_config(vocab_size=V, **sizes))
  shapes = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]
  rng = np.random.default_rng(0)
  return model, jax.tree.map(lambda x: np.float32(rng.normal(0, 0.5, x.shape)), shapes)


@jax.jit
def logits_of(params, tokens, positions=None, attention_mask=None):
  inputs = {"attention_mask": attention_mask}
  return decoder()[0].apply({"params": params}, tokens, positions, **inputs).logits


def text_after(actions):
  text = []
  for action in actions:
    if action != BACK:
      text.append(int(action))
    elif text:
      text.pop()
  return text


def padded(rows, width, pad=0):
  return np.array([[*row, *[pad] * (width - len(row))] for row in rows])


def slow_layout(prompt, actions):
  """One row, with a stack of slots, as specified."""
  size = P + T
  tokens, positions, mask = [*prompt, *[0] * T], [*range(P), *[0] * T], np.zeros((size, size), bool)
  mask[:P, :P] = np.tri(P)
  stack = list(range(P))
  for slot, action in enumerate(actions, P):
    if action != BACK:
      stack.append(slot)
      tokens[slot] = action
    else:
      if len(stack) > P:
        stack.pop()
      tokens[slot] = tokens[stack[-1]]
      stack[-1] = slot
    positions[slot] = len(stack) - 1
    mask[slot, stack] = True
  for slot in range(P + len(actions), size):
    mask[slot, slot] = True
  return tokens, positions, mask


def test_layout_matches_a_stack():
  result = layout(PROMPTS, ACTIONS, LENGTHS)
  for b in range(B):
    expected = slow_layout(PROMPTS[b], ACTIONS[b, : LENGTHS[b]])
    for ours, theirs in zip(result, expected):
      np.testing.assert_array_equal(ours[b], theirs)


def test_logits_are_those_of_the_texts_without_what_was_removed():
  _, params = decoder()
  logits = logits_of(params, *layout(PROMPTS, ACTIONS, LENGTHS))[:, P - 1 :]
  texts = [
    [*PROMPTS[b], *text_after(ACTIONS[b, :t])] for b in range(B) for t in range(LENGTHS[b] + 1)
  ]
  plain = logits_of(params, padded(texts, P + T))
  rows = np.arange(T + 1) <= LENGTHS[:, None]
  last = np.array([len(text) - 1 for text in texts])
  np.testing.assert_allclose(
    np.asarray(logits)[rows], np.asarray(plain)[np.arange(len(texts)), last], rtol=1e-4, atol=1e-5
  )


def test_applied_backspaces_match_a_stack():
  texts = [text_after(row[:length]) for row, length in zip(ACTIONS, LENGTHS)]
  result = applied(ACTIONS, LENGTHS)
  np.testing.assert_array_equal(result.lengths, [len(text) for text in texts])
  np.testing.assert_array_equal(result.tokens, padded(texts, T, pad=5))


def test_corrections_match_a_loop_and_can_be_undone():
  tokens = RNG.integers(0, V - 1, (B, T)).astype(np.int32)
  wrong = RNG.integers(0, V - 1, (B, T)).astype(np.int32)
  insert = RNG.random((B, T)) < 0.4
  insert[0] = True
  result = corrected(tokens, LENGTHS, insert, wrong)
  actions, weights = [], []
  for b in range(B):
    row = []
    for t in range(LENGTHS[b]):
      row += [(wrong[b, t], 0), (BACK, 1)] * int(insert[b, t]) + [(tokens[b, t], 1)]
    actions.append([action for action, _ in row])
    weights.append([weight for _, weight in row])
  np.testing.assert_array_equal(result.lengths, list(map(len, actions)))
  np.testing.assert_array_equal(result.actions, padded(actions, 3 * T, pad=4))
  np.testing.assert_array_equal(result.weights, padded(weights, 3 * T))
  assert result.weights.dtype == jnp.float32
  texts = applied(result.actions, result.lengths)
  np.testing.assert_array_equal(texts.lengths, LENGTHS)
  real = np.arange(T) < LENGTHS[:, None]
  np.testing.assert_array_equal(texts.tokens[:, :T], np.where(real, tokens, 5))


TABLE = RNG.normal(size=(V, V)).astype(np.float32)
TABLE[:, BACK] += 1
START_LENGTHS = np.array([1, 2, 3, 3, 2, 1, 3, 2], np.int32)


def slow_generate(choose):
  """Row by row; `choose(step, row, text)` gives the next action."""
  outputs = []
  for b in range(B):
    prompt, text, actions, finished = list(PROMPTS[b, : START_LENGTHS[b]]), [], [], False
    while len(actions) < T and len(text) < 5 and not finished:
      action = choose(len(actions), b, prompt + text, bool(text))
      actions.append(action)
      text = text_after(actions)
      finished = action == EOS
    outputs.append((text, len(text), actions, len(actions), actions.count(BACK), finished))
  texts, lengths, actions, *rest = zip(*outputs)
  return padded(texts, 5), lengths, padded(actions, T), *rest


def check(output, expected):
  for name, theirs in zip(output._fields, expected):
    np.testing.assert_array_equal(getattr(output, name), theirs, err_msg=name)


def test_sampling_matches_a_slow_loop():
  fns = samplers.table_decode_fns(TABLE)
  output = sample(KEY, fns, PROMPTS, START_LENGTHS, temperature=0.8)
  noise = jax.jit(jax.vmap(lambda step: jax.random.gumbel(jax.random.fold_in(KEY, step), (B, V))))(
    np.arange(T)
  )

  def choose(step, row, text, removable):
    logits = TABLE[text[-1]] / np.float32(0.8) + noise[step, row]
    return int(np.argmax(np.where((np.arange(V) == BACK) & (not removable), -np.inf, logits)))

  expected = slow_generate(choose)
  check(output, expected)
  finished, num_backspaces = np.array(expected[-1]), np.array(expected[-2])
  assert finished.any() and not finished.all() and (num_backspaces > 1).any()
  texts = applied(output.actions, output.num_actions)
  np.testing.assert_array_equal(texts.lengths, output.lengths)
  left = np.arange(5) < np.asarray(output.lengths)[:, None]
  texts = np.asarray(texts.tokens)[:, :5]
  np.testing.assert_array_equal(np.where(left, texts, 0), output.tokens)


def test_slots_that_are_read_again_equal_a_fresh_prefill():
  """The cache of a decoder, against whole texts that are read anew for every action."""
  model, params = decoder()
  lift = np.where(np.arange(V) == BACK, np.float32(2), 0)
  fns = samplers.flax_decode_fns(model, params)
  lifted = lambda *inputs: _lifted(fns, lift, *inputs)  # noqa: E731
  output = greedy(KEY, fns._replace(apply=jax.tree_util.Partial(lifted)), PROMPTS, START_LENGTHS)

  def choose(step, row, text, removable):
    del step, row
    logits = logits_of(params, np.array([[*text, *[1] * (P + 5 - len(text))]]))[0, len(text) - 1]
    logits = np.asarray(logits) + lift
    return int(np.argmax(logits if removable else logits[:BACK]))

  expected = slow_generate(choose)
  check(output, expected)
  assert max(expected[-2]) > 1


def _lifted(fns, lift, *inputs):
  logits, cache = fns.apply(*inputs)
  return logits + lift, cache


def test_without_a_backspace_greedy_decoding_is_that_of_generate():
  table = np.where(np.arange(V) == BACK, -np.inf, TABLE)
  fns = samplers.table_decode_fns(table)
  output = greedy(KEY, fns, PROMPTS, START_LENGTHS)
  generate = jitted(samplers.generate, max_new_tokens=5, eos_token_id=EOS, temperature=0.0)
  plain = generate(KEY, fns, PROMPTS, START_LENGTHS)
  for name in ("tokens", "lengths", "finished"):
    np.testing.assert_array_equal(getattr(output, name), getattr(plain, name))
  np.testing.assert_array_equal(output.actions[:, :5], plain.tokens)
  assert not output.num_backspaces.any()


def test_layout_errors():
  rows = PROMPTS, ACTIONS, LENGTHS
  with pytest.raises(ValueError, match="the width of prompt_tokens must be at least 1"):
    samplers.backspace_layout(PROMPTS[:, :0], ACTIONS, LENGTHS, backspace_token_id=BACK)
  with pytest.raises(ValueError, match=r"actions must have shape \[b, T\] with b = 7"):
    samplers.backspace_layout(PROMPTS[1:], ACTIONS, LENGTHS, backspace_token_id=BACK)
  with pytest.raises(TypeError, match="prompt_tokens must be of type int"):
    samplers.backspace_layout(np.float32(PROMPTS), *rows[1:], backspace_token_id=BACK)
  for function, arguments in (
    (samplers.backspace_layout, (PROMPTS, ACTIONS, LENGTHS + 1)),
    (samplers.apply_backspaces, (ACTIONS, LENGTHS + 1)),
    (samplers.insert_corrections, (ACTIONS, LENGTHS + 1, ACTIONS == 0, ACTIONS)),
  ):
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 9\]"):
      function(*arguments, backspace_token_id=BACK)
  with pytest.raises(TypeError, match="insert must be of type bool"):
    samplers.insert_corrections(ACTIONS, LENGTHS, ACTIONS, ACTIONS, backspace_token_id=BACK)


def test_generation_errors():
  fns = samplers.table_decode_fns(TABLE)
  for keywords, message in (
    ({"max_steps": 4}, "max_steps must be at least 5, got 4"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ({"temperature": -1.0}, "temperature"),
    ({"backspace_token_id": V}, r"backspace_token_id must lie in \[0, 7\)"),
    ({"prompt_lengths": START_LENGTHS * 0}, "prompt_lengths must lie in"),
  ):
    arguments = {"prompt_tokens": PROMPTS, "prompt_lengths": START_LENGTHS, **DECODING} | keywords
    with pytest.raises(ValueError, match=message):
      samplers.generate_with_backspace(KEY, fns, **arguments)
