"""Batched autoregressive decoding: one model contract, one loop, everything static in shape.

A model is a `DecodeFns`. Prompts are padded on the right, lengths are one a row, and no row's
result depends on the others, so that the batch may be sharded. Every function is one program under
`jax.jit`, with the options that are no arrays static:

  fns = decoding.flax_decode_fns(model, params)
  sample = jax.jit(decoding.generate_n, static_argnames=("num_samples", "max_new_tokens"))
  output = sample(key, fns, prompts, lengths, num_samples=16, max_new_tokens=64)
  answers = selection.majority_vote(parse(output.tokens))
"""

from jaxlab.samplers.beams import BeamSearchOutput, beam_search, markov_beam_search
from jaxlab.samplers.decode_fns import (
  DecodeFns,
  Prefilled,
  flax_decode_fns,
  prefill,
  score_sequences,
  table_decode_fns,
)
from jaxlab.samplers.generation import (
  GenerateOutput,
  generate,
  generate_n,
  markov_greedy,
)
from jaxlab.samplers.speculative import (
  SpeculativeOutput,
  SpeculativeVerdict,
  speculative_decode,
  speculative_verify,
)
from jaxlab.samplers.token_filters import (
  apply_repetition_penalty,
  filter_min_p,
  filter_top_k,
  filter_top_p,
  filter_typical_p,
  process_logits,
)

__all__ = [
  "apply_repetition_penalty",
  "beam_search",
  "BeamSearchOutput",
  "DecodeFns",
  "filter_min_p",
  "filter_top_k",
  "filter_top_p",
  "filter_typical_p",
  "flax_decode_fns",
  "generate",
  "generate_n",
  "GenerateOutput",
  "markov_beam_search",
  "markov_greedy",
  "prefill",
  "Prefilled",
  "process_logits",
  "score_sequences",
  "speculative_decode",
  "speculative_verify",
  "SpeculativeOutput",
  "SpeculativeVerdict",
  "table_decode_fns",
]
