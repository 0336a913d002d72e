import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

from jaxlab.models import DecoderLM, decoder, decoder_config, flops_per_token, num_parameters
from jaxlab.training.mesh import make_mesh, shard_params

V, T = 23, 9
SIZES = {"vocab_size": V, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_positions": 32}
CONFIGS = {
  "llama": decoder_config(**SIZES, num_kv_heads=2, tie_embeddings=False),
  "gpt2": decoder_config(**SIZES, family="gpt2"),
  "qwen2": dataclasses.replace(
    decoder_config(**SIZES, num_kv_heads=1, family="qwen2"), sliding_window=3, first_sliding_layer=1
  ),
}


@functools.cache
def random_params(name):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(DecoderLM(CONFIGS[name]).init, jax.random.key(0), tokens)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@functools.partial(jax.jit, static_argnames="name")
def apply(name, params, tokens, inputs):
  return DecoderLM(CONFIGS[name]).apply({"params": params}, tokens, return_hidden=True, **inputs)


def run(name, tokens, **inputs):
  return apply(name, random_params(name), tokens, inputs)


def step(name, tokens, positions, cache):
  out = run(name, tokens, positions=positions, cache=cache)
  return out.logits, out.cache


@pytest.fixture(scope="module")
def tokens():
  return jnp.asarray(np.random.default_rng(1).integers(0, V, (2, T)), jnp.int32)


def rms(x, scale, eps=1e-6):
  return x / np.sqrt((x**2).mean() + eps) * scale


def slow_logits(params, tokens, config):
  """Llama for one row: one token, layer, head and key at a time."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  d, group = config.head_dim, config.num_heads // config.num_kv_heads
  angle = 10000.0 ** (-2 * np.arange(d // 2) / d)

  def turn(x, position):
    c, s = np.cos(position * angle), np.sin(position * angle)
    return np.concatenate([x[: d // 2] * c - x[d // 2 :] * s, x[d // 2 :] * c + x[: d // 2] * s])

  hidden = [p["embed"]["embedding"][token] for token in tokens]
  for l in range(config.num_layers):
    layer = jax.tree.map(lambda x: x[l], p["layers"])  # noqa: B023
    attention, mlp = layer["attention"], layer["mlp"]
    normed = [rms(h, layer["norm1"]["scale"]) for h in hidden]
    after = []
    for t, h in enumerate(hidden):
      heads = []
      for i in range(config.num_heads):
        mine, theirs = slice(i * d, i * d + d), slice(i // group * d, (i // group + 1) * d)
        q = turn(normed[t] @ attention["q"]["kernel"][:, mine], t)
        keys = [turn(normed[s] @ attention["k"]["kernel"][:, theirs], s) for s in range(t + 1)]
        scores = np.array([q @ key / np.sqrt(d) for key in keys])
        weights = np.exp(scores - scores.max())
        values = [normed[s] @ attention["v"]["kernel"][:, theirs] for s in range(t + 1)]
        heads.append(sum(w * v for w, v in zip(weights / weights.sum(), values)))
      h = h + np.concatenate(heads) @ attention["out"]["kernel"]
      x = rms(h, layer["norm2"]["scale"])
      gate = x @ mlp["gate"]["kernel"]
      after.append(
        h + (gate / (1 + np.exp(-gate)) * (x @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
      )
    hidden = after
  return np.stack([rms(h, p["final_norm"]["scale"]) @ p["lm_head"]["kernel"] for h in hidden])


def test_logits_match_a_slow_loop(tokens):
  actual = run("llama", tokens).logits
  expected = slow_logits(random_params("llama"), np.asarray(tokens[0]), CONFIGS["llama"])
  np.testing.assert_allclose(actual[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_calls_match_one_call(name, tokens):
  whole = run(name, tokens).logits
  prompt = 4
  positions = jnp.tile(jnp.arange(prompt), (2, 1))
  cache = DecoderLM(CONFIGS[name]).init_cache(2, T + 2)
  logits, cache = step(name, tokens[:, :prompt], positions, cache)
  np.testing.assert_allclose(logits, whole[:, :prompt], rtol=1e-5, atol=1e-5)

  def play(cache, start):
    for t in range(start, T):
      logits, cache = step(name, tokens[:, t : t + 1], jnp.full((2, 1), t), cache)
      np.testing.assert_allclose(logits, whole[:, t : t + 1], rtol=1e-5, atol=1e-5)
    return cache

  # Passing smaller positions rewinds the cache.
  play(play(cache, prompt), 2)


@pytest.mark.parametrize("name", CONFIGS)
def test_unstacked_layers_match_stacked_layers(name, tokens):
  model, params = DecoderLM(CONFIGS[name]).for_decoding(random_params(name))
  cache = model.init_cache(2, T)
  apply_own = jax.jit(model.apply, static_argnames="return_hidden")
  cached = apply_own({"params": params}, tokens, cache=cache)
  stacked = run(name, tokens, cache=cache)
  for actual, expected in zip((cached.logits, *cached.cache), (stacked.logits, *stacked.cache)):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  again, same = model.for_decoding(params)
  assert again == model and same is params
  plain = apply_own({"params": params}, tokens, return_hidden=True)
  np.testing.assert_allclose(plain.logits, cached.logits, rtol=1e-5, atol=1e-5)
  fresh = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  assert jax.tree.structure(fresh) == jax.tree.structure(params)


@pytest.mark.parametrize("name", CONFIGS)
def test_right_padding_has_no_effect(name, tokens):
  whole = run(name, tokens).logits
  lengths = np.array([2, 4])
  padded = jnp.where(jnp.arange(4) < lengths[:, None], tokens[:, :4], 5)
  cache = DecoderLM(CONFIGS[name]).init_cache(2, T + 2)
  # Earlier contents of the slots have no effect either.
  cache = jax.tree.map(lambda x: x + 100.0, cache)
  _, cache = step(name, padded, jnp.tile(jnp.arange(4), (2, 1)), cache)
  for t in range(4):
    here = lengths + t
    now = jnp.take_along_axis(tokens, here[:, None], axis=1)
    logits, cache = step(name, now, jnp.asarray(here[:, None]), cache)
    for row in range(2):
      np.testing.assert_allclose(logits[row, 0], whole[row, here[row]], rtol=1e-4, atol=1e-4)


def test_positions_out_of_range_are_dropped(tokens):
  cache = DecoderLM(CONFIGS["llama"]).init_cache(2, T + 2)
  for position in (-1, T + 2):
    logits, after = step("llama", tokens[:, :1], jnp.full((2, 1), position), cache)
    jax.tree.map(np.testing.assert_array_equal, after, cache)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_later_tokens_have_no_effect(name, tokens):
  changed = tokens.at[:, 5].add(1)
  before, after = run(name, tokens).logits, run(name, changed % V).logits
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert not np.allclose(before[:, 5:], after[:, 5:], atol=1e-2)


def test_a_sliding_window_hides_old_keys(tokens):
  # Layer 0 is full and two layers see 3 positions; with all sliding, 3 layers reach 6 back.
  sliding = dataclasses.replace(CONFIGS["qwen2"], first_sliding_layer=0)
  params = random_params("qwen2")
  score = jax.jit(lambda tokens: DecoderLM(sliding).apply({"params": params}, tokens).logits)
  before, after = score(tokens), score(tokens.at[:, 0].set((tokens[:, 0] + 1) % V))
  np.testing.assert_array_equal(before[:, 7:], after[:, 7:])
  assert not np.allclose(before[:, 6], after[:, 6], atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_segments_are_separate_rows(name, tokens):
  segment_ids = jnp.array([[1] * 4 + [2] * 5, [3] * 9])
  packed = run(name, tokens, segment_ids=segment_ids).logits
  whole = run(name, tokens).logits
  shifted = run(name, jnp.roll(tokens, -4, axis=1)).logits
  expected = jnp.concatenate([whole[:1, :4], shifted[:1, :5]], axis=1)
  np.testing.assert_allclose(packed[:1], expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(packed[1], whole[1], rtol=1e-4, atol=1e-4)


def test_attention_mask_replaces_the_other_masks(tokens):
  causal = jnp.tril(jnp.ones((2, T, T), bool))
  plain = run("llama", tokens).logits
  np.testing.assert_allclose(run("llama", tokens, attention_mask=causal).logits, plain, atol=1e-5)
  everyone = jnp.ones((2, T, T), bool)
  changed = tokens.at[:, -1].set((tokens[:, -1] + 1) % V)
  before, after = (run("llama", x, attention_mask=everyone).logits for x in (tokens, changed))
  assert not np.allclose(before[:, 0], after[:, 0], atol=1e-3)

  # Segments as a mask; `segment_ids` then only restart the positions.
  segment_ids = jnp.array([[1] * 4 + [2] * 5, [3] * 9])
  mask = causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
  packed = run("llama", tokens, segment_ids=segment_ids).logits
  masked = run("llama", tokens, segment_ids=segment_ids, attention_mask=mask[:, None]).logits
  np.testing.assert_allclose(masked, packed, atol=1e-5)
  # No sliding window is applied to it.
  wide = run("qwen2", tokens, attention_mask=causal).logits
  assert not np.allclose(wide, run("qwen2", tokens).logits, atol=1e-3)


@functools.partial(jax.jit, static_argnames="remat")
def slopes(params, tokens, mask, *, remat=False):
  def loss(params):
    model = DecoderLM(CONFIGS["llama"], remat=remat)
    return jnp.square(model.apply({"params": params}, tokens, attention_mask=mask).logits).mean()

  return jax.value_and_grad(loss)(params)


def test_extreme_cases_are_finite(tokens):
  """Rows that see no key, and very large parameters."""
  nobody, causal = jnp.zeros((2, T, T), bool), jnp.tril(jnp.ones((2, T, T), bool))
  params = random_params("llama")
  huge = jax.tree.map(lambda x: 1e3 * x, params)
  for arguments in ((params, tokens, nobody), (huge, tokens, causal)):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes(*arguments)))


def test_remat_changes_no_gradient(tokens):
  arguments = random_params("llama"), tokens, jnp.tril(jnp.ones((2, T, T), bool))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, slopes(*arguments, remat=True), slopes(*arguments))


def test_intermediates_add_up(tokens):
  model = DecoderLM(CONFIGS["llama"])
  variables = {"params": random_params("llama")}
  out, state = jax.jit(
    lambda: model.apply(variables, tokens, return_hidden=True, mutable=["intermediates"])
  )()
  kept = {name: x[0] for name, x in state["intermediates"]["layers"].items()}
  assert {x.shape for x in kept.values()} == {(3, 2, T, 32)}
  hidden = kept["hidden_states"]
  branches = kept["attention_outputs"] + kept["mlp_outputs"]
  np.testing.assert_allclose(hidden[1:] - hidden[:-1], branches[1:], atol=1e-4)
  embedded = random_params("llama")["embed"]["embedding"][tokens]
  np.testing.assert_allclose(hidden[0] - embedded, branches[0], atol=1e-4)
  normed = hidden[-1] / np.sqrt(np.square(hidden[-1]).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
    out.hidden, normed * random_params("llama")["final_norm"]["scale"], rtol=1e-4, atol=1e-5
  )
  assert run("llama", tokens).cache is None


def test_dropout_needs_its_key_and_is_off_by_default(tokens):
  model = DecoderLM(CONFIGS["llama"], dropout_rate=0.5)
  variables = {"params": random_params("llama")}

  @jax.jit
  def both(key):
    noisy = model.apply(variables, tokens, deterministic=False, rngs={"dropout": key})
    return noisy.logits, model.apply(variables, tokens).logits

  (first, plain), (second, _) = both(jax.random.key(0)), both(jax.random.key(1))
  assert not np.allclose(first, second)
  np.testing.assert_array_equal(both(jax.random.key(0))[0], first)
  np.testing.assert_allclose(plain, run("llama", tokens).logits, atol=1e-5)
  with pytest.raises(ValueError, match="dropout_rate .* got 1.0"):
    DecoderLM(CONFIGS["llama"], dropout_rate=1.0)


def test_half_precision(tokens):
  model = DecoderLM(CONFIGS["qwen2"], dtype=jnp.bfloat16)
  params = jax.tree.map(lambda x: 0.3 * x, random_params("qwen2"))
  actual = jax.jit(lambda: model.apply({"params": params}, tokens, return_hidden=True))()
  assert (actual.logits.dtype, actual.hidden.dtype) == (jnp.float32, jnp.bfloat16)
  wide = apply("qwen2", params, tokens, {}).logits
  assert np.abs(actual.logits - wide).max() < 0.1
  assert model.init_cache(1, 2).keys.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_and_flop_counts(name):
  config = CONFIGS[name]
  count = sum(x.size for x in jax.tree.leaves(random_params(name)))
  assert num_parameters(config) == count
  tables = {"llama": V * 32, "gpt2": 32 * 32, "qwen2": 0}[name]
  assert flops_per_token(config, 7) == 2 * (count - tables) + 4 * 3 * 32 * 7
  with pytest.raises(ValueError, match="context_length .* got -1"):
    flops_per_token(config, -1)


def test_new_model_predicts_nearly_uniformly(tokens):
  model = DecoderLM(decoder_config(**SIZES))
  logits = jax.jit(lambda key: model.init_with_output(key, tokens)[0].logits)(jax.random.key(0))
  assert 0.3 < float(jnp.std(logits)) < 2.0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sharded_over_heads(name, tokens):
  mesh = make_mesh({"data": 4, "model": 2})
  params = shard_params(random_params(name), mesh, decoder.DECODER_SHARDING_RULES)
  flat = traverse_util.flatten_dict(params, sep="/")
  for path, leaf in flat.items():
    split = "norm" not in path and not path.endswith(("out/bias", "down/bias"))
    assert ("model" in leaf.sharding.spec) == split, path
  assert flat["layers/attention/q/kernel"].sharding.spec == PartitionSpec(None, None, "model")
  actual = apply(name, params, tokens, {}).logits
  np.testing.assert_allclose(actual, run(name, tokens).logits, rtol=1e-4, atol=1e-4)


def test_unknown_tokens(tokens):
  model, params = DecoderLM(CONFIGS["llama"]), {"params": random_params("llama")}
  run_on = jax.jit(lambda tokens: model.apply(params, tokens).logits)
  spoiled = run_on(tokens.at[0, T - 1].set(-1))
  np.testing.assert_array_equal(spoiled[1], run_on(tokens)[1])
  assert np.isnan(spoiled[0, T - 1]).all()
  for token in (-1, 10**6):
    with pytest.raises(ValueError, match="tokens must lie in"):
      model.apply(params, np.full((1, 2), token))


def test_errors(tokens):
  model, params = DecoderLM(CONFIGS["gpt2"]), {"params": random_params("gpt2")}
  mask = jnp.ones((2, T, T), bool)
  cache = model.init_cache(2, T)
  for inputs in ({"attention_mask": mask}, {"segment_ids": tokens}):
    with pytest.raises(ValueError, match="must be None with a cache"):
      model.apply(params, tokens, cache=cache, **inputs)
  with pytest.raises(ValueError, match="33 tokens exceed max_positions 32"):
    model.apply(params, jnp.zeros((1, 33), jnp.int32))
  with pytest.raises(ValueError, match="max_length 33 exceeds max_positions 32"):
    model.init_cache(1, 33)
  with pytest.raises(ValueError, match="batch_size .* got 0"):
    decoder.init_cache(CONFIGS["llama"], batch_size=0, max_length=3)
  assert decoder.init_cache(CONFIGS["llama"], batch_size=1, max_length=33).keys.shape == (
    (1, 33, 3, 2, 8)
  )
  with pytest.raises(ValueError, match="attention_mask must have shape"):
    model.apply(params, tokens, attention_mask=jnp.ones((2, T, T - 1), bool))
  with pytest.raises(TypeError, match="attention_mask must be of type bool"):
    model.apply(params, tokens, attention_mask=mask.astype(jnp.float32))
  with pytest.raises(ValueError, match="positions must have shape"):
    model.apply(params, tokens, tokens[:, 1:])
  with pytest.raises(ValueError, match="cache.keys must have shape"):
    model.apply(
      params, tokens, cache=decoder.init_cache(CONFIGS["gpt2"], batch_size=1, max_length=9)
    )
