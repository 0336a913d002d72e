"""A synthetic few-shot classification language, and its prompts in different wordings.

A sentence is a row of words. Each task labels sentences by a hidden linear rule on the mean of
their words' vectors, which all tasks share; so a task must be learned from examples, in the
weights or in the prompt.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_range

WORD_DIM = 16
NUM_TEMPLATES = 4
# Tokens: words are 0-63, label words 64-67, separators 68-75.
PROMPT_VOCAB_SIZE = 76
_NUM_WORDS = 64
_NUM_LABEL_WORDS = 4
_SEPARATOR, _DOUBLE_SEPARATOR = 68, 69


class RuleTasks(NamedTuple):
  """Tasks that label sentences by hidden linear rules.

  Attributes:
    sentences: word ids, int32 `[n, num_examples, sentence_length]`.
    labels: classes, int32 `[n, num_examples]`.
    rule: the rule that labels follow, `[n, 16, num_classes]`.
  """

  sentences: chex.Array
  labels: chex.Array
  rule: chex.Array


class Prompts(NamedTuple):
  """Prompts of m variations for b queries.

  Attributes:
    tokens: int32 `[m, b, L]`, padded on the right with 0.
    lengths: tokens before the padding, int32 `[m, b]`; the answer is read at `lengths - 1`.
  """

  tokens: chex.Array
  lengths: chex.Array


def word_vectors(*, vocab_size: int = 64) -> chex.Array:
  """The words' vectors, the same in every task.

  Args:
    vocab_size: number of words.

  Returns:
    Standard normal draws, `[vocab_size, 16]`.

  Raises:
    ValueError: if `vocab_size` is not positive.
  """
  check_at_least(1, vocab_size=vocab_size)
  return jax.random.normal(jax.random.key(0), (vocab_size, WORD_DIM))


def sample_rule_tasks(
  key: chex.PRNGKey,
  *,
  num_tasks: int,
  vocab_size: int = 64,
  sentence_length: int = 8,
  num_classes: int = 4,
  label_noise: chex.Numeric = 0.1,
  num_examples: int = 64,
) -> RuleTasks:
  """Draws tasks of a synthetic language for in-context learning.

  Words are uniform. The label is the argmax of the sentence's mean word vector times the task's
  rule, whose entries are standard normal.

  Args:
    key: random key.
    num_tasks: number n of tasks.
    vocab_size: number of words.
    sentence_length: words in a sentence.
    num_classes: number of labels.
    label_noise: share of labels replaced by one of the others, in [0, 1].
    num_examples: sentences of a task.

  Returns:
    `RuleTasks`.

  Raises:
    ValueError: if a count is not positive, `num_classes` < 2, or `label_noise` lies outside [0, 1].

  Reference: a setting in the manner of Li et al., On Task Performance and Model Calibration with
  Supervised and Self-Ensembled In-Context Learning, 2023, https://arxiv.org/abs/2312.13772.
  """
  check_at_least(1, num_tasks=num_tasks, sentence_length=sentence_length, num_examples=num_examples)
  check_at_least(2, num_classes=num_classes)
  check_range("label_noise", label_noise, "[0, 1]")
  vectors = word_vectors(vocab_size=vocab_size)
  word_key, rule_key, flip_key, other_key = jax.random.split(key, 4)
  shape = (num_tasks, num_examples)
  sentences = jax.random.randint(word_key, (*shape, sentence_length), 0, vocab_size)
  rule = jax.random.normal(rule_key, (num_tasks, WORD_DIM, num_classes))
  labels = jnp.argmax(vectors[sentences].mean(-2) @ rule, axis=-1)
  shift = jax.random.randint(other_key, shape, 1, num_classes)
  noisy = jax.random.bernoulli(flip_key, label_noise, shape)
  labels = jnp.where(noisy, (labels + shift) % num_classes, labels)
  return RuleTasks(sentences, labels.astype(jnp.int32), rule)


def draw_demonstrations(
  key: chex.PRNGKey,
  labels: chex.Array,
  *,
  num_shots: int,
  exclude: chex.Numeric | None = None,
) -> chex.Array:
  """Draws examples of a pool to show in a prompt, without replacement.

  In supervised in-context learning a training example never demonstrates itself: `exclude` is its
  row. Use `jax.vmap` over keys and rows for a batch.

  Args:
    key: random key.
    labels: labels of the pool, `[n]`; only their number is used.
    num_shots: number of demonstrations.
    exclude: a row that is not drawn; may be traced.

  Returns:
    Rows of the pool, int32 `[num_shots]`.

  Raises:
    ValueError: if `labels` is not of rank 1, `num_shots` is negative or exceeds what can be drawn,
      or a concrete `exclude` is not a row.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  check_arrays(labels=(labels, "[n]"))
  num_rows = jnp.shape(labels)[0] - (exclude is not None)
  if not 0 <= num_shots <= num_rows:
    raise ValueError(f"num_shots must lie in [0, {max(num_rows, 0)}], got {num_shots}.")
  if exclude is not None:
    check_range("exclude", exclude, f"[0, {num_rows}]")
  rows = jax.random.permutation(key, num_rows)[:num_shots].astype(jnp.int32)
  return rows if exclude is None else rows + (rows >= exclude)


def label_words(template_ids: chex.Array) -> chex.Array:
  """The words by which templates name the four classes.

  Args:
    template_ids: templates, int `[m]`.

  Returns:
    Token ids, int32 `[m, 4]`: 64 to 67 in order, rotated by one in template 3.

  Raises:
    ValueError: if a concrete template lies outside 0 to 3.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  check_range("template_ids", template_ids, f"[0, {NUM_TEMPLATES - 1}]")
  turned = jnp.asarray(template_ids)[..., None] == 3
  shape = (*turned.shape[:-1], _NUM_LABEL_WORDS)
  classes = jax.lax.broadcasted_iota(jnp.int32, shape, turned.ndim - 1)
  return _NUM_WORDS + (classes + turned.astype(jnp.int32)) % _NUM_LABEL_WORDS


def render_prompts(
  sentences: chex.Array,
  demonstrations: chex.Array,
  demonstration_labels: chex.Array,
  *,
  template_ids: chex.Array,
) -> Prompts:
  """Writes queries and their demonstrations as tokens, one wording a variation.

  Template 0 writes `words 68 label 68` for a demonstration and `words 68` for the query; 1 puts
  the label first, `label 68 words 68`; 2 is 0 with `69 69` for each 68; 3 is 0 with rotated label
  words (`label_words`). L is the length of the longest template, whichever is used, so that
  templates may be traced.

  Args:
    sentences: words of b queries, int `[b, w]`.
    demonstrations: words of s demonstrations per query and variation, int `[m, b, s, w]`.
    demonstration_labels: their classes, int `[m, b, s]`, in [0, 4).
    template_ids: template of each variation, int `[m]`.

  Returns:
    `Prompts` with L = s (w + 5) + w + 2.

  Raises:
    ValueError: if shapes do not fit, or concrete words, labels or templates are out of range.
    TypeError: if an array is not of integers.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  check_arrays(
    demonstrations=(demonstrations, "int [m, b, s, w]"),
    sentences=(sentences, "int [b, w]"),
    demonstration_labels=(demonstration_labels, "int [m, b, s]"),
    template_ids=(template_ids, "int [m]"),
  )
  m, b, s, w = jnp.shape(demonstrations)
  check_range("sentences", sentences, f"[0, {_NUM_WORDS - 1}]")
  check_range("demonstrations", demonstrations, f"[0, {_NUM_WORDS - 1}]")
  check_range("demonstration_labels", demonstration_labels, f"[0, {_NUM_LABEL_WORDS - 1}]")
  words = label_words(template_ids)
  template_ids = jnp.asarray(template_ids, jnp.int32)
  labels = jax.vmap(lambda table, classes: table[classes])(words, demonstration_labels)

  shots = jnp.asarray(demonstrations, jnp.int32)
  queries = jnp.broadcast_to(jnp.asarray(sentences, jnp.int32), (m, b, w))
  label = labels[..., None]

  def separator(token, count):
    return jnp.full((m, b, s, count), token, jnp.int32)

  one, two = separator(_SEPARATOR, 1), separator(_DOUBLE_SEPARATOR, 2)
  length = s * (w + 5) + w + 2
  plain = _written([shots, one, label, one], queries, one, length)
  label_first = _written([label, one, shots, one], queries, one, length)
  double = _written([shots, two, label, two], queries, two, length)
  template = template_ids[:, None, None]
  tokens = jnp.where(template == 1, label_first, jnp.where(template == 2, double, plain))
  lengths = jnp.where(template_ids == 2, length, s * (w + 3) + w + 1)
  return Prompts(tokens, jnp.broadcast_to(lengths[:, None], (m, b)).astype(jnp.int32))


def _written(parts, queries, separator, length: int) -> jax.Array:
  """Demonstrations from their parts, the query and the padding."""
  m, b = queries.shape[:2]
  shown = jnp.concatenate(parts, axis=-1).reshape(m, b, -1)
  count = separator.shape[-1]
  end = jnp.full((m, b, count), _SEPARATOR if count == 1 else _DOUBLE_SEPARATOR, jnp.int32)
  tokens = jnp.concatenate([shown, queries, end], axis=-1)
  return jnp.pad(tokens, ((0, 0), (0, 0), (0, length - tokens.shape[-1])))
