"""A property of all decoders: the rows of a sharded batch stay on their devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab import samplers

V = 6
RNG = np.random.default_rng(0)
TABLE, DRAFT = RNG.normal(size=(2, V, V)).astype(np.float32)
FNS, DRAFT_FNS = map(samplers.table_decode_fns, (TABLE, DRAFT))
PROMPTS = RNG.integers(0, V, (8, 3)).astype(np.int32)
LENGTHS = np.array([1, 2, 3, 3, 2, 1, 1, 2], np.int32)
KEY = jax.random.key(0)


def sample(prompts, lengths):
  return samplers.generate_n(
    KEY,
    FNS,
    prompts,
    lengths,
    num_samples=2,
    max_new_tokens=4,
    eos_token_id=0,
    temperature=0.8,
    top_k=4,
    top_p=0.95,
    min_p=0.02,
    typical_p=0.98,
    repetition_penalty=1.2,
    stop_sequences=((2, 3),),
    min_new_tokens=1,
    return_logits=True,
  )


def search(prompts, lengths):
  return samplers.beam_search(FNS, prompts, lengths, num_beams=2, max_new_tokens=4, eos_token_id=0)


def speculate(prompts, lengths):
  return samplers.speculative_decode(
    KEY, FNS, DRAFT_FNS, prompts, lengths, num_draft_tokens=2, max_new_tokens=4, eos_token_id=0
  )


def switch(prompts, lengths):
  return samplers.entropy_adaptive_decode(
    KEY, FNS, DRAFT_FNS, prompts, lengths, threshold=1.0, max_new_tokens=4, eos_token_id=0
  )


def nudge(prompts, lengths):
  return samplers.nudged_decode(
    FNS, DRAFT_FNS, prompts, lengths, prompts, lengths, max_new_tokens=4, eos_token_id=0
  )


def backtrack(prompts, lengths):
  return samplers.generate_with_backspace(
    KEY,
    FNS,
    prompts,
    lengths,
    backspace_token_id=1,
    max_new_tokens=4,
    max_steps=6,
    eos_token_id=0,
  )


def score(prompts, lengths):
  return samplers.score_sequences(FNS, prompts, lengths, jnp.ones_like(lengths))


@pytest.mark.shipping
@pytest.mark.parametrize("decode", [sample, search, speculate, switch, nudge, backtrack, score])
def test_rows_never_leave_their_device(decode):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.device_put((PROMPTS, LENGTHS), NamedSharding(mesh, PartitionSpec("data")))
  compiled = jax.jit(decode).lower(*rows).compile()
  # Only the scalar of whether all rows have ended may cross devices.
  travels = re.findall(r"all-gather|all-to-all|collective-permute", compiled.as_text())
  assert not travels
  expected = jax.jit(decode)(PROMPTS, LENGTHS)
  for output, leaf in zip(jax.tree.leaves(compiled(*rows)), jax.tree.leaves(expected)):
    np.testing.assert_allclose(output, leaf, rtol=1e-5, atol=1e-6)
