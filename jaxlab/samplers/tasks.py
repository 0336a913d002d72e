"""Tasks for learning in context: random projections of one data set.

A sampler draws whole sequences. Its result has the fields `x`, `y` and `targets` of a `PriorBatch`,
so that `algorithms.prior_fitting` takes it as a prior.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
)
from jaxlab.samplers.tree_search import sample_without_replacement


class ProjectionTask(NamedTuple):
  """A classification task made of another one; several tasks have a leading axis `[b, ...]`.

  Attributes:
    projection: matrix that inputs are multiplied by, float32 `[d_out, d_in]`.
    permutation: new label of each class, int32 `[k]`.
  """

  projection: chex.Array
  permutation: chex.Array


class TaskBatch(NamedTuple):
  """Sequences of labeled examples, one task each; also a batch of `algorithms.prior_fitting`.

  Attributes:
    inputs: `[b, n, d]`.
    labels: int `[b, n]`.
  """

  inputs: chex.Array
  labels: chex.Array

  @property
  def x(self) -> chex.Array:
    """The inputs."""
    return self.inputs

  @property
  def y(self) -> chex.Array:
    """The labels, which a context shows."""
    return self.labels

  @property
  def targets(self) -> chex.Array:
    """The labels, which predictions are scored on."""
    return self.labels


def apply_projection_task(
  inputs: chex.Array, labels: chex.Array, projections: chex.Array, permutations: chex.Array
) -> TaskBatch:
  """Projects the inputs of every sequence and renames its labels.

  Args:
    inputs: `[b, n, d_in]`.
    labels: classes, int `[b, n]`.
    projections: `[b, d_out, d_in]`.
    permutations: new label of each class, int `[b, k]`.

  Returns:
    `TaskBatch` with inputs `[b, n, d_out]` in float32 or wider and labels in int32 or wider. Traced
    labels outside the classes stay outside.

  Raises:
    ValueError: if a known label lies outside [0, k).

  Reference: Kirsch et al., General-Purpose In-Context Learning by Meta-Learning Transformers, 2022,
  section 3, https://arxiv.org/abs/2212.04458.
  """
  check_arrays(
    inputs=(inputs, "[b, n, d]"),
    labels=(labels, "int [b, n]"),
    projections=(projections, "[b, o, d]"),
    permutations=(permutations, "int [b, k]"),
  )
  num_classes = jnp.shape(permutations)[1]
  check_at_least(1, **{"the number of classes": num_classes})
  inputs, projections = as_accumulator(inputs, projections)
  labels = as_classes("labels", labels, num_classes)
  permutations = jnp.asarray(permutations).astype(labels.dtype)
  renamed = jnp.take_along_axis(permutations, jnp.minimum(labels, num_classes - 1), axis=1)
  projected = jnp.einsum("bnd,bod->bno", inputs, projections)
  return TaskBatch(projected, jnp.where(labels < num_classes, renamed, labels))


def projection_task(
  key: chex.PRNGKey,
  *,
  input_dim: int,
  output_dim: int,
  num_classes: int,
  identity_prob: chex.Numeric = 0.0,
) -> ProjectionTask:
  """Draws one task: a Gaussian matrix and a permutation of the labels.

  Entries of the matrix have variance `1 / input_dim`, so that standardized inputs stay so.

  Args:
    key: random key.
    input_dim: features of the data, d_in.
    output_dim: features of the task, d_out.
    num_classes: number k of classes.
    identity_prob: probability that labels keep their names, in [0, 1]. Such tasks are easier, and a
      share of them helps a training off its first plateau.

  Returns:
    `ProjectionTask`.

  Raises:
    ValueError: if a size is below 1 or `identity_prob` lies outside [0, 1].

  Reference: Kirsch et al., 2022, section 3, https://arxiv.org/abs/2212.04458.
  """
  check_at_least(1, input_dim=input_dim, output_dim=output_dim, num_classes=num_classes)
  check_range("identity_prob", identity_prob, "[0, 1]")
  matrix_key, order_key, coin_key = jax.random.split(key, 3)
  projection = jax.random.normal(matrix_key, (output_dim, input_dim)) * input_dim**-0.5
  classes = jnp.arange(num_classes, dtype=jnp.int32)
  keeps = jax.random.bernoulli(coin_key, as_accumulator(identity_prob))
  return ProjectionTask(
    projection, jnp.where(keeps, classes, jax.random.permutation(order_key, classes))
  )


def sample_projection_tasks(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  input_dim: int,
  output_dim: int,
  num_classes: int,
  num_tasks: int = 0,
  task_key: chex.PRNGKey | None = None,
  identity_prob: chex.Numeric = 0.0,
) -> ProjectionTask:
  """Draws tasks, from a finite set if there is one.

  Task m of a set is `projection_task(jax.random.fold_in(task_key, m), ...)`, so that a set of any
  size takes no memory.

  Args:
    key: random key.
    batch_size: number of tasks, b.
    input_dim: features of the data, d_in.
    output_dim: features of a task, d_out.
    num_classes: number k of classes.
    num_tasks: size of the set, from which tasks are drawn with replacement; 0 draws new tasks.
    task_key: the key that makes the set; ignored without one.
    identity_prob: see `projection_task`.

  Returns:
    `ProjectionTask` with a leading axis, `[b, d_out, d_in]` and `[b, k]`.

  Raises:
    ValueError: if a size is below 1, `num_tasks` is negative or comes without a `task_key`, or
      `identity_prob` lies outside [0, 1].

  Reference: Kirsch et al., 2022, section 3, https://arxiv.org/abs/2212.04458.
  """
  check_at_least(1, batch_size=batch_size)
  check_at_least(0, num_tasks=num_tasks)
  if not num_tasks:
    keys = jax.random.split(key, batch_size)
  elif task_key is None:
    raise ValueError(f"num_tasks {num_tasks} needs a task_key, got None.")
  else:
    members = jax.random.randint(key, (batch_size,), 0, num_tasks)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(task_key, members)

  def draw(key):
    return projection_task(
      key,
      input_dim=input_dim,
      output_dim=output_dim,
      num_classes=num_classes,
      identity_prob=identity_prob,
    )

  return jax.vmap(draw)(keys)


def sample_task_sequences(
  key: chex.PRNGKey,
  inputs: chex.Array,
  labels: chex.Array,
  *,
  batch_size: int,
  sequence_length: int,
  output_dim: int,
  num_classes: int,
  num_tasks: int = 0,
  task_key: chex.PRNGKey | None = None,
  identity_prob: chex.Numeric = 0.0,
) -> TaskBatch:
  """Draws sequences of examples of one data set, each as another task sees them.

  Args:
    key: random key.
    inputs: the data set, `[m, d_in]`, standardized once for all tasks.
    labels: its classes, int `[m]`.
    batch_size: number of sequences, b.
    sequence_length: examples of each, n, drawn without replacement; with it if m < n.
    output_dim: features of a task, d_out.
    num_classes: number k of classes.
    num_tasks: see `sample_projection_tasks`.
    task_key: see `sample_projection_tasks`.
    identity_prob: see `projection_task`.

  Returns:
    `TaskBatch`.

  Raises:
    ValueError: as in `sample_projection_tasks`, and if there are no examples, `sequence_length` < 1
      or a known label lies outside [0, k).

  Reference: Kirsch et al., 2022, section 3, https://arxiv.org/abs/2212.04458.
  """
  check_at_least(1, sequence_length=sequence_length, num_classes=num_classes)
  check_arrays(inputs=(inputs, "[m, d]"), labels=(labels, "int [m]"))
  check_filled(inputs=inputs)
  labels = as_classes("labels", labels, num_classes)
  inputs = jnp.asarray(inputs)
  num_examples, input_dim = inputs.shape
  draw_key, tasks_key = jax.random.split(key)
  tasks = sample_projection_tasks(
    tasks_key,
    batch_size=batch_size,
    input_dim=input_dim,
    output_dim=output_dim,
    num_classes=num_classes,
    num_tasks=num_tasks,
    task_key=task_key,
    identity_prob=identity_prob,
  )
  if num_examples < sequence_length:
    shape = (batch_size, sequence_length)
    chosen = jax.random.randint(draw_key, shape, 0, num_examples)
  else:
    equal = jnp.zeros((batch_size, num_examples))
    chosen = sample_without_replacement(draw_key, equal, num_samples=sequence_length).tokens
  return apply_projection_task(inputs[chosen], labels[chosen], *tasks)


def previous_label_one_hot(labels: chex.Array, *, num_classes: int) -> jax.Array:
  """The label of the example before each, as a network that reads a sequence may see it.

  Joined with the inputs it makes the tokens of learning in context: the token of an example holds
  its input, and not its own label.

  Args:
    labels: classes, int `[b, n]`.
    num_classes: number k of classes.

  Returns:
    float32 `[b, n, k]`; zeros at the first example, NaN behind a traced label outside the classes.

  Raises:
    ValueError: if `num_classes` < 1 or a known label lies outside the classes.

  Reference: Kirsch et al., 2022, section 3, https://arxiv.org/abs/2212.04458.
  """
  check_at_least(1, num_classes=num_classes)
  check_arrays(labels=(labels, "int [b, n]"))
  labels = as_classes("labels", labels, num_classes)
  encoded = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  encoded = jnp.where(labels[..., None] < num_classes, encoded, jnp.nan)
  return jnp.pad(encoded, ((0, 0), (1, 0), (0, 0)))[:, :-1]
