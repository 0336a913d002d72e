"""Chains with misconceptions: problems, and texts that teach errors."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import numpy as np

from experiments.kit.chains import always_wrong, misconception_table
from jaxlab import data

_SPARE = 20  # Test problems in place of those that are training problems.


class Texts(NamedTuple):
  """Problems with solutions, and the answers that are right: int32 `[n, T]` and `[n]`."""

  tokens: chex.Array
  answers: chex.Array


class Problems(NamedTuple):
  """What a seed learns from and is tested on."""

  corpus: chex.Array  # Texts that the policy imitates first, int32 `[m, T]`.
  train: Texts  # Problems to learn from, with texts that teach errors.
  clean: Texts  # The same problems with right solutions.
  validation: Texts  # Other problems with right solutions.
  test: Texts  # Likewise; none is a training problem.
  misled: Texts  # Texts that show the wrong value wherever there is a misconception.
  wrong_values: chex.Array  # Of (operator, left, right); -1 where there is no misconception.


def draw_problems(
  chains: data.ModularChainConfig, counts: tuple[int, ...], seed: int, *, other_corpus: bool = False
) -> Problems:
  """Draws texts (corpus, training, validation, test) and the table of a seed, as NumPy arrays.

  An `other_corpus` is of a table that is wrong everywhere: it teaches the form of solutions alone.
  """
  chains = author = dataclasses.replace(chains, table_seed=seed)
  if other_corpus:
    wrong = {"misconception_rate": 1.0, "misconception_prob": 1.0, "noise": 0.0}
    author = dataclasses.replace(chains, table_seed=seed + 2**20, **wrong)
  problems = jax.tree.map(np.asarray, _draw(jax.random.key(seed), chains, author, counts))
  known = {row.tobytes() for row in problems.train.tokens[:, : chains.prompt_length]}
  prompts = problems.test.tokens[:, : chains.prompt_length]
  new = [i for i, row in enumerate(prompts) if row.tobytes() not in known][: counts[-1]]
  return problems._replace(test=Texts(*(array[new] for array in problems.test)))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key, chains, author, counts) -> Problems:
  keys = jax.random.split(key, 6)
  corpus, train, validation, test = counts

  def texts(key, chains, num, **options):
    batch = data.modular_chain_batch(key, chains, num, **options)
    return Texts(batch.tokens, batch.answers)

  return Problems(
    corpus=texts(keys[0], author, corpus).tokens,
    train=texts(keys[1], chains, train),
    clean=texts(keys[1], chains, train, clean=True),
    validation=texts(keys[2], chains, validation, clean=True),
    test=texts(keys[3], chains, test + _SPARE, clean=True),
    misled=texts(keys[4], always_wrong(chains), test),
    wrong_values=misconception_table(keys[5], chains),
  )
