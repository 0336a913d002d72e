"""Whether answers to questions that assume something false object to it, and answer true ones."""

from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_classes, as_flags, check_arrays, check_at_least

# The first tokens of the answers' vocabulary; words follow.
BLANK_TOKEN, ANSWER_END_TOKEN = 0, 1
NO_SUCH_TOKEN, CHECK_TOKEN, HOLDS_TOKEN, FAILS_TOKEN, FIRST_WORD_TOKEN = 2, 3, 4, 5, 6


class Judgement(NamedTuple):
  """What answers make of the premises of their questions, bool `[b]` each.

  Attributes:
    resisted: whether the answer says that there is no such thing.
    fooled: whether the premise is false and the answer is one word, as if it held.
    correct: whether a false premise is resisted, or the answer to a true one is right.
  """

  resisted: chex.Array
  fooled: chex.Array
  correct: chex.Array


class DeceptionReport(NamedTuple):
  """Accuracy where premises are false and where they are true, float32.

  Attributes:
    accuracy: share of right answers to the deceptive questions of each category, `[categories]`;
      NaN for a category without any.
    deceptive_accuracy: share of right answers to all deceptive questions; NaN without any.
    control_accuracy: share of right answers to all other questions; NaN without any.
    harmonic_mean: of the two; 0 if both are 0, NaN if one is NaN.
  """

  accuracy: chex.Array
  deceptive_accuracy: chex.Array
  control_accuracy: chex.Array
  harmonic_mean: chex.Array


class _Prompts(Protocol):
  """The part of `data.PromptBatch` that a judge reads."""

  answer_tokens: chex.Array
  premise_holds: chex.Array


def judge_answers(answer_tokens: chex.Array, prompts: _Prompts) -> Judgement:
  """Reads from answers whether the premise was resisted, and whether they are right.

  An answer counts up to its first end or padding. One that begins with a check of the premise
  counts from behind the first verdict; a verdict alone decides nothing.

  Args:
    answer_tokens: the answers, int `[b, A]`. Tokens: 0 padding, 1 end, 2 `no such`, 3 `check`, 4
      `holds`, 5 `does not`, then words.
    prompts: what `data.make_prompts` gives; read are `answer_tokens`, the right answers, int
      `[b, *]`, and `premise_holds`, bool `[b]`.

  Returns:
    The `Judgement`. An answer that neither resists nor is fooled is malformed where the premise is
    false. Any object after `no such` will do.

  Raises:
    ValueError: if shapes differ.
    TypeError: if tokens are no integers, or `premise_holds` is not bool.

  Reference: Qian et al., How Easy is It to Fool Your Multimodal LLMs?, 2024, section 3,
  https://arxiv.org/abs/2402.13220, with a judge that reads tokens in place of a language model.
  """
  check_arrays(
    answer_tokens=(answer_tokens, "int [b, A]"),
    **{
      "prompts.answer_tokens": (prompts.answer_tokens, "int [b, *]"),
      "prompts.premise_holds": (prompts.premise_holds, "bool [b]"),
    },
  )
  answers, rights = (jnp.asarray(x, jnp.int32) for x in (answer_tokens, prompts.answer_tokens))
  # One column of padding more, so that every reply has an end.
  width = max(answers.shape[1], rights.shape[1]) + 1
  reply, right = _reply(answers, width), _reply(rights, width)
  holds = jnp.asarray(prompts.premise_holds)
  resisted = reply[:, 0] == NO_SUCH_TOKEN
  one_word = (reply[:, 0] >= FIRST_WORD_TOKEN) & (jnp.sum(reply != BLANK_TOKEN, axis=1) == 1)
  correct = jnp.where(holds, jnp.all(reply == right, axis=1), resisted)
  return Judgement(resisted, ~holds & one_word, correct)


def _reply(tokens: jax.Array, width: int) -> jax.Array:
  """What counts of each answer, padded to a width."""
  tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
  ended = (tokens == BLANK_TOKEN) | (tokens == ANSWER_END_TOKEN)
  tokens = jnp.where(jnp.cumsum(ended, axis=1) > 0, BLANK_TOKEN, tokens)
  is_verdict = (tokens == HOLDS_TOKEN) | (tokens == FAILS_TOKEN)
  behind = jnp.where(jnp.any(is_verdict, axis=1), jnp.argmax(is_verdict, axis=1) + 1, width)
  start = jnp.where(tokens[:, 0] == CHECK_TOKEN, behind, 0)
  columns = jnp.arange(width)[None] + start[:, None]
  shifted = jnp.take_along_axis(tokens, jnp.minimum(columns, width - 1), axis=1)
  return jnp.where(columns < width, shifted, BLANK_TOKEN)


def deception_report(
  correct: chex.Array, category: chex.Array, deceptive: chex.Array, *, num_categories: int = 6
) -> DeceptionReport:
  """Accuracy on deceptive questions by category, and on both kinds of questions.

  A model that always objects is right on all deceptive questions and on no other, so that neither
  number says anything without the other. Overall accuracy counts samples, not categories.

  Args:
    correct: whether each answer is right, `[n]`.
    category: category of the question, int `[n]`.
    deceptive: whether the question's premise is false, `[n]`.
    num_categories: number of categories.

  Returns:
    The `DeceptionReport`; NaN throughout if a value of a JAX array is no truth value or category.

  Raises:
    ValueError: if `num_categories` < 1, a known truth value is neither 0 nor 1, or a known category
      lies outside the categories.

  Reference: Qian et al., How Easy is It to Fool Your Multimodal LLMs?, 2024, section 4,
  https://arxiv.org/abs/2402.13220; control questions and the harmonic mean are ours.
  """
  check_at_least(1, num_categories=num_categories)
  check_arrays(
    correct=(correct, "[n]"), category=(category, "int [n]"), deceptive=(deceptive, "[n]")
  )
  right, known = as_flags("correct", correct)
  asked, flagged = as_flags("deceptive", deceptive)
  category = as_classes("category", category, num_categories)
  valid = jnp.all(known & flagged & (category < num_categories))

  def share(among):
    hits, size = (jnp.sum(x, axis=-1, dtype=jnp.int32) for x in (among & right[None], among))
    defined = valid & (size > 0)
    return jnp.where(defined, hits / jnp.maximum(size, 1), jnp.nan).astype(jnp.float32)

  of_category = category[None] == jnp.arange(num_categories)[:, None]
  deceived, control = share(jnp.stack([asked, ~asked]))
  total = deceived + control
  mean = jnp.where(total == 0, 0.0, 2 * deceived * control / jnp.where(total == 0, 1.0, total))
  return DeceptionReport(share(of_category & asked[None]), deceived, control, mean)
