"""Questions in other words: synonyms, templates of the same meaning, fillers; and reading answers.

What is asked stays: tokens without synonyms that fill the slots of a template are never touched, so
that labels hold by construction.
"""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_arrays, check_range
from jaxlab._programs import compiled_once

_PAD = 0


@dataclasses.dataclass(frozen=True)
class ParaphraseGrammar:
  """What may be said in other words; arrays are kept as tuples, so that it may be static.

  Attributes:
    synonyms: tokens that may stand for each token, int `[v, s]`, -1 where there are no more. The
      relation need not be symmetric.
    templates: wordings of one meaning, rows of any length: a token, or -1, -2, ... for the first,
      second, ... slot. Every template has the same slots, each once. Rows of an array of equal
      length do as well.
    fillers: tokens that mean nothing, int `[f]`; there may be none.

  Raises:
    ValueError: if a token lies outside the vocabulary, or templates have different slots.
  """

  synonyms: tuple[tuple[int, ...], ...]
  templates: tuple[tuple[int, ...], ...]
  fillers: tuple[int, ...]

  def __post_init__(self):
    check_arrays(synonyms=(np.asarray(self.synonyms), "int [v, s]"))
    for name in ("synonyms", "templates"):
      rows = tuple(tuple(int(token) for token in row) for row in getattr(self, name))
      object.__setattr__(self, name, rows)
    object.__setattr__(self, "fillers", tuple(int(token) for token in self.fillers))
    size = len(self.synonyms)
    check_range("synonyms", np.asarray(self.synonyms), f"[-1, {size})")
    check_range("fillers", np.asarray(self.fillers), f"[0, {size})")
    slots = {tuple(sorted(token for token in row if token < 0)) for row in self.templates}
    if len(slots) > 1 or slots != {tuple(range(-len(row), 0)) for row in slots}:
      raise ValueError(
        f"templates must have the slots -1, -2, ... once each, got {self.templates}."
      )
    if not all(self.templates):
      raise ValueError(f"templates must not be empty, got {self.templates}.")
    for row in self.templates:
      check_range("templates", np.asarray(row), f"(-inf, {size})")

  @property
  def extra_length(self) -> int:
    """By how many tokens a row may become longer."""
    lengths = [len(row) for row in self.templates] or [0]
    fillers = [sum(token >= 0 for token in row) * bool(self.fillers) for row in self.templates]
    longest = max(map(sum, zip(lengths, fillers or [0])))
    return longest - min(lengths)


@compiled_once
def paraphrase(
  key: chex.PRNGKey, tokens: chex.Array, grammar: ParaphraseGrammar, *, strength: chex.Numeric
) -> jax.Array:
  """Says questions in other words, the more of them the larger the strength.

  A question is the first part of a row that is an instance of a template, with other tokens than
  template words in its slots. With probability `strength` it is put into another template, and
  before each of its template words a filler appears with probability `strength / 4`. Then every
  token of the row that has synonyms becomes, with probability `strength`, one of them. What stands
  around the question (earlier text, choices) moves, but is not changed otherwise.

  Args:
    key: random key.
    tokens: rows padded on the right with 0, int `[b, T]`.
    grammar: synonyms, templates and fillers; static.
    strength: in [0, 1].

  Returns:
    Rows padded on the right with 0, int32 `[b, T']`, T' = T + `grammar.extra_length`. With strength
    0 they are what they were. A row without an instance of a template keeps its order.

  Raises:
    ValueError: if `strength` lies outside [0, 1].
    TypeError: if tokens are not integers.

  Reference: Cohen-Inger et al., Forget What You Know about LLMs Evaluations - LLMs are Like a
  Chameleon, Findings of EMNLP 2025, https://arxiv.org/abs/2502.07445, whose language model this
  grammar stands for.
  """
  check_arrays(tokens=(tokens, "int [b, T]"), strength=(strength, "[]"))
  check_range("strength", strength, "[0, 1]")
  tokens = jnp.asarray(tokens).astype(jnp.int32)
  template_key, filler_key, word_key, choice_key = jax.random.split(key, 4)
  is_filler = jnp.zeros(tokens.shape, bool)
  if grammar.templates:
    tokens, is_filler = _reworded(template_key, filler_key, tokens, grammar, strength)
  # Synonyms first, absent ones after them.
  table = -np.sort(-np.asarray(grammar.synonyms, np.int32), axis=1)
  table, counts = jnp.asarray(table), jnp.asarray(np.sum(table >= 0, axis=1))
  known = (tokens >= 0) & (tokens < len(table))
  row = jnp.where(known, tokens, 0)
  count = jnp.where(known & ~is_filler, counts[row], 0)
  replaced = jax.random.bernoulli(word_key, strength, tokens.shape) & (count > 0)
  drawn = jax.random.randint(choice_key, tokens.shape, 0, jnp.maximum(count, 1))
  return jnp.where(replaced, table[row, drawn], tokens)


def _reworded(template_key, filler_key, tokens, grammar, strength):
  """Rows with their questions in other templates, and which tokens are fillers."""
  (batch_size, length), num_templates = tokens.shape, len(grammar.templates)
  template, start, found = _instances(tokens, grammar)
  swap_key, shift_key = jax.random.split(template_key)
  shift = jax.random.randint(shift_key, (batch_size,), 1, max(num_templates, 2))
  swapped = jax.random.bernoulli(swap_key, strength, (batch_size,))
  new = jnp.where(swapped, (template + shift) % num_templates, template)

  lengths = np.array([len(row) for row in grammar.templates], np.int32)
  num_slots = sum(token < 0 for token in grammar.templates[0])
  # Where the slots of a template are, and its words with -1 - slot in between, padded.
  places = np.array([[row.index(-1 - j) for j in range(num_slots)] for row in grammar.templates])
  width = lengths.max()
  words = np.array([row + (_PAD,) * (width - len(row)) for row in grammar.templates], np.int32)
  slots = start[:, None] + jnp.asarray(places.astype(np.int32))[template]
  content = jnp.take_along_axis(tokens, jnp.clip(slots, 0, length - 1), axis=1)
  body = jnp.asarray(words)[new]
  if num_slots:
    filled = jnp.take_along_axis(content, jnp.clip(-1 - body, 0, num_slots - 1), axis=1)
  else:
    filled = body
  is_word = body >= 0
  in_body = jnp.arange(words.shape[1])[None] < jnp.asarray(lengths)[new][:, None]

  shape = body.shape
  if grammar.fillers:
    kind_key, place_key = jax.random.split(filler_key)
    drawn = jax.random.randint(kind_key, shape, 0, len(grammar.fillers))
    fillers = jnp.asarray(np.array(grammar.fillers, np.int32))[drawn]
    with_filler = jax.random.bernoulli(place_key, strength / 4, shape) & is_word & in_body
  else:
    fillers, with_filler = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
  columns = jnp.arange(length)[None]
  end = start + jnp.asarray(lengths)[template]
  before = columns < jnp.where(found, start, length)[:, None]
  after = found[:, None] & (columns >= end[:, None])
  pairs = lambda a, b: jnp.stack([a, b], axis=-1).reshape(batch_size, -1)  # noqa: E731
  candidates = [tokens, pairs(fillers, jnp.where(is_word, body, filled)), tokens]
  kept = [before, pairs(with_filler, in_body) & found[:, None], after]
  nothing = jnp.zeros((batch_size, length), bool)
  is_filler = [nothing, pairs(jnp.ones(shape, bool), jnp.zeros(shape, bool)), nothing]
  candidates, kept, is_filler = (
    jnp.concatenate(parts, axis=1) for parts in (candidates, kept, is_filler)
  )
  width = length + grammar.extra_length
  target = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, width)
  # `vmap` over rows, so that the compiler keeps a sharded batch on its devices.
  place = jax.vmap(lambda out, at, values: out.at[at].set(values, mode="drop"))
  empty = jnp.zeros((batch_size, width), jnp.int32)
  return place(empty, target, candidates), place(empty, target, is_filler.astype(jnp.int32)) > 0


def _instances(tokens: jax.Array, grammar: ParaphraseGrammar):
  """The template of each row's question, where it starts, and whether there is one.

  The earliest start counts, and of several templates there the first.
  """
  batch_size, length = tokens.shape
  words = sorted({token for row in grammar.templates for token in row if token >= 0})
  is_word = jnp.any(
    tokens[..., None] == jnp.asarray(np.array(words, np.int32))[None, None], axis=-1
  )
  width = max(map(len, grammar.templates))
  # Padding, as what stands behind the end, is no word and fills no slot.
  kinds = jnp.where(is_word, tokens, jnp.where(tokens == _PAD, -2, -1))
  padded = jnp.pad(kinds, ((0, 0), (0, width)), constant_values=-2)
  matches = []
  for row in grammar.templates:
    match = jnp.ones((batch_size, length), bool)
    for i, token in enumerate(row):
      match &= padded[:, i : i + length] == max(token, -1)
    matches.append(match)
  matches = jnp.stack(matches, axis=-1)
  found = jnp.any(matches, axis=(1, 2))
  first = jnp.argmax(matches.reshape(batch_size, -1), axis=1).astype(jnp.int32)
  return first % len(grammar.templates), first // len(grammar.templates), found


def extract_choice(text: str) -> int:
  """Reads which of the choices A to D a text gives, on the host.

  Args:
    text: what a model wrote.

  Returns:
    0 for A to 3 for D: of the first "Answer: X", or else the last of these letters that stands
    alone; -1 if there is none. A sentence that begins with the article "A" reads as the choice A.

  Reference: Cohen-Inger et al., Findings of EMNLP 2025, https://arxiv.org/abs/2502.07445.
  """
  named = re.search(r"(?i:answer)\s*:[\s*(\[\"']*([A-D])\b", text)
  letters = [named[1]] if named else re.findall(r"\b[A-D]\b", text)
  return "ABCD".index(letters[-1]) if letters else -1
