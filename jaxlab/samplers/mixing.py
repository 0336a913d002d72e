"""Which examples to mix with each other: partners drawn by how near their labels are."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
)

_KERNELS = ("gaussian", "tophat")


def label_similarity_probabilities(
  labels: chex.Array, *, bandwidth: chex.Numeric, kernel: str = "gaussian"
) -> jax.Array:
  """Probability of every example as the mixing partner of every other.

  Mixing two examples with distant regression targets invents labels that are wrong wherever the
  function is not linear, so the probability falls with the distance of the labels. An example may
  be its own partner.

  Args:
    labels: targets, or other vectors that should be close, `[n, d]`.
    bandwidth: distance of labels, in their units, beyond which partners are rare; as it goes to 0
      an example mixes with itself only, as it goes to infinity with all alike.
    kernel: "gaussian", or "tophat", equal for all partners nearer than `bandwidth`.

  Returns:
    Rows that sum to 1, float32 or wider, `[n, n]`. A label with a NaN is never a partner, and its
    own row is NaN.

  Raises:
    ValueError: if `bandwidth` is not positive, `kernel` is unknown, or `labels` is not `[n, d]` or
      has no rows.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, equation 6, https://arxiv.org/abs/2210.05775.
  """
  logits = label_similarity_logits(labels, labels, bandwidth=bandwidth, kernel=kernel)
  return jax.nn.softmax(logits, axis=-1)


def label_similarity_logits(
  labels: chex.Array, queries: chex.Array, *, bandwidth: chex.Numeric, kernel: str = "gaussian"
) -> jax.Array:
  """Unnormalized log-probabilities of partners, for some rows only.

  The n x n table of all examples is not needed: a batch computes its own rows only.

  Args:
    labels: targets of the candidates, `[n, d]`.
    queries: targets of the examples that look for a partner, `[q, d]`.
    bandwidth: as in `label_similarity_probabilities`.
    kernel: as in `label_similarity_probabilities`.

  Returns:
    Log-weights, float32 or wider, `[q, n]`; -inf where the weight is 0, as for labels with a NaN;
    NaN for queries with a NaN.

  Raises:
    ValueError: as `label_similarity_probabilities`, and if the widths d differ.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, equation 6, https://arxiv.org/abs/2210.05775.
  """
  check_range("bandwidth", bandwidth, "(0, inf]")
  check_choice("kernel", kernel, _KERNELS)
  labels, queries = as_accumulator(labels, queries)
  check_arrays(labels=(labels, "[n, d]"), queries=(queries, "[q, d]"))
  check_at_least(1, **{"the number of labels": labels.shape[0]})
  # Scaled before squaring, so that neither a large distance nor a small bandwidth overflows.
  # Explicit differences, because the expanded square loses precision for close labels.
  scaled = (queries[:, None] - labels[None]) / bandwidth
  square = jnp.sum(jnp.square(scaled), axis=-1)
  logits = -square / 2 if kernel == "gaussian" else jnp.where(square < 1, 0.0, -jnp.inf)
  logits = jnp.where(jnp.isnan(square), -jnp.inf, logits)
  is_unknown = jnp.any(jnp.isnan(queries), axis=1, keepdims=True)
  return jnp.where(is_unknown, jnp.nan, logits)


def sample_partners(
  key: chex.PRNGKey,
  labels: chex.Array,
  indices: chex.Array,
  *,
  bandwidth: chex.Numeric,
  kernel: str = "gaussian",
) -> jax.Array:
  """Draws a mixing partner for every row of a batch, from all examples.

  Args:
    key: random key.
    labels: targets of all examples, `[n, d]`.
    indices: rows of the batch in `labels`, int `[b]`.
    bandwidth: as in `label_similarity_probabilities`.
    kernel: as in `label_similarity_probabilities`.

  Returns:
    Rows of the partners, int32 `[b]`. A row whose label has a NaN is its own partner. A traced
    index outside [0, n) gives n or more.

  Raises:
    TypeError: if indices are not integers.
    ValueError: as `label_similarity_probabilities`, and if a concrete index lies outside [0, n).

  Reference: Yao et al., C-Mixup, NeurIPS 2022, algorithm 1, https://arxiv.org/abs/2210.05775.
  """
  labels = as_accumulator(labels)
  check_arrays(labels=(labels, "[n, d]"), indices=(indices, "int [b]"))
  indices = as_classes("indices", indices, labels.shape[0])
  queries = labels.at[indices].get(mode="fill")  # NaN for an index outside.
  logits = label_similarity_logits(labels, queries, bandwidth=bandwidth, kernel=kernel)
  partners = jax.random.categorical(key, logits, axis=-1)
  alone = ~jnp.any(logits > -jnp.inf, axis=-1)  # Nor is NaN above it.
  return jnp.where(alone, indices, partners).astype(jnp.int32)


def sample_partner_table(
  key: chex.PRNGKey,
  labels: chex.Array,
  *,
  num_draws: int,
  bandwidth: chex.Numeric,
  kernel: str = "gaussian",
) -> jax.Array:
  """Draws mixing partners of every example for many epochs at once.

  The law is that of `sample_partners`, which draws n random numbers per row of a batch; inversion
  of the cumulative probabilities needs one. It pays where the network is small. The n x n table of
  probabilities must fit memory.

  Args:
    key: random key.
    labels: targets of all examples, `[n, d]`.
    num_draws: partners of each example, for example one per epoch.
    bandwidth: as in `label_similarity_probabilities`.
    kernel: as there.

  Returns:
    Rows of the partners, int32 `[n, num_draws]`. A row whose label has a NaN is its own partner.

  Raises:
    ValueError: as `label_similarity_probabilities`, and if `num_draws` is negative.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, algorithm 1, https://arxiv.org/abs/2210.05775.
  """
  check_at_least(0, num_draws=num_draws)
  probs = label_similarity_probabilities(labels, bandwidth=bandwidth, kernel=kernel)
  cumulative = jnp.cumsum(probs, axis=1)
  # In float32 the sum need not be 1, and a share rounded up to it would pass the last partner.
  total = cumulative[:, -1:]
  shares = jax.random.uniform(key, (probs.shape[0], num_draws), probs.dtype) * total
  shares = jnp.minimum(shares, jnp.nextafter(total, jnp.zeros_like(total)))
  partners = jax.vmap(lambda row, share: jnp.searchsorted(row, share, side="right"))(
    cumulative, shares
  )
  own = jnp.arange(probs.shape[0])[:, None]
  return jnp.where(jnp.isnan(total), own, partners).astype(jnp.int32)
