"""Hypotheses that fit the training data: functions of a kernel's space, and trained networks."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import solve_triangular

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.uncertainty.kernels import kernel_matrix

_EXACT = jax.lax.Precision.HIGHEST
# Errors of a factorization in units of the floats' resolution, for one point.
_ROUNDING = 8.0


def kernel_interpolants_from_noise(
  train_inputs: chex.Array,
  train_targets: chex.Array,
  test_inputs: chex.Array,
  noise: chex.Array,
  *,
  lengthscale: chex.Numeric = 1.0,
  jitter: chex.Numeric = 1e-6,
) -> jax.Array:
  """Functions of a Gaussian process that pass through the training points, at other points.

  The prior has mean 0, kernel `exp(-|a - b|^2 / (2 lengthscale^2))` and independent outputs. With
  mean and covariance C of the values at the test inputs, given the training data, a hypothesis is
  `mean + C^(1/2) noise`, with the symmetric root. Scaling the noise scales the amplitude of the
  prior.

  Args:
    train_inputs: `[n, d]`.
    train_targets: `[n, k]`.
    test_inputs: `[m, d]`.
    noise: standard normal, `[m, k, s]`; 0 gives the mean, which is that of kernel regression.
    lengthscale: of the kernel, > 0, in units of the inputs.
    jitter: added to the diagonal of the kernel at the training inputs, >= 0; at least the rounding
      errors of the matrix, about 1e-6 sqrt(n) in float32, are.

  Returns:
    Values `[m, k, s]` of s hypotheses, float32 or wider. Gradients flow into targets and noise.

  Raises:
    ValueError: if `lengthscale` <= 0, `jitter` < 0 or the shapes do not fit.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  check_arrays(
    train_inputs=(train_inputs, "[n, d]"),
    train_targets=(train_targets, "[n, k]"),
    test_inputs=(test_inputs, "[m, d]"),
    noise=(noise, "[m, k, s]"),
    lengthscale=(lengthscale, "[]"),
    jitter=(jitter, "[]"),
  )
  check_range("lengthscale", lengthscale, "(0, inf)")
  check_range("jitter", jitter, "[0, inf)")
  mean, root = _posterior(
    *as_accumulator(train_inputs, train_targets, test_inputs), lengthscale, jitter
  )
  noise = as_accumulator(noise)
  return mean[:, :, None] + jnp.einsum("ab,bks->aks", root, noise, precision=_EXACT)


@jax.jit
def _posterior(train_inputs, train_targets, test_inputs, lengthscale, jitter):
  """Mean `[m, k]` and symmetric root of the covariance `[m, m]` at the test inputs."""
  # Equal eigenvalues have no gradient.
  train_inputs, test_inputs, lengthscale, jitter = jax.lax.stop_gradient(
    (train_inputs, test_inputs, lengthscale, jitter)
  )

  def kernel(a, b):
    return kernel_matrix(a, b, lengthscale=lengthscale, outputscale=1.0)

  gram = kernel(train_inputs, train_inputs)
  num_rows = gram.shape[0]
  rounding = _ROUNDING * math.sqrt(num_rows) * jnp.finfo(gram.dtype).eps
  gram += jnp.maximum(jitter, rounding) * jnp.eye(num_rows, dtype=gram.dtype)
  cholesky = jnp.linalg.cholesky(gram)
  cross = solve_triangular(cholesky, kernel(train_inputs, test_inputs), lower=True)
  whitened = solve_triangular(cholesky, train_targets, lower=True)
  mean = jnp.matmul(cross.T, whitened, precision=_EXACT)
  covariance = kernel(test_inputs, test_inputs) - jnp.matmul(cross.T, cross, precision=_EXACT)
  values, vectors = jnp.linalg.eigh((covariance + covariance.T) / 2)
  scaled = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]
  return mean, jnp.matmul(scaled, vectors.T, precision=_EXACT)


def kernel_interpolants(
  key: chex.PRNGKey,
  train_inputs: chex.Array,
  train_targets: chex.Array,
  test_inputs: chex.Array,
  *,
  num_samples: int = 10_000,
  lengthscale: chex.Numeric = 1.0,
  jitter: chex.Numeric = 1e-6,
) -> jax.Array:
  """Draws functions of a Gaussian process that pass through the training points.

  Args:
    key: random key.
    train_inputs: `[n, d]`.
    train_targets: `[n, k]`.
    test_inputs: `[m, d]`.
    num_samples: number s of hypotheses. More than fit into memory are drawn in parts, by
      `jax.lax.map` over keys, of which only the errors are kept.
    lengthscale: of the kernel, > 0, in units of the inputs.
    jitter: as in `kernel_interpolants_from_noise`.

  Returns:
    Values `[m, k, s]` at the test inputs, float32 or wider.

  Raises:
    ValueError: if `num_samples` < 1, `lengthscale` <= 0, `jitter` < 0 or the shapes do not fit.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  check_at_least(1, num_samples=num_samples)
  check_arrays(train_targets=(train_targets, "[n, k]"), test_inputs=(test_inputs, "[m, d]"))
  shape = (test_inputs.shape[0], train_targets.shape[1], num_samples)
  dtype = jnp.result_type(as_accumulator(train_inputs, train_targets, test_inputs)[0])
  return kernel_interpolants_from_noise(
    train_inputs,
    train_targets,
    test_inputs,
    jax.random.normal(key, shape, dtype),
    lengthscale=lengthscale,
    jitter=jitter,
  )


def trained_hypotheses(
  key: chex.PRNGKey,
  init_fn: Callable[[chex.PRNGKey], chex.ArrayTree],
  loss_fn: Callable[[chex.ArrayTree, chex.Array], chex.Array],
  optimizer: optax.GradientTransformation,
  *,
  num_samples: int,
  num_steps: int,
  num_examples: int,
  batch_size: int | None = None,
) -> chex.ArrayTree:
  """Draws networks by training each from its own initialization, in its own order of batches.

  All are trained in one program::

      params = samplers.trained_hypotheses(
        key, init, lambda params, rows: jnp.mean((apply(params, x[rows]) - y[rows]) ** 2),
        optax.adam(1e-3), num_samples=64, num_steps=500, num_examples=len(x),
      )
      predictions = jax.vmap(apply, (0, None), -1)(params, test_x)  # [m, k, s]

  Args:
    key: random key.
    init_fn: `init_fn(key) -> params`.
    loss_fn: `loss_fn(params, indices int32[batch]) -> scalar`, of these training examples.
    optimizer: an optax transformation.
    num_samples: number s of networks.
    num_steps: updates of each.
    num_examples: number of training examples.
    batch_size: examples of a batch, drawn without replacement in each epoch, of which an incomplete
      last batch is dropped; None is all examples at once.

  Returns:
    The last parameters of all networks, with a leading axis s.

  Raises:
    ValueError: if a count is below 1 or `batch_size` exceeds `num_examples`.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  check_at_least(
    1,
    num_samples=num_samples,
    num_steps=num_steps,
    num_examples=num_examples,
    batch_size=batch_size,
  )
  if batch_size is not None and batch_size > num_examples:
    raise ValueError(f"batch_size must be at most num_examples, got {batch_size} > {num_examples}.")
  return _train(key, init_fn, loss_fn, optimizer, num_samples, num_steps, num_examples, batch_size)


@compiled_once
def _train(key, init_fn, loss_fn, optimizer, num_samples, num_steps, num_examples, batch_size):
  everything = jnp.arange(num_examples, dtype=jnp.int32)
  epoch_length = 1 if batch_size is None else num_examples // batch_size

  def train_one(key):
    init_key, order_key = jax.random.split(key)

    def shuffle(step, order):
      # The sum with the old order says over which devices the new one differs.
      key = jax.random.fold_in(order_key, step)
      return jax.random.permutation(key, everything) + 0 * order

    def update(carry, step):
      params, opt_state, order = carry
      if batch_size is None:
        rows = everything
      else:
        place = step % epoch_length
        # The step is the same in all networks, so that this stays a branch under `vmap`.
        order = jax.lax.cond(place == 0, shuffle, lambda _, order: order, step, order)
        rows = jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)
      grads = jax.grad(loss_fn)(params, rows)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state, order), None

    params, steps = init_fn(init_key), jnp.arange(num_steps, dtype=jnp.int32)
    start = params, optimizer.init(params), everything
    (params, _, _), _ = jax.lax.scan(update, varying_carry(update, start, steps), steps)
    return params

  return jax.vmap(train_one)(jax.random.split(key, num_samples))
