"""Generation by a search that scores its own partial texts and rewinds from low scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.samplers.decode_fns import DecodeFns, as_token_ids, is_any_token, prefill
from jaxlab.samplers.rewind_nodes import mix_among
from jaxlab.samplers.rewind_runs import (
  SearchModel,
  SearchOptions,
  choose_candidates,
  choose_path,
  draw_runs,
  to_clause_end,
)
from jaxlab.samplers.rewind_tree import (
  RewindTree,
  backup_path,
  commit_move,
  expand_leaf,
  init_rewind_tree,
  most_visited_child,
)


class RewindOutput(NamedTuple):
  """A text that was searched for.

  Attributes:
    tokens: new tokens, the one that ended the text included, then 0; int32 `[max_new_tokens]`.
    length: how many, int32.
    num_iterations: visits of the search, over all moves, int32.
    committed_values: value of each set of tokens when it was kept, then 0, `[m]`; a set is at least
      as long as `set_lengths` says, unless the text ends.
    num_moves: sets that were kept, int32.
    num_generated: tokens that were drawn, those that are not in the text included, int32.
    num_evaluated: tokens of all texts that were scored, prompts included, int32.
  """

  tokens: chex.Array
  length: chex.Array
  num_iterations: chex.Array
  committed_values: chex.Array
  num_moves: chex.Array
  num_generated: chex.Array
  num_evaluated: chex.Array


def rewind_generate(
  key: chex.PRNGKey,
  decode_fns: DecodeFns,
  prompt_tokens: chex.Array,
  *,
  evaluate_fn: Callable[[chex.Array, chex.Array], chex.Array],
  embed_fn: Callable[[chex.Array, chex.Array], chex.Array],
  max_new_tokens: int,
  num_candidates: int = 10,
  set_lengths: Sequence[int] = (1, 2, 4, 10),
  max_iterations: int = 50,
  extra_iterations: int = 15,
  min_visits: int = 6,
  value_threshold: chex.Numeric = 0.8,
  candidate_top_k: int = 15,
  temperature: chex.Numeric = 1.0,
  eos_token_id: int | Sequence[int] | None,
  clause_end_ids: int | Sequence[int] | None = None,
  num_tries: int | None = None,
  exploration: chex.Numeric = 2.0,
  similarity_weight: chex.Numeric = 0.2,
  uniform_weight: chex.Numeric = 0.25,
) -> RewindOutput:
  """Continues a prompt by the runs of tokens that its own evaluation supports, without training.

  A visit goes from the root to a leaf of a tree of runs, samples the text on to the end of a
  clause, scores it, gives the leaf children and enters the score on the way back. Each visit begins
  at the root again: that is the rewinding. Once the most visited child of the root is visited and
  valued enough, it is kept and becomes the root. A node whose children are alike and all bad gets
  one more. It is one program; `jax.vmap` over keys and prompts searches for many texts at once::

    search = functools.partial(rewind_generate, evaluate_fn=judge, embed_fn=embed,
                               max_new_tokens=24, eos_token_id=2, clause_end_ids=5)
    outputs = jax.jit(jax.vmap(lambda key, prompt: search(key, fns, prompt)))(keys, prompts)

  Args:
    key: random key; visit i draws with `fold_in(key, i)`.
    decode_fns: the model.
    prompt_tokens: the prompt, i32 `[P]`.
    evaluate_fn: `(tokens i32[P + max_new_tokens], length) -> score` in [-1, 1] of a prompt with a
      part of its answer, padded on the right with 0; such as `self_evaluation_score` of a model
      that reads a question around the text. It is traced.
    embed_fn: `(tokens i32[max_new_tokens], length) -> [d]`, an embedding of a part of the answer,
      padded alike. It is traced, and mapped over parts.
    max_new_tokens: most tokens of the answer, at least 1.
    num_candidates: most children of a leaf, at least 1: the likeliest tokens, or a greedy run and
      different sampled ones.
    set_lengths: tokens of the sets at depth 0, 1, ...; the last one from there on.
    max_iterations: visits of a root before its best child is kept anyway, at least 1.
    extra_iterations: at least so many of them after it became the root, at least 1.
    min_visits: a child is kept early if it has more visits than this, at least 0, ...
    value_threshold: ... and a larger value than this, in [-1, 1].
    candidate_top_k: each token of a run is among so many likeliest ones.
    temperature: of the candidates, > 0; texts are sampled on to the end of a clause at 1.
    eos_token_id: the token that ends a text, several, or None.
    clause_end_ids: tokens that end a clause, several, or None to score texts as they are.
    num_tries: sampled runs, of which the different ones count; None for `num_candidates - 1`.
    exploration: as in `selection_scores`.
    similarity_weight: as in `backup_level`.
    uniform_weight: as in `mix_prior`, for the children of a root.

  Returns:
    The `RewindOutput`.

  Raises:
    TypeError: if tokens are not integers.
    ValueError: if an option lies outside its range.

  Reference: Li et al., RAIN: Your Language Models Can Align Themselves without Finetuning, ICLR
  2024, https://arxiv.org/abs/2309.07124, and the published code.
  """
  check_arrays(prompt_tokens=(prompt_tokens, "int [P]"))
  if num_tries is None:
    num_tries = num_candidates - 1
  check_at_least(
    1,
    **{"the length of prompt_tokens": np.shape(prompt_tokens)[0]},
    max_new_tokens=max_new_tokens,
    num_candidates=num_candidates,
    max_iterations=max_iterations,
    extra_iterations=extra_iterations,
    candidate_top_k=candidate_top_k,
    **{"the number of set_lengths": len(set_lengths)},
    **{f"set_lengths[{i}]": length for i, length in enumerate(set_lengths)},
  )
  check_at_least(0, min_visits=min_visits)
  check_at_least(num_candidates - 1, num_tries=num_tries)
  check_range("value_threshold", value_threshold, "[-1, 1]")
  check_range("temperature", temperature, "(0, inf)")
  check_range("exploration", exploration, "[0, inf)")
  check_range("similarity_weight", similarity_weight, "[0, inf)")
  check_range("uniform_weight", uniform_weight, "[0, 1]")
  options = SearchOptions(
    max_new_tokens,
    num_candidates,
    tuple(map(int, set_lengths)),
    max_iterations,
    extra_iterations,
    min_visits,
    value_threshold,
    candidate_top_k,
    temperature,
    as_token_ids(eos_token_id),
    as_token_ids(clause_end_ids),
    num_tries,
    exploration,
    similarity_weight,
    uniform_weight,
  )
  prompt = jnp.asarray(prompt_tokens).astype(jnp.int32)
  return _search(key, decode_fns, prompt, evaluate_fn, embed_fn, options)


class _State(NamedTuple):
  """What the loop carries: the tree below the text that is kept, and this text."""

  tree: RewindTree
  limit: jax.Array
  finished: jax.Array
  output: RewindOutput


@compiled_once
def _search(key, decode_fns, prompt, evaluate_fn, embed_fn, options: SearchOptions) -> RewindOutput:
  width, size = options.max_new_tokens, prompt.shape[0]
  lengths = jnp.full(1, size, jnp.int32)
  start = prefill(decode_fns, prompt[None], lengths, max_length=size + width)
  model = SearchModel(decode_fns, start, prompt, options)
  texts = jax.ShapeDtypeStruct((width,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
  (dim,) = jax.eval_shape(embed_fn, *texts).shape
  none = jnp.zeros((), jnp.int32)
  tree = init_rewind_tree(
    capacity=options.capacity, embedding_dim=dim, set_width=max(options.set_lengths)
  )
  values = jnp.zeros(options.max_moves, jnp.float32)
  output = RewindOutput(jnp.zeros(width, jnp.int32), none, none, values, none, none, none)
  state = _State(tree, none + options.max_iterations, jnp.zeros((), bool), output)

  def visit(state):
    keys = jax.random.split(jax.random.fold_in(key, state.output.num_iterations), 3)
    return _decide(_visit(keys, model, evaluate_fn, embed_fn, state), options)

  state = varying_carry(visit, state)
  return jax.lax.while_loop(lambda state: ~state.finished, visit, state).output


def _visit(keys, model: SearchModel, evaluate_fn, embed_fn, state: _State) -> _State:
  """One visit of the tree, from the choice of a leaf to the backup."""
  options, output = model.options, state.output
  tree, path, num_added = choose_path(keys[2], model, state.tree, output.tokens, output.length)
  reading = model.read(tree, path, output.tokens, output.length)
  leaf, length = path[jnp.sum(path >= 0) - 1], reading.ends[-1]
  text, text_length = to_clause_end(keys[0], model, reading, length)
  visible = jnp.where(jnp.arange(text.shape[0]) < text_length, text, 0)
  whole = jnp.concatenate([model.prompt, visible])
  score = as_accumulator(evaluate_fn(whole, model.prompt.shape[0] + text_length))

  over = model.is_over(reading.answer, length)
  set_length = jnp.array(options.set_lengths)[
    jnp.minimum(tree.depth[leaf], len(options.set_lengths) - 1)
  ]
  limit = jnp.where(over, 0, jnp.minimum(set_length, text.shape[0] - length))
  runs = draw_runs(keys[1], model, reading, length, limit, set_length == 1, 1 + options.num_tries)
  valid, priors = choose_candidates(runs, set_length == 1, options)
  priors = jnp.where(leaf == tree.root, mix_among(priors, valid, options.uniform_weight), priors)
  tree = expand_leaf(tree, leaf, runs.tokens, jnp.where(valid, runs.lengths, 0), priors)

  # What a set began is the text from the end of its parent on.
  begins = jnp.concatenate([output.length[None], reading.ends[:-1]])
  parts = jax.vmap(lambda begin: jnp.roll(visible, -begin))(begins)
  counts = text_length - begins
  parts = jnp.where(jnp.arange(text.shape[0])[None] < counts[:, None], parts, 0)
  embeddings = jax.vmap(embed_fn)(parts, counts)
  tree = backup_path(tree, path, embeddings, score, similarity_weight=options.similarity_weight)
  output = output._replace(
    num_iterations=output.num_iterations + 1,
    num_generated=output.num_generated
    + (text_length - length + jnp.sum(runs.lengths) + num_added).astype(jnp.int32),
    num_evaluated=output.num_evaluated + model.prompt.shape[0] + text_length,
  )
  return state._replace(tree=tree, output=output)


def _decide(state: _State, options: SearchOptions) -> _State:
  """Keeps the best child of the root if it is good enough or has had its time."""
  tree, output = state.tree, state.output
  best, exists = most_visited_child(tree)
  good = (tree.real_visits[best] > options.min_visits) & (
    tree.value[best] > options.value_threshold
  )
  decided = (good & exists) | (tree.real_visits[tree.root] >= state.limit)
  move = commit_move(tree, uniform_weight=options.uniform_weight)
  count = jnp.where(exists, move.tree.token_length[0], 0)
  places = jnp.arange(move.tokens.shape[0], dtype=jnp.int32)
  where = jnp.where(places < count, output.length + places, output.tokens.shape[0])
  length = output.length + count
  ended = jnp.any(is_any_token(move.tokens, options.eos_ids) & (places < count))
  kept = _State(
    move.tree,
    jnp.maximum(options.max_iterations, move.tree.real_visits[0] + options.extra_iterations),
    ended | (length >= output.tokens.shape[0]) | ~exists,
    output._replace(
      tokens=output.tokens.at[where].set(move.tokens, mode="drop"),
      length=length,
      committed_values=output.committed_values.at[output.num_moves].set(
        tree.value[best], mode="drop"
      ),
      num_moves=output.num_moves + exists,
    ),
  )
  return jax.tree.map(lambda new, old: jnp.where(decided, new, old), kept, state)
