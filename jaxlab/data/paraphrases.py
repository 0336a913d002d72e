"""Prompts whose responses say one of a few things in many words, for preference learning.

All responses are known, so that the probability of everything a model may say about a prompt is a
sum over a few rows. Those of one class share words, and a model gives them similar hidden states.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once
from jaxlab.data.reasoning import EOS_TOKEN, PAD_TOKEN

_SEPARATOR_TOKEN = 1
_FIRST_WORD = 3
_PROMPT_LENGTH = 2
_MIN_LENGTH = 2


class Paraphrases(NamedTuple):
  """All responses of a configuration.

  Attributes:
    tokens: words, end and padding, int32 `[num_classes, paraphrases, response_length]`.
    lengths: tokens of a response with its end, int32 `[num_classes, paraphrases]`.
  """

  tokens: chex.Array
  lengths: chex.Array


@dataclasses.dataclass(frozen=True)
class ParaphraseConfig:
  """The settings of prompts and their paraphrased responses.

  A response has a length uniform in 2 to `max_length`; the first half of its words, rounded up, is
  of its class, the rest are function words, and no two responses are equal. Class 0 refuses, class
  1 complies, class 2 is neutral; later ones have no meaning of their own.

  Attributes:
    num_prompts: number of prompts, at least 1; the others of a larger number are the same.
    num_classes: number of classes, at least 1.
    paraphrases: responses of a class, at least 1.
    class_words: words that only responses of one class have, at least 1.
    function_words: words that all classes share, at least 1.
    max_length: words of the longest response, at least 2.
    seed: of the responses, and of how often each prompt gets each class; inside a compiled function
      it may be a traced integer.

  Raises:
    ValueError: if a count is too small, or there are not so many different responses.
  """

  num_prompts: int = 40
  num_classes: int = 3
  paraphrases: int = 12
  class_words: int = 6
  function_words: int = 10
  max_length: int = 5
  seed: int = 0

  def __post_init__(self):
    names = ("num_prompts", "num_classes", "paraphrases", "class_words", "function_words")
    check_at_least(1, **{name: getattr(self, name) for name in names})
    check_at_least(_MIN_LENGTH, max_length=self.max_length)
    different = sum(
      self.class_words ** -(-length // 2) * self.function_words ** (length // 2)
      for length in range(_MIN_LENGTH, self.max_length + 1)
    )
    if self.paraphrases > different:
      raise ValueError(
        f"paraphrases must not exceed the {different} different responses of a class, "
        f"got {self.paraphrases}."
      )

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return self._first_prompt + self.num_prompts

  @property
  def prompt_length(self) -> int:
    """Tokens of a prompt, with its separator."""
    return _PROMPT_LENGTH

  @property
  def response_length(self) -> int:
    """Tokens of the longest response, with its end."""
    return self.max_length + 1

  @property
  def responses(self) -> Paraphrases:
    """All responses, class by class."""
    return _draw_responses(self)

  @property
  def class_probs(self) -> jax.Array:
    """How often each prompt gets a response of each class, `[num_prompts, num_classes]`."""
    return _draw_class_probs(self)

  @property
  def _first_prompt(self) -> int:
    # Behind the words, so that these do not depend on the number of prompts.
    return _FIRST_WORD + self.num_classes * self.class_words + self.function_words


@compiled_once
def _draw_responses(config: ParaphraseConfig) -> Paraphrases:
  shape = config.num_classes, config.paraphrases
  places = jnp.arange(config.response_length)[None, None]
  first_own = _FIRST_WORD + config.class_words * jnp.arange(config.num_classes)[:, None, None]
  first_shared = _FIRST_WORD + config.class_words * config.num_classes

  def draw(key):
    length_key, own_key, shared_key = jax.random.split(key, 3)
    words = jax.random.randint(length_key, (*shape, 1), _MIN_LENGTH, config.max_length + 1)
    size = (*shape, config.response_length)
    own = first_own + jax.random.randint(own_key, size, 0, config.class_words)
    shared = first_shared + jax.random.randint(shared_key, size, 0, config.function_words)
    tokens = jnp.where(places < (words + 1) // 2, own, shared)
    ended = jnp.where(places == words, EOS_TOKEN, PAD_TOKEN)
    return jnp.where(places < words, tokens, ended).astype(jnp.int32)

  def repeats(tokens):
    """Which responses stand before already; those of other classes have other words."""
    equal = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1)
    return jnp.any(jnp.tril(equal, -1), axis=-1)

  def draw_again(carry):
    key, tokens = carry
    key, new_key = jax.random.split(key)
    return key, jnp.where(repeats(tokens)[..., None], draw(new_key), tokens)

  key, first_key = jax.random.split(jax.random.key(config.seed))
  start = key, draw(first_key)
  _, tokens = jax.lax.while_loop(lambda carry: jnp.any(repeats(carry[1])), draw_again, start)
  return Paraphrases(tokens, jnp.sum(tokens != PAD_TOKEN, axis=-1, dtype=jnp.int32))


@compiled_once
def _draw_class_probs(config: ParaphraseConfig) -> jax.Array:
  """Uniform over distributions; those of the first prompts do not depend on how many follow."""
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(config.num_prompts))
  weights = jax.vmap(lambda key: jax.random.exponential(key, (config.num_classes,)))(keys)
  return weights / jnp.sum(weights, axis=1, keepdims=True)


class ParaphraseBatch(NamedTuple):
  """Prompts with responses.

  Attributes:
    tokens: prompt and response, int32 `[b, T]`, T = `prompt_length + response_length`.
    loss_mask: 1 on the response and its end, float32 `[b, T]`.
    prompt_lengths: int32 `[b]`.
    classes: class of the response, int32 `[b]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array
  prompt_lengths: chex.Array
  classes: chex.Array


class PreferencePairs(NamedTuple):
  """Pairs of responses to one prompt.

  Attributes:
    chosen_tokens: prompt and preferred response, int32 `[n, T]`.
    rejected_tokens: prompt and the other response, int32 `[n, T]`.
    chosen_mask: 1 on the preferred response and its end, float32 `[n, T]`.
    rejected_mask: the same of the other response, float32 `[n, T]`.
    chosen_class: class of the preferred response, int32 `[n]`.
    rejected_class: class of the other response, int32 `[n]`.
  """

  chosen_tokens: chex.Array
  rejected_tokens: chex.Array
  chosen_mask: chex.Array
  rejected_mask: chex.Array
  chosen_class: chex.Array
  rejected_class: chex.Array


@compiled_once
def paraphrase_batch(
  key: chex.PRNGKey, config: ParaphraseConfig, batch_size: int
) -> ParaphraseBatch:
  """Draws prompts uniformly, and for each a response as often as the configuration has it.

  Args:
    key: random key.
    config: prompts and responses.
    batch_size: number b of rows.

  Returns:
    A `ParaphraseBatch`. Tokens: 0 padding, 1 the separator behind a prompt, 2 end, then the words
    of each class, the function words and the prompts.

  Raises:
    ValueError: if `batch_size` is not positive.

  Reference: a setting for Razin et al., Unintentional Unalignment, ICLR 2025,
  https://arxiv.org/abs/2410.08847.
  """
  check_at_least(1, batch_size=batch_size)
  prompt_key, class_key, member_key = jax.random.split(key, 3)
  prompts = jax.random.randint(prompt_key, (batch_size,), 0, config.num_prompts)
  logits = jnp.log(config.class_probs)[prompts]
  classes = jax.random.categorical(class_key, logits).astype(jnp.int32)
  members = jax.random.randint(member_key, (batch_size,), 0, config.paraphrases)
  tokens, mask = _rows(config, prompts, classes, members)
  return ParaphraseBatch(tokens, mask, jnp.full(batch_size, _PROMPT_LENGTH, jnp.int32), classes)


@compiled_once
def paraphrase_pairs(
  key: chex.PRNGKey,
  config: ParaphraseConfig,
  *,
  num_pairs: int,
  within_class_fraction: chex.Numeric = 0.5,
  chosen_class: int | None = None,
) -> PreferencePairs:
  """Draws pairs of different responses to uniform prompts, within a class or across classes.

  Args:
    key: random key.
    config: prompts and responses. One with fewer prompts has the same responses to the first
      prompts, so that pairs can leave some prompts out.
    num_pairs: number n of pairs.
    within_class_fraction: probability that a pair is of two responses of one class, in [0, 1].
    chosen_class: class of all preferred responses; None draws each uniformly.

  Returns:
    `PreferencePairs`. Responses are uniform within their classes, and the rejected class of a pair
    across classes is uniform over the others. Which response is preferred is random, so both orders
    of two responses may occur.

  Raises:
    ValueError: if `num_pairs` is not positive, `within_class_fraction` lies outside [0, 1], a class
      does not exist, or the configuration has a single class or a single response of a class.

  Reference: a setting for Razin et al., Unintentional Unalignment, ICLR 2025, section 6,
  https://arxiv.org/abs/2410.08847.
  """
  check_at_least(1, num_pairs=num_pairs)
  check_range("within_class_fraction", within_class_fraction, "[0, 1]")
  if chosen_class is not None:
    check_range("chosen_class", chosen_class, f"[0, {config.num_classes})")
  if config.paraphrases < 2:
    raise ValueError(f"paraphrases must be at least 2 for pairs, got {config.paraphrases}.")
  if config.num_classes < 2:
    raise ValueError(f"num_classes must be at least 2 for pairs, got {config.num_classes}.")
  keys = jax.random.split(key, 6)

  def draw(key, high, low=0):
    return jax.random.randint(key, (num_pairs,), low, high)

  prompts = draw(keys[0], config.num_prompts)
  within = jax.random.bernoulli(keys[1], within_class_fraction, (num_pairs,))
  chosen = draw(keys[2], config.num_classes)
  if chosen_class is not None:
    chosen = jnp.full_like(chosen, chosen_class)
  rejected = (chosen + draw(keys[3], config.num_classes, 1)) % config.num_classes
  rejected = jnp.where(within, chosen, rejected)
  member = draw(keys[4], config.paraphrases)
  # Within a class, the other response is not the same one.
  shift = draw(keys[5], config.paraphrases, within.astype(jnp.int32))
  other = (member + shift) % config.paraphrases
  chosen_tokens, chosen_mask = _rows(config, prompts, chosen, member)
  rejected_tokens, rejected_mask = _rows(config, prompts, rejected, other)
  return PreferencePairs(
    chosen_tokens, rejected_tokens, chosen_mask, rejected_mask, chosen, rejected
  )


def _rows(config: ParaphraseConfig, prompts, classes, members) -> tuple[jax.Array, jax.Array]:
  """Tokens and mask of prompts with responses."""
  tokens, lengths = (array[classes, members] for array in config.responses)
  prompts = config._first_prompt + prompts
  separators = jnp.full_like(prompts, _SEPARATOR_TOKEN)
  tokens = jnp.concatenate([prompts[:, None], separators[:, None], tokens], axis=1)
  places = jnp.arange(tokens.shape[1])[None]
  mask = (places >= _PROMPT_LENGTH) & (places < _PROMPT_LENGTH + lengths[:, None])
  return tokens.astype(jnp.int32), mask.astype(jnp.float32)


@compiled_once
def response_class(
  config: ParaphraseConfig, responses: chex.Array, lengths: chex.Array
) -> jax.Array:
  """Class of responses, if they are among those of the configuration.

  Args:
    config: prompts and responses.
    responses: what follows the separator, int `[b, L]`, of any L; what stands behind the lengths is
      ignored.
    lengths: tokens of the responses with their end, int `[b]`.

  Returns:
    int32 `[b]`; -1 for other responses, among them those without an end.

  Raises:
    ValueError: if shapes do not fit.
    TypeError: if an array is not of integers.

  Reference: a setting for Razin et al., Unintentional Unalignment, ICLR 2025, section 6,
  https://arxiv.org/abs/2410.08847.
  """
  check_arrays(responses=(responses, "int [b, L]"), lengths=(lengths, "int [b]"))
  responses, lengths = jnp.asarray(responses, jnp.int32), jnp.asarray(lengths, jnp.int32)
  size = config.response_length
  responses = responses[:, :size]
  responses = jnp.pad(responses, ((0, 0), (0, size - responses.shape[1])))
  inside = jnp.arange(size)[None] < lengths[:, None]
  known = config.responses
  tokens = known.tokens.reshape(1, -1, size)
  equal = jnp.all((responses[:, None] == tokens) | ~inside[:, None], axis=-1)
  equal &= known.lengths.reshape(1, -1) == lengths[:, None]
  classes = jnp.argmax(equal, axis=1).astype(jnp.int32) // config.paraphrases
  return jnp.where(jnp.any(equal, axis=1), classes, -1)
