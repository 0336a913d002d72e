"""Decoding with several models by a plan."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.several_models import decode_by_plan
from jaxlab import samplers

RNG = np.random.default_rng(0)
V, B, T, EOS = 5, 6, 7, 2
TABLES = RNG.normal(size=(2, V, V)).astype(np.float32)
PROMPTS = RNG.integers(0, V, (B, 3))
PLAN = RNG.random((B, T)) < 0.5


def test_a_plan_says_which_model_writes():
  @jax.jit
  def run(tables):
    fns = [samplers.table_decode_fns(table) for table in tables]
    return decode_by_plan(*fns, jnp.array(PROMPTS), jnp.array(PLAN), eos_token_id=EOS)

  out = jax.device_get(run(TABLES))
  for i in range(B):
    last, ended = PROMPTS[i, -1], False
    for t in range(T):
      logits = TABLES[int(PLAN[i, t])][last]
      probs = np.exp(logits) / np.exp(logits).sum()
      last = 0 if ended else int(np.argmax(logits))
      assert out.tokens[i, t] == last
      entropy = 0 if ended else -np.sum(probs * np.log2(probs))
      np.testing.assert_allclose(out.notes[i, t], entropy, rtol=1e-5, atol=1e-6)
      ended |= last == EOS
    assert out.lengths[i] == (np.flatnonzero(out.tokens[i] == EOS)[0] + 1 if ended else T)
