"""Verifiers and judges with stated error rates, against which every method can be measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_range


class ErrorRates(NamedTuple):
  """How often verdicts are wrong; numbers, or arrays of one shape for a sweep.

  Attributes:
    false_positive: probability that what is wrong is accepted, in [0, 1].
    false_negative: probability that what is right is rejected, in [0, 1].
  """

  false_positive: chex.Numeric
  false_negative: chex.Numeric = 0.0


def flip_verdicts(
  key: chex.PRNGKey, verdicts: chex.Array, rates: ErrorRates, *, texts: chex.Array | None = None
) -> jax.Array:
  """Verdicts that are wrong at stated rates.

  The same key with higher rates makes the same errors and others.

  Args:
    key: random key of the errors.
    verdicts: right verdicts `[...]`: booleans, or scores whose sign is the verdict.
    rates: of the errors; scalars.
    texts: tokens `[..., T]`; with them a verdict of one key is that of the text, always the same.
      Otherwise every verdict errs by itself.

  Returns:
    The verdicts, where they err the opposite, `[...]`.

  Raises:
    ValueError: if a known rate lies outside [0, 1].
  """
  for name, rate in rates._asdict().items():
    check_range(name, rate, "[0, 1]")
  if texts is None:
    chances = jax.random.uniform(key, verdicts.shape)
  else:
    draw = lambda number: jax.random.uniform(jax.random.fold_in(key, number))  # noqa: E731
    chances = jax.vmap(draw)(_numbers(texts).ravel()).reshape(verdicts.shape)
  is_flag = verdicts.dtype == bool
  accepts = verdicts if is_flag else verdicts > 0
  wrong = chances < jnp.where(accepts, rates.false_negative, rates.false_positive)
  return verdicts ^ wrong if is_flag else jnp.where(wrong, -verdicts, verdicts)


def _numbers(texts: chex.Array) -> jax.Array:
  """A number of 32 bits for each text, by its tokens and their places."""

  def add(number, token):
    return (number ^ token) * jnp.uint32(16777619), None

  columns = jnp.moveaxis(jnp.asarray(texts).astype(jnp.uint32), -1, 0)
  start = jnp.full(columns.shape[1:], 2166136261, jnp.uint32)
  return jax.lax.scan(add, start, columns)[0]


def with_errors(
  verify: Callable[..., chex.Array], rates: ErrorRates, *, by_text: bool = False
) -> Callable[..., jax.Array]:
  """A verifier or judge that errs at stated rates.

  Args:
    verify: `(*arguments) -> verdicts`, which are right.
    rates: of the errors; scalars, which may be traced.
    by_text: whether a verdict of one key depends on the text, which is the first argument, alone.

  Returns:
    `(key, *arguments) -> verdicts`.
  """

  def judge(key, *arguments):
    texts = arguments[0] if by_text else None
    return flip_verdicts(key, jnp.asarray(verify(*arguments)), rates, texts=texts)

  return judge


def over_error_rates(
  measure: Callable[[Callable[..., jax.Array]], Any],
  verify: Callable[..., chex.Array],
  rates: ErrorRates,
  **options: Any,
) -> Any:
  """What a method gives with verifiers of several error rates: one program, traceable.

  Args:
    measure: `verifier -> pytree of arrays`, where the verifier is `(key, *arguments) -> verdicts`.
    verify: `(*arguments) -> verdicts`, which are right.
    rates: of all points of the sweep, `[m]` or numbers.
    **options: of `with_errors`.

  Returns:
    The pytree with a leading axis of m.
  """
  rates = ErrorRates(*jnp.broadcast_arrays(*map(jnp.atleast_1d, rates)))
  return jax.vmap(lambda point: measure(with_errors(verify, point, **options)))(rates)
