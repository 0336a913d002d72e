"""Verifiers as the judges of a search, which asks them for parts of responses while it runs."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.commands import verifiers
from jaxlab.commands.rows import Row
from jaxlab.commands.verifiers import Verifier
from jaxlab.experiment import UsageError


class Judge:
  """Scores of texts in [-1, 1], of a verifier whose rewards lie in [0, 1].

  A text that the verifier cannot score (None or NaN) gets 0. What it raises ends the search, which
  runs in a compiled program, only with `finish`.
  """

  def __init__(self, verifier: Verifier, decode: Callable[..., str]):
    """Takes the verifier.

    Args:
      verifier: the verifier.
      decode: of the tokenizer.
    """
    self._verifier, self._decode = verifier, decode
    self._rows: list[Row] = []
    self._scores: dict[tuple[int, str], float] = {}
    self._error: UsageError | None = None

  def begin(self, rows: Sequence[Row]) -> None:
    """Makes these the rows that scores are asked for by number.

    Args:
      rows: of the prompts.
    """
    self._rows, self._scores, self._error = list(rows), {}, None

  def finish(self) -> list[int]:
    """How many texts of each row could not be scored.

    Returns:
      Counts, one per row.

    Raises:
      UsageError: if the verifier failed, or gave what is not in [0, 1]; names file and line.
    """
    if self._error is not None:
      raise self._error
    counts = [0] * len(self._rows)
    for (row, _), score in self._scores.items():
      counts[row] += np.isnan(score)
    return counts

  def evaluate(self, row: chex.Array, tokens: chex.Array, length: chex.Array) -> jax.Array:
    """The score of a part of a response; traceable.

    Args:
      row: number of the row, i32 `[]`.
      tokens: the response, padded on the right, i32 `[t]`.
      length: how many tokens are part of it, i32 `[]`.

    Returns:
      The score, float32 `[]`.
    """
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(self.scores, shape, row, tokens, length, vmap_method="broadcast_all")

  def scores(self, rows: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The same for arrays, `[...]` and `[..., t]`.

    Args:
      rows: numbers of rows.
      tokens: responses.
      lengths: how many of the tokens count.

    Returns:
      Scores, float32 `[...]`.
    """
    rows, lengths = np.asarray(rows), np.asarray(lengths)
    flat = np.asarray(tokens).reshape(rows.size, -1)
    found = [self._score(int(i), row[:n]) for i, row, n in zip(rows.flat, flat, lengths.flat)]
    return np.nan_to_num(np.reshape(np.array(found, np.float32), rows.shape))

  def _score(self, row: int, tokens: np.ndarray) -> float:
    if self._error is not None:
      return 0.0
    text = self._decode(tokens, skip_special_tokens=True)
    if (row, text) not in self._scores:
      try:
        [reward] = verifiers.score(self._verifier, [text], [self._rows[row]])
        if reward < 0 or reward > 1:
          raise UsageError(
            f"{self._rows[row].place}: a judge must give True, False, None or a number in [0, 1], "
            f"got {reward:g} for {text[:80]!r}."
          )
      except UsageError as error:
        self._error = error
        return 0.0
      self._scores[row, text] = 2.0 * float(reward) - 1.0
    return self._scores[row, text]
