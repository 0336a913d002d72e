"""Test-time adaptation through the normalization layers: their statistics, scales and biases.

Every adapter has one interface, `OnlineAdapter`, and runs over a stream by `adapt_stream`.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import check_range
from jaxlab.algorithms.online_adaptation import (
  AdaptBatch,
  AdapterState,
  AdaptInfo,
  AdaptLoss,
  ForwardFn,
  OnlineAdapter,
  Path,
  logits_of,
  loss_adapter,
)
from jaxlab.losses.adaptation import (
  confidence_difference_mask,
  open_set_entropy_loss,
  softmax_entropy,
)


def norm_adaptation(forward_fn: ForwardFn) -> OnlineAdapter:
  """Predicts with the statistics of each batch and learns nothing.

  If `forward_fn` normalizes with stored statistics instead, this is the source model. Both
  baselines thus run through the same interface as every other adapter.

  Args:
    forward_fn: `(params, inputs) -> outputs`: logits `[b, k]`, or an object with `logits`.

  Returns:
    An `OnlineAdapter` with `init(params) -> AdapterState`; its loss, `selected` and `skipped` are
    0.

  Reference: Schneider et al., Improving robustness against common corruptions by covariate shift
  adaptation, NeurIPS 2020, https://arxiv.org/abs/2006.16971.
  """

  def init(params):
    return AdapterState(jax.tree.map(jnp.asarray, params), ())

  def update(key, state, inputs):
    del key
    logits = logits_of(forward_fn(state.params, inputs))
    zero = jnp.zeros((), jnp.float32)
    return state, AdaptInfo(logits, zero, jnp.zeros(logits.shape[0], jnp.float32), zero)

  return OnlineAdapter(init, update)


def norm_affine_only(path: Path) -> bool:
  """Whether a leaf is a scale or a bias of a normalization layer.

  Args:
    path: names from the root to the leaf.

  Returns:
    True for a leaf named `scale` or `bias` below a module whose name, lowercased, holds `norm` or
    `bn`.

  Reference: Wang et al., Tent, ICLR 2021, section 3.2, https://arxiv.org/abs/2006.10726.
  """
  *modules, leaf = (str(name) for name in path)
  is_norm = any(tag in name.lower() for name in modules for tag in ("norm", "bn"))
  return leaf in ("scale", "bias") and is_norm


def entropy_minimization(
  forward_fn: ForwardFn, optimizer: optax.GradientTransformation, *, trainable=norm_affine_only
) -> OnlineAdapter:
  """Tent: minimizes prediction entropy over the scales and biases of normalization layers.

  Args:
    forward_fn: `(params, inputs) -> outputs`: logits `[b, k]`, or an object with `logits`.
    optimizer: steps the trained leaves, once per batch.
    trainable: `(path) -> bool`, which leaves are trained.

  Returns:
    An `OnlineAdapter` with `init(params) -> AdapterState`.

  Raises:
    ValueError: on a call, if no leaf is trained.

  Reference: Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021,
  https://arxiv.org/abs/2006.10726.
  """

  def loss_fn(key: chex.PRNGKey, batch: AdaptBatch) -> AdaptLoss:
    del key
    return AdaptLoss(softmax_entropy(logits_of(batch.outputs)))

  return loss_adapter(forward_fn, loss_fn, optimizer, trainable=trainable)


def filtered_entropy_minimization(
  forward_fn: ForwardFn,
  optimizer: optax.GradientTransformation,
  *,
  trainable=norm_affine_only,
  diversity_weight: chex.Numeric = 0.5,
) -> OnlineAdapter:
  """Entropy minimization on the rows that are no less confident than in the source model.

  Rows that are misclassified or of an unknown class tend to lose confidence while the others gain
  it. Leaving them out keeps adaptation stable over long streams.

  Args:
    forward_fn: `(params, inputs) -> outputs`: logits `[b, k]`, or an object with `logits`; the
      frozen source model runs on each batch as well.
    optimizer: steps the trained leaves, once per batch.
    trainable: `(path) -> bool`, which leaves are trained.
    diversity_weight: weight of the entropy of the mean prediction, which is maximized, >= 0.

  Returns:
    An `OnlineAdapter` with `init(params) -> FilteredState`; `selected` marks the rows kept.

  Raises:
    ValueError: if `diversity_weight` < 0; on a call, if no leaf is trained.

  Reference: Lee et al., Towards Open-Set Test-Time Adaptation Utilizing the Wisdom of Crowds in
  Entropy Minimization, ICCV 2023, https://arxiv.org/abs/2308.06879.
  """
  check_range("diversity_weight", diversity_weight, "[0, inf)")

  def loss_fn(key: chex.PRNGKey, batch: AdaptBatch) -> AdaptLoss:
    del key
    logits, source = logits_of(batch.outputs), logits_of(batch.source_outputs)
    return AdaptLoss(
      open_set_entropy_loss(logits, source, diversity_weight=diversity_weight),
      confidence_difference_mask(logits, source),
    )

  return loss_adapter(forward_fn, loss_fn, optimizer, trainable=trainable, keep_source=True)
