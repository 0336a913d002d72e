"""Chains whose steps end with a word of style, which says nothing about what is right."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import data
from jaxlab._checks import check_range
from jaxlab.data.reasoning import PAD_TOKEN


class StyledBatch(NamedTuple):
  """Problems with styled responses: tokens and mask of a text `[n, T]`, true answers `[n]`."""

  tokens: chex.Array
  loss_mask: chex.Array
  answers: chex.Array


@dataclasses.dataclass(frozen=True)
class StyledChains(data.ModularChainConfig):
  """Modular chains with a token of style after every result, independent of all else.

  The likelihood of a text then carries noise, and hardly any text repeats.

  Attributes:
    style_probs: of the styles, which sum to 1.
  """

  style_probs: tuple[float, ...] = (0.6, 0.25, 0.1, 0.05)

  def __post_init__(self):
    super().__post_init__()
    check_range("style_probs", self.style_probs, "(0, 1]")
    if abs(sum(self.style_probs) - 1.0) > 1e-6:
      raise ValueError(f"style_probs must sum to 1, got {self.style_probs}.")

  @property
  def plain(self) -> data.ModularChainConfig:
    """The chains without styles, whose tokens come first in the vocabulary."""
    names = [field.name for field in dataclasses.fields(data.ModularChainConfig)]
    return data.ModularChainConfig(**{name: getattr(self, name) for name in names})

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return self.plain.vocab_size + len(self.style_probs)

  @property
  def response_length(self) -> int:
    """Tokens of a whole response, with its end."""
    return self.plain.response_length + self.num_terms - 1

  def draw(self, key: chex.PRNGKey, batch_size: int, *, clean: bool = False) -> StyledBatch:
    """Texts; their steps are right if they are `clean`."""
    text_key, style_key = jax.random.split(key)
    batch = data.modular_chain_batch(text_key, self.plain, batch_size, clean=clean)
    shape = batch_size, self.num_terms - 1
    styles = jax.random.categorical(style_key, np.log(self.style_probs), shape=shape)
    problem, response = jnp.split(batch.tokens, [self.prompt_length], axis=1)
    steps = response[:, :-1].reshape(*shape, -1)
    styles = (self.plain.vocab_size + styles[..., None]).astype(jnp.int32)
    written = jnp.concatenate([steps, styles], axis=-1).reshape(batch_size, -1)
    tokens = jnp.concatenate([problem, written, response[:, -1:]], axis=1)
    mask = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= self.prompt_length, tokens.shape)
    return StyledBatch(tokens, mask.astype(jnp.float32), batch.answers)

  def parse(self, tokens: chex.Array) -> data.ParsedChain:
    """Steps `[..., S]` and answers `[...]` of texts `[..., T]`; -1 where malformed.

    A step whose style is no style is malformed.
    """
    length, num_steps = self.prompt_length, self.num_terms - 1
    rows = tokens.reshape(-1, tokens.shape[-1])[:, length : length + self.response_length]
    parts = rows[:, :-1].reshape(len(rows), num_steps, -1)
    styled = parts[..., -1:] >= self.plain.vocab_size
    steps = jnp.where(styled, parts[..., :-1], PAD_TOKEN).reshape(len(rows), -1)
    parsed = data.parse_chain(self.plain, jnp.concatenate([steps, rows[:, -1:]], axis=1))
    return data.ParsedChain(*(x.reshape(*tokens.shape[:-1], *x.shape[1:]) for x in parsed))
