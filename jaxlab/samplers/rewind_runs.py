"""Runs of tokens as candidates of a search: how they are drawn, told apart, and added."""

import functools
import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator
from jaxlab._programs import varying_carry
from jaxlab.samplers.decode_fns import DecodeFns, is_any_token, repeat_rows
from jaxlab.samplers.rewind_nodes import candidate_priors, should_widen
from jaxlab.samplers.rewind_tree import RewindTree, expand_leaf, select_leaf
from jaxlab.samplers.token_filters import process_logits
from jaxlab.samplers.top_k import row_top_k

MAX_CHILDREN = 20


class SearchOptions(NamedTuple):
  """The options of `rewind_generate`; static, except for numbers that may be traced."""

  max_new_tokens: int
  num_candidates: int
  set_lengths: tuple[int, ...]
  max_iterations: int
  extra_iterations: int
  min_visits: int
  value_threshold: chex.Numeric
  candidate_top_k: int
  temperature: chex.Numeric
  eos_ids: tuple[int, ...]
  clause_end_ids: tuple[int, ...]
  num_tries: int
  exploration: chex.Numeric
  similarity_weight: chex.Numeric
  uniform_weight: chex.Numeric

  @property
  def max_moves(self) -> int:
    """Sets that fill a text; only its end makes one shorter."""
    ends = itertools.accumulate(self.set_length(i) for i in itertools.count())
    return next(i for i, end in enumerate(ends, 1) if end >= self.max_new_tokens)

  def set_length(self, depth: int) -> int:
    """Tokens of the sets below a node of this depth."""
    return self.set_lengths[min(depth, len(self.set_lengths) - 1)]

  @property
  def max_children(self) -> int:
    """Most children of a node."""
    return max(self.num_candidates, MAX_CHILDREN)

  @property
  def capacity(self) -> int:
    """Rows for all children of all nodes that a root has been visited through."""
    visits = self.max_iterations
    for _ in range(self.max_moves - 1):
      visits = max(self.max_iterations, visits - 1 + self.extra_iterations)
    return 1 + visits * max(self.max_children, 1 + self.num_tries)


class Reading(NamedTuple):
  """The answer along a path, and what the model makes of it.

  `ends` are the lengths of the answer up to each node, and `logits` those of the token after each
  length. `cache` holds all of the answer; what lies beyond a length is not seen from it.
  """

  answer: jax.Array
  ends: jax.Array
  logits: jax.Array
  cache: Any


class SearchModel(NamedTuple):
  """The model after the prompt, whose last token is the next input."""

  decode_fns: DecodeFns
  start: Any
  prompt: jax.Array
  options: SearchOptions

  def read(self, tree: RewindTree, path: jax.Array, kept: jax.Array, length) -> Reading:
    """Writes the sets of a path behind the text that is kept, and reads all of it."""
    set_width = tree.tokens.shape[1]
    places = jnp.arange(set_width, dtype=jnp.int32)

    def write(carry, node):
      answer, end = carry
      # The set of the root is in the text that is kept.
      count = jnp.where((node >= 0) & (node != tree.root), tree.token_length[node], 0)
      where = jnp.where(places < count, end + places, answer.shape[0])
      answer = answer.at[where].set(tree.tokens[node], mode="drop")
      return (answer, end + count), end + count

    carry = varying_carry(write, (kept, length), path)
    (answer, _), ends = jax.lax.scan(write, carry, path)
    tokens = jnp.concatenate([self.start.tokens, answer])[None]
    positions = self.start.positions[:, None] + jnp.arange(tokens.shape[1])[None]
    logits, cache = self.decode_fns.apply(tokens, self.start.cache, positions)
    return Reading(answer, ends, as_accumulator(logits[0]), cache)

  def step(self, cache, tokens: jax.Array, length: jax.Array):
    """Logits after one more token of each row, which stands at the same place of the answer."""
    positions = jnp.broadcast_to(self.prompt.shape[0] + length, tokens.shape).astype(jnp.int32)
    logits, cache = self.decode_fns.apply(tokens[:, None], cache, positions[:, None])
    return as_accumulator(logits[:, 0]), cache

  def last_token(self, answer: jax.Array, length: jax.Array) -> jax.Array:
    """The last token of a part of the answer, or of the prompt."""
    return jnp.where(length > 0, answer[length - 1], self.prompt[-1])

  def is_over(self, answer: jax.Array, length: jax.Array) -> jax.Array:
    """Whether nothing follows a part of the answer."""
    ended = is_any_token(self.last_token(answer, length), self.options.eos_ids) & (length > 0)
    return ended | (length >= answer.shape[0])


class Runs(NamedTuple):
  """Runs of tokens, padded with 0, `[r, s]`, and their lengths and log-probabilities, `[r]`."""

  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array


def to_clause_end(key, model: SearchModel, reading: Reading, length) -> tuple[jax.Array, jax.Array]:
  """The answer sampled on to the end of a clause, and its length."""
  ends = model.options.clause_end_ids
  if not ends:
    return reading.answer, length

  def proceed(state):
    answer, length, _, _ = state
    in_clause = ~is_any_token(model.last_token(answer, length), ends)
    return in_clause & ~model.is_over(answer, length)

  def advance(state):
    answer, length, logits, cache = state
    token = jax.random.categorical(jax.random.fold_in(key, length), logits).astype(jnp.int32)
    logits, cache = model.step(cache, token[None], length)
    return answer.at[length].set(token, mode="drop"), length + 1, logits[0], cache

  state = reading.answer, length, reading.logits[length], reading.cache
  return jax.lax.while_loop(proceed, advance, varying_carry(advance, state))[:2]


def draw_runs(key, model: SearchModel, reading, length, limit, single, num_rows: int, taken=None):
  """Runs of up to `limit` tokens after a length of the answer, and their probabilities.

  Runs of one token are the likeliest ones (of those that are not taken), or else the first is
  greedy and the others are drawn; if some are taken, all are drawn.
  """
  options = model.options
  logits = jnp.broadcast_to(reading.logits[length][None], (num_rows, reading.logits.shape[1]))
  process = functools.partial(process_logits, temperature=options.temperature)
  rows, vocab_size = jnp.arange(num_rows), logits.shape[1]

  def choose(step, logits):
    allowed = process(logits, top_k=options.candidate_top_k)
    drawn = jax.random.categorical(jax.random.fold_in(key, step), allowed)
    greedy = (rows == 0) & (taken is None)
    tokens = jnp.where(greedy, jnp.argmax(allowed, axis=-1), drawn).astype(jnp.int32)
    return tokens, _log_prob(allowed, tokens)

  tokens, log_probs = choose(0, logits)
  if taken is None:
    allowed = process(logits, top_k=options.num_candidates)
    best = row_top_k(allowed[0], min(num_rows, vocab_size))[1]
    best = jnp.pad(best, (0, num_rows - best.shape[0]))
    # There may be fewer tokens than rows.
    best_log_probs = jnp.where(rows < vocab_size, _log_prob(allowed, best), -jnp.inf)
  else:
    scores = process(logits)
    best = jnp.argmax(jnp.where(taken[None], -jnp.inf, scores), axis=-1).astype(jnp.int32)
    # Among the tokens that are taken and the new one.
    others = taken[None] | (jnp.arange(vocab_size)[None] == best[:, None])
    best_log_probs = _log_prob(jnp.where(others, scores, -jnp.inf), best)
  tokens = jnp.where(single, best, tokens)
  log_probs = jnp.where(single, best_log_probs, log_probs)
  written = jnp.zeros((num_rows, max(options.set_lengths)), jnp.int32).at[:, 0].set(tokens)
  some = (limit > 0).astype(jnp.int32)
  runs = Runs(written, jnp.broadcast_to(some, (num_rows,)), log_probs)

  def is_open(runs):
    last = jnp.take_along_axis(runs.tokens, jnp.maximum(runs.lengths - 1, 0)[:, None], axis=1)
    return (runs.lengths < limit) & ~is_any_token(last[:, 0], options.eos_ids)

  def advance(state):
    step, runs, last, cache = state
    logits, cache = model.step(cache, last, length + step - 1)
    tokens, log_probs = choose(step, logits)
    open_rows = is_open(runs)
    tokens = jnp.where(open_rows, tokens, 0)
    return (
      step + 1,
      Runs(
        jax.lax.dynamic_update_slice_in_dim(runs.tokens, tokens[:, None], step, axis=1),
        runs.lengths + open_rows,
        runs.log_probs + jnp.where(open_rows, log_probs, 0.0),
      ),
      tokens,
      cache,
    )

  state = jnp.ones((), jnp.int32), runs, tokens, repeat_rows(reading.cache, num_rows)
  state = varying_carry(advance, state)
  return jax.lax.while_loop(lambda state: jnp.any(is_open(state[1])), advance, state)[1]


def _log_prob(logits, tokens) -> jax.Array:
  return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=-1)[:, 0]


def choose_candidates(runs: Runs, single, options: SearchOptions) -> tuple[jax.Array, jax.Array]:
  """Which runs become children, and their priors."""
  equal = jnp.all(runs.tokens[:, None] == runs.tokens[None], axis=-1)
  equal &= runs.lengths[:, None] == runs.lengths[None]
  repeated = jnp.any(jnp.tril(equal, -1), axis=1)
  valid = (runs.log_probs > -jnp.inf) & (runs.lengths > 0) & ~repeated
  valid &= jnp.cumsum(valid) <= options.num_candidates
  # Products of many probabilities underflow; priors only need their ratios.
  logs = jnp.where(valid, runs.log_probs, -jnp.inf)
  largest = jnp.max(logs)
  probs = jnp.exp(logs - jnp.where(jnp.isfinite(largest), largest, 0.0))
  several = candidate_priors(probs[0], jnp.where(valid, probs, -1.0)[1:])
  total = jnp.sum(probs)
  return valid, jnp.where(single, probs / jnp.where(total == 0, 1.0, total), several)


def choose_path(key, model: SearchModel, tree: RewindTree, kept: jax.Array, length):
  """A path to a leaf, on which nodes whose children are alike and bad first get one more.

  Returns the tree, the path, and how many tokens were drawn.
  """
  options = model.options
  places = jnp.arange(options.max_moves + 1)

  def select(tree):
    return select_leaf(tree, max_depth=places.size, exploration=options.exploration)

  def children(tree, node):
    is_child = (tree.parent == node) & (node >= 0)
    rows = jnp.nonzero(is_child, size=options.max_children, fill_value=0)[0]
    return rows, jnp.sum(is_child), jnp.all(tree.has_embedding | ~is_child)

  def wanted(state):
    """Where on the path a child is wanted; what lies above was seen to already."""
    tree, path, first, _ = state

    def wants(node):
      rows, number, all_visited = children(tree, node)
      return all_visited & should_widen(
        tree.embedding[rows],
        tree.value[rows],
        set_length=tree.token_length[rows[0]],
        num_children=number,
        max_children=MAX_CHILDREN,
      )

    return jax.vmap(wants)(path) & (places >= first)

  def add(state):
    tree, path, _, drawn = state
    place = jnp.argmax(wanted(state)).astype(jnp.int32)
    reading = model.read(tree, path, kept, length)
    node, end = path[place], reading.ends[place]
    rows, number, _ = children(tree, node)
    is_row = jnp.arange(rows.shape[0]) < number
    tokens = jnp.where(is_row[:, None], tree.tokens[rows], -1)
    set_length = tree.token_length[rows[0]]
    taken = jnp.zeros(reading.logits.shape[1], bool)
    taken = taken.at[jnp.where(is_row, tokens[:, 0], taken.size)].set(True, mode="drop")
    limit = jnp.minimum(set_length, reading.answer.shape[0] - end)
    run_key = jax.random.fold_in(key, place)
    run = draw_runs(run_key, model, reading, end, limit, set_length == 1, 1, taken)
    is_new = ~jnp.any(jnp.all(tokens == run.tokens, axis=1)) & (run.log_probs[0] > -jnp.inf)
    prior = jnp.exp(run.log_probs)
    weight = jnp.where(node == tree.root, options.uniform_weight, 0.0)
    prior = (1.0 - weight) * prior + weight / (number + 1)
    tree = expand_leaf(tree, node, run.tokens, jnp.where(is_new, run.lengths, 0), prior)
    return tree, select(tree), place + 1, drawn + run.lengths[0]

  none = jnp.zeros((), jnp.int32)
  state = varying_carry(add, (tree, select(tree), none, none))
  tree, path, _, drawn = jax.lax.while_loop(lambda state: jnp.any(wanted(state)), add, state)
  return tree, path, drawn
