"""Which labels are probably wrong, and how suspicious each is."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_at_least, check_choice, check_range
from jaxlab._programs import compiled_once, map_over_rows, sum_over_rows, varying_carry
from jaxlab.metrics.confident_learning import (
  checked_predictions,
  confident_classes,
  confident_joint,
  confident_thresholds,
)

_COLUMNS = 16  # Classes that those of a label are compared with at a time.


def label_quality(
  probs: chex.Array, labels: chex.Array, *, method: str = "self_confidence"
) -> jax.Array:
  """How well a label fits the predicted probabilities; small values are suspicious.

  Args:
    probs: out-of-sample probabilities, `[n, k]`.
    labels: given classes, int `[n]`; a traced label outside the classes gives NaN.
    method: "self_confidence", the probability s of the label; "normalized_margin",
      `(s - m + 1) / 2` with m the largest probability of another class; or
      "confidence_weighted_entropy", `log(1 + w) / w` with w the entropy, in units of log(k), over
      s. For a row without entropy the last is 0 even if the label is right, as in cleanlab.

  Returns:
    Scores `[n]`, float32 or wider, in [0, 1].

  Raises:
    ValueError: if `method` is unknown, k < 2, a known label lies outside the classes, or known
      probabilities of a row are negative or do not sum to 1.

  Reference: Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021,
  https://arxiv.org/abs/2103.14749; cleanlab, `get_label_quality_scores`, https://docs.cleanlab.ai.
  """
  check_choice("method", method, _SCORES)
  return _label_quality(*checked_predictions(probs, labels), method)


@compiled_once
def _label_quality(probs: jax.Array, labels: jax.Array, method: str) -> jax.Array:
  return map_over_rows(_SCORES[method], probs, labels, width=probs.shape[1])


def _own(probs: jax.Array, labels: jax.Array) -> jax.Array:
  """Probabilities of the labels; NaN for labels outside the classes."""
  return jnp.take_along_axis(probs, labels[:, None], axis=1)[:, 0]


def _is_label(probs: jax.Array, labels: jax.Array) -> jax.Array:
  return jnp.arange(probs.shape[1], dtype=labels.dtype)[None] == labels[:, None]


def _normalized_margin(probs: jax.Array, labels: jax.Array) -> jax.Array:
  others = jnp.max(jnp.where(_is_label(probs, labels), -jnp.inf, probs), axis=1)
  return (_own(probs, labels) - others + 1) / 2


def _confidence_weighted_entropy(probs: jax.Array, labels: jax.Array) -> jax.Array:
  logs = jnp.where(probs == 0, 0.0, jnp.log(jnp.where(probs == 0, 1.0, probs)))
  entropy = -jnp.sum(probs * logs, axis=1) / np.log(probs.shape[1])
  weight = entropy / jnp.maximum(_own(probs, labels), 1e-6)
  return jnp.log1p(weight) / jnp.maximum(weight, 1e-6)


_SCORES = {
  "self_confidence": _own,
  "normalized_margin": _normalized_margin,
  "confidence_weighted_entropy": _confidence_weighted_entropy,
}


def find_label_issues(
  probs: chex.Array,
  labels: chex.Array,
  *,
  method: str = "prune_by_noise_rate",
  fraction: chex.Numeric = 1.0,
  min_examples_per_class: int = 1,
) -> jax.Array:
  """Flags the examples whose label is probably wrong.

  With J the calibrated `confident_joint`, the methods flag

  - "prune_by_noise_rate": for all classes k and j != k, the J[k, j] examples with label k for which
    class j is ahead of k by most;
  - "prune_by_class": the examples with label k for which k is least probable, as many as J[k] has
    off its diagonal;
  - "both": what both of these flag;
  - "confident_learning": those that are confidently of another class;
  - "predicted_neq_given": those whose most probable class is another one.

  Whatever the method, an example whose label is its most probable class (up to 1e-6) is not flagged
  in the end. Rows are taken in blocks and never sorted: a million examples of a thousand classes
  need no second array of that size.

  Args:
    probs: out-of-sample probabilities, `[n, k]`. Probabilities above 1 are the caller's error.
    labels: given classes, int `[n]`. A traced label outside the classes is never flagged.
    method: see above.
    fraction: share, in (0, 1], of the off-diagonal counts that the first three methods flag; the
      others do not read it.
    min_examples_per_class: examples that the first three methods leave in each class; classes with
      no more are not touched. The others do not read it.

  Returns:
    bool `[n]`. Of equally suspicious examples the first are flagged.

  Raises:
    ValueError: if `method` is unknown, `fraction` lies outside (0, 1], `min_examples_per_class` is
      negative, k < 2, a known label lies outside the classes, or known probabilities of a row are
      negative or do not sum to 1.

  Reference: Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021,
  https://arxiv.org/abs/2103.14749; Confident Learning, JAIR 2021, section 3.3,
  https://arxiv.org/abs/1911.00068.
  """
  check_choice("method", method, _FILTERS)
  check_range("fraction", fraction, "(0, 1]")
  check_at_least(0, min_examples_per_class=min_examples_per_class)
  probs, labels = checked_predictions(probs, labels)
  return _find(probs, labels, as_accumulator(fraction), method, min_examples_per_class)


def num_label_issues(probs: chex.Array, labels: chex.Array) -> jax.Array:
  """How many labels are probably wrong.

  Args:
    probs: out-of-sample probabilities, `[n, k]`.
    labels: given classes, int `[n]`.

  Returns:
    The number of examples that `find_label_issues` flags by "confident_learning", int32 scalar.

  Raises:
    ValueError: as `find_label_issues`.

  Reference: Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021,
  https://arxiv.org/abs/2103.14749.
  """
  issues = find_label_issues(probs, labels, method="confident_learning")
  return jnp.sum(issues, dtype=jnp.int32)


@compiled_once
def _find(probs, labels, fraction, method: str, minimum: int) -> jax.Array:
  issues = _FILTERS[method](probs, labels, fraction, minimum)

  def is_right(probs, labels):
    ahead = probs + jnp.where(_is_label(probs, labels), 1e-6, 0.0)
    return (jnp.argmax(ahead, axis=1) == labels) | (labels >= probs.shape[1])

  return issues & ~map_over_rows(is_right, probs, labels, width=probs.shape[1])


def _predicted_neq_given(probs, labels, fraction, minimum) -> jax.Array:
  del fraction, minimum
  predicted = map_over_rows(lambda probs: jnp.argmax(probs, axis=1), probs, width=probs.shape[1])
  return predicted != labels


def _confident_learning(probs, labels, fraction, minimum) -> jax.Array:
  del fraction, minimum
  classes = confident_classes(probs, confident_thresholds(probs, labels))
  return (classes >= 0) & (classes != labels)


def _prune_by_noise_rate(probs, labels, fraction, minimum) -> jax.Array:
  kept, sizes = _prune_counts(probs, labels, fraction, minimum)
  num_classes = kept.shape[0]
  left_out = jnp.eye(num_classes, dtype=bool) | (sizes == 0)[:, None]
  counts = jnp.where(left_out, 0, kept)
  # A class is mistaken for few others: some columns at a time, those of large counts first, until
  # only counts of 0 are left.
  columns = jnp.argsort(-counts, axis=1)
  counts = jnp.take_along_axis(counts, columns, axis=1)
  width = min(num_classes, _COLUMNS)

  def goes_on(state):
    start, _ = state
    at = jax.lax.dynamic_slice_in_dim(counts, jnp.minimum(start, num_classes - 1), 1, axis=1)
    return (start < num_classes) & jnp.any(at > 0)

  def flag(state):
    start, flagged = state
    # The last columns may come twice, which flags nothing new.
    own_columns, most = (
      jax.lax.dynamic_slice_in_dim(x, start, width, axis=1) for x in (columns, counts)
    )

    def ahead(probs, labels):
      others = jnp.take_along_axis(probs, own_columns[labels], axis=1)
      return others - _own(probs, labels)[:, None]

    values = map_over_rows(ahead, probs, labels, width=width)
    return start + width, flagged | _flag_largest(values, labels, most)

  state = jnp.int32(0), jnp.zeros(labels.shape, bool)
  return jax.lax.while_loop(goes_on, flag, varying_carry(flag, state))[1]


def _prune_by_class(probs, labels, fraction, minimum) -> jax.Array:
  kept, sizes = _prune_counts(probs, labels, fraction, minimum)
  counts = jnp.maximum(sizes - jnp.diagonal(kept), 0)
  return _flag_largest(-_own(probs, labels)[:, None], labels, counts[:, None])


def _both(*args) -> jax.Array:
  return _prune_by_noise_rate(*args) & _prune_by_class(*args)


_FILTERS = {
  "prune_by_noise_rate": _prune_by_noise_rate,
  "prune_by_class": _prune_by_class,
  "both": _both,
  "confident_learning": _confident_learning,
  "predicted_neq_given": _predicted_neq_given,
}


def _prune_counts(probs, labels, fraction, minimum) -> tuple[jax.Array, jax.Array]:
  """Examples of each given class (rows) that are taken to be of each class, and sizes of classes.

  A class with no more than `minimum` examples, which is not to be touched, has size 0.
  """
  joint = confident_joint(probs, labels)
  sizes = jnp.sum(joint, axis=1)
  right = jnp.diagonal(joint)
  kept = jnp.maximum(right, minimum)
  # What is added to the diagonal is taken off the rest of the row in equal parts.
  num_others = jnp.maximum(jnp.sum(joint > 0, axis=1) - 1, 1)
  others = joint - ((kept - right) / num_others).astype(fraction.dtype)[:, None]
  diagonal = jnp.eye(joint.shape[0], dtype=bool)
  others = jnp.where(diagonal, 0.0, jnp.maximum(others, 0.0))
  pruned = others * fraction
  kept += jnp.sum(others - pruned, axis=1)
  counts = jnp.where(diagonal, kept[:, None], pruned).astype(jnp.int32)
  return counts, jnp.where(sizes > minimum, sizes, 0)


def _flag_largest(values: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
  """Flags the rows of a class that have the largest values in some column; the first on ties.

  A binary search over the bits of the smallest flagged value, of all classes and columns at once:
  it ends once every count is met, after about as many passes as a sort has, and a pass costs a
  comparison for each value. A second search, over rows, parts equal values.

  Args:
    values: `[n, m]`.
    labels: classes, `[n]`.
    counts: how many rows are flagged for each class and column, `[k, m]`.

  Returns:
    bool `[n]`.
  """
  num, width = values.shape
  if not num:
    return jnp.zeros(0, bool)
  kind = jnp.iinfo(jnp.int64 if values.dtype == jnp.float64 else jnp.int32)
  rows = labels, jnp.arange(num, dtype=jnp.int32), _ordered_bits(values)

  def is_among(bounds, spared, labels, places, keys):
    """Whether values are above the bounds, or equal and not of the last rows."""
    bounds, early = bounds[labels], places[:, None] < (num - spared)[labels]
    return (keys > bounds) | ((keys == bounds) & early)

  def num_among(bounds, spared):
    def of_rows(labels, *rest):
      among = is_among(bounds, spared, labels, *rest).astype(jnp.int32)
      return jnp.zeros_like(counts).at[labels].add(among)

    return sum_over_rows(of_rows, *rows, width=width)

  def search(num_at, low, high, met):
    """The largest number at which there are still enough, or one at which the count is met."""

    def between(low, high):
      return (low & high) + ((low ^ high) >> 1)

    def halve(state):
      low, high, met = state
      middle = between(low, high)
      found = num_at(middle)
      enough = found >= counts
      low, high = jnp.where(~met & enough, middle, low), jnp.where(met | enough, high, middle)
      return low, high, met | (found == counts)

    def goes_on(state):
      low, high, met = state
      return jnp.any(~met & (between(low, high) != low))

    state = low, high, met
    low, _, met = jax.lax.while_loop(goes_on, halve, varying_carry(halve, state))
    return low, met

  nothing = jnp.zeros_like(counts)
  low, high = (jnp.full(counts.shape, x, kind.dtype) for x in (kind.min, kind.max))
  bounds, met = search(lambda bounds: num_among(bounds, nothing), low, high, counts == 0)
  spared, _ = search(lambda spared: num_among(bounds, spared), nothing, nothing + num, met)

  def is_flagged(labels, *rest):
    return jnp.any(is_among(bounds, spared, labels, *rest) & (counts > 0)[labels], axis=1)

  return map_over_rows(is_flagged, *rows, width=width)


def _ordered_bits(values: jax.Array) -> jax.Array:
  """Integers in the order of the values; NaN comes first."""
  kind = jnp.iinfo(jnp.int64 if values.dtype == jnp.float64 else jnp.int32)
  bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), kind.dtype)
  return jnp.where(jnp.isnan(values), kind.min, jnp.where(bits < 0, bits ^ kind.max, bits))
