"""Objectives of semi-supervised learning: one batch in, a scalar loss and what it was made of out.

`apply_fn(params, inputs) -> logits` is any network. Targets are one-hot or soft. The second output
is a dict of

- `supervised_loss` and `unlabeled_loss`, scalars whose sum is the loss;
- `guesses`, the targets of the unlabeled rows, probabilities `[nu, k]`;
- `used`, how much each row counts, `[nu]`;
- `row_losses`, the loss of each row before any threshold or weight, `[nu]`.

`semi_supervised_training` takes them as methods, with optimizer, averages and memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range, reaches, weighted
from jaxlab.augment.mixing import mixup_pairs
from jaxlab.augment.soft_labels import align_distribution, guess_labels, sharpen
from jaxlab.losses.classification import soft_cross_entropy
from jaxlab.losses.semi_supervised import fixmatch_loss

ApplyFn = Callable[[chex.ArrayTree, chex.Array], chex.Array]
Objective = tuple[jax.Array, dict[str, Any]]


class MixedBatch(NamedTuple):
  """Labeled rows and unlabeled views, each mixed with a random row of both.

  Attributes:
    labeled: mixed labeled rows, `[nl, ...]`.
    targets: their mixed targets, `[nl, k]`.
    unlabeled: mixed views, view by view, `[a * nu, ...]`.
    unlabeled_targets: their mixed guesses, `[a * nu, k]`.
  """

  labeled: chex.Array
  targets: chex.Array
  unlabeled: chex.Array
  unlabeled_targets: chex.Array


def fixmatch_objective(
  key: chex.PRNGKey,
  apply_fn: ApplyFn,
  params: chex.ArrayTree,
  labeled: chex.Array,
  targets: chex.Array,
  weak: chex.Array,
  strong: chex.Array,
  *,
  weight: chex.Numeric = 1.0,
  threshold: chex.Numeric = 0.95,
  mixup_alpha: chex.Numeric | None = None,
  mix_targets: bool = True,
) -> Objective:
  """FixMatch: strong views learn the confident guesses of weak views.

  With mixup, labeled rows are mixed with strong views and strong views with labeled rows; the row
  that dominates decides the target's share and whether it counts.

  Args:
    key: random key; read with mixup alone.
    apply_fn: `(params, inputs) -> logits`.
    params: parameters of the network.
    labeled: weak views of labeled rows, `[nl, ...]`.
    targets: their labels, `[nl, k]`.
    weak: weak views of unlabeled rows, `[nu, ...]`.
    strong: strong views of the same rows, `[nu, ...]`.
    weight: of the unlabeled loss, at least 0.
    threshold: smallest probability of the guessed class that counts, in [0, 1].
    mixup_alpha: mixes in ratios from Beta(alpha, alpha), alpha > 0, and needs nl = nu; None for no
      mixup.
    mix_targets: whether targets are mixed too; else a mixture has the target of its first row.

  Returns:
    The loss and its parts.

  Raises:
    ValueError: if a number is out of range, or shapes do not agree.

  Reference: Sohn et al., FixMatch, NeurIPS 2020, https://arxiv.org/abs/2001.07685; Cances et al.,
  2022, https://arxiv.org/abs/2102.08183, for mixup.
  """
  check_range("weight", weight, "[0, inf)")
  check_range("threshold", threshold, "[0, 1]")
  check_arrays(
    labeled=(labeled, "[nl, ...]"),
    targets=(targets, "[nl, k]"),
    weak=(weak, "[nu, ...]"),
    strong=(strong, "[nu, ...]"),
  )
  weak_logits = jax.lax.stop_gradient(as_accumulator(apply_fn(params, weak)))
  probs = jax.nn.softmax(weak_logits)
  used = reaches(jnp.max(probs, axis=-1), threshold)
  if mixup_alpha is None:
    logits = apply_fn(params, labeled)
    supervised = jnp.mean(soft_cross_entropy(logits, targets))
    rows = fixmatch_loss(apply_fn(params, strong), weak_logits, threshold=0.0)
  else:
    check_arrays(labeled=(labeled, "[n, ...]"), strong=(strong, "[n, ...]"))
    guess = jax.nn.one_hot(jnp.argmax(weak_logits, axis=-1), weak_logits.shape[-1])
    keys = jax.random.split(key)
    ours = mixup_pairs(keys[0], labeled, strong, targets, guess, alpha=mixup_alpha)
    theirs = mixup_pairs(keys[1], strong, labeled, guess, targets, alpha=mixup_alpha)
    supervised = jnp.mean(
      soft_cross_entropy(apply_fn(params, ours.inputs), ours.targets if mix_targets else targets)
    )
    rows = soft_cross_entropy(
      apply_fn(params, theirs.inputs), theirs.targets if mix_targets else guess
    )
  unlabeled = weight * jnp.mean(weighted(used, rows))
  return objective_parts(supervised, unlabeled, probs, used, rows)


def objective_parts(
  supervised: jax.Array,
  unlabeled: jax.Array,
  guesses: jax.Array,
  used: jax.Array,
  row_losses: jax.Array,
) -> Objective:
  """The loss, and the dict that every objective returns beside it."""
  parts = {"supervised_loss": supervised, "unlabeled_loss": unlabeled}
  rows = jax.lax.stop_gradient({"guesses": guesses, "used": used, "row_losses": row_losses})
  return supervised + unlabeled, parts | rows


def mixmatch_objective(
  key: chex.PRNGKey,
  apply_fn: ApplyFn,
  params: chex.ArrayTree,
  labeled: chex.Array,
  targets: chex.Array,
  views: chex.Array,
  *,
  weight: chex.Numeric,
  temperature: chex.Numeric = 0.5,
  alpha: chex.Numeric = 0.75,
) -> Objective:
  """MixMatch: mixtures of labeled rows and of unlabeled ones with sharpened guesses.

  The original squares the difference of unlabeled rows; this one takes the cross-entropy.

  Args:
    key: random key.
    apply_fn: `(params, inputs) -> logits`.
    params: parameters of the network.
    labeled: weak views of labeled rows, `[nl, ...]`.
    targets: their labels, `[nl, k]`.
    views: a weak views of unlabeled rows, `[a, nu, ...]`.
    weight: of the unlabeled loss, at least 0; it should rise from 0 (`linear_rampup`).
    temperature: of `augment.guess_labels`, > 0.
    alpha: as in `mixmatch_batch`.

  Returns:
    The loss and its parts; `row_losses` are those of the mixtures in which each row dominates.

  Raises:
    ValueError: if a number is out of range, or shapes do not agree.

  Reference: Berthelot et al., MixMatch, NeurIPS 2019, https://arxiv.org/abs/1905.02249; Cances et
  al., 2022, https://arxiv.org/abs/2102.08183.
  """
  check_range("weight", weight, "[0, inf)")
  check_arrays(views=(views, "[a, nu, ...]"))
  guesses = guess_labels(_probs(apply_fn, params, views), temperature=temperature)
  supervised, rows = _mixed_losses(
    key, apply_fn, params, labeled, targets, views, jax.lax.stop_gradient(guesses), alpha
  )
  return objective_parts(supervised, weight * jnp.mean(rows), guesses, jnp.ones_like(rows), rows)


def _probs(apply_fn: ApplyFn, params: chex.ArrayTree, views: chex.Array) -> jax.Array:
  """Predictions on views `[a, nu, ...]`, without gradient, in one call of the network."""
  views = jnp.asarray(views)
  logits = apply_fn(params, views.reshape(-1, *views.shape[2:]))
  probs = jax.nn.softmax(as_accumulator(logits)).reshape(*views.shape[:2], -1)
  return jax.lax.stop_gradient(probs)


def _mixed_losses(key, apply_fn, params, labeled, targets, views, guesses, alpha):
  """Mean loss of the mixed labeled rows, and that of the mixtures of each unlabeled row."""
  mixed = mixmatch_batch(key, labeled, targets, views, guesses, alpha=alpha)
  supervised = soft_cross_entropy(apply_fn(params, mixed.labeled), mixed.targets)
  values = soft_cross_entropy(apply_fn(params, mixed.unlabeled), mixed.unlabeled_targets)
  return jnp.mean(supervised), jnp.mean(values.reshape(-1, guesses.shape[0]), axis=0)


def mixmatch_batch(
  key: chex.PRNGKey,
  labeled: chex.Array,
  targets: chex.Array,
  views: chex.Array,
  guesses: chex.Array,
  *,
  alpha: chex.Numeric = 0.75,
) -> MixedBatch:
  """Mixes labeled rows and unlabeled views with a permutation of both.

  Args:
    key: random key.
    labeled: `[nl, ...]`.
    targets: `[nl, k]`.
    views: a views of unlabeled rows, `[a, nu, ...]`.
    guesses: one for all views of a row, `[nu, k]`.
    alpha: two ratios, one for the labeled rows and one for the views, are drawn from
      Beta(alpha, alpha), alpha > 0; a row keeps the larger share.

  Returns:
    A `MixedBatch`.

  Raises:
    ValueError: if `alpha` <= 0, or shapes do not agree.

  Reference: Berthelot et al., MixMatch, NeurIPS 2019, algorithm 1,
  https://arxiv.org/abs/1905.02249.
  """
  check_range("alpha", alpha, "(0, inf)")
  check_arrays(
    labeled=(labeled, "[nl, ...]"),
    targets=(targets, "[nl, k]"),
    guesses=(guesses, "[nu, k]"),
    views=(views, "[a, nu, ...]"),
  )
  labeled, views = jnp.asarray(labeled), jnp.asarray(views)
  num_labeled, num_views = labeled.shape[0], views.shape[0]
  targets, guesses = as_accumulator(targets, guesses)
  flat = views.reshape(-1, *views.shape[2:])
  repeated = jnp.tile(guesses, (num_views, 1))
  inputs, labels = jnp.concatenate([labeled, flat]), jnp.concatenate([targets, repeated])
  order_key, labeled_key, unlabeled_key = jax.random.split(key, 3)
  order = jax.random.permutation(order_key, inputs.shape[0])
  ours, theirs = order[:num_labeled], order[num_labeled:]
  first = mixup_pairs(labeled_key, labeled, inputs[ours], targets, labels[ours], alpha=alpha)
  second = mixup_pairs(unlabeled_key, flat, inputs[theirs], repeated, labels[theirs], alpha=alpha)
  return MixedBatch(first.inputs, first.targets, second.inputs, second.targets)


def remixmatch_objective(
  key: chex.PRNGKey,
  apply_fn: ApplyFn,
  params: chex.ArrayTree,
  labeled: chex.Array,
  targets: chex.Array,
  weak: chex.Array,
  strong_views: chex.Array,
  label_mean: chex.Array,
  guess_mean: chex.Array,
  *,
  weight: chex.Numeric = 1.5,
  strong_weight: chex.Numeric = 0.5,
  temperature: chex.Numeric = 0.5,
  alpha: chex.Numeric = 0.75,
) -> Objective:
  """ReMixMatch: MixMatch with aligned guesses from one weak view, learned by strong views.

  Args:
    key: random key.
    apply_fn: `(params, inputs) -> logits`.
    params: parameters of the network.
    labeled: strong views of labeled rows, `[nl, ...]`.
    targets: their labels, `[nl, k]`.
    weak: weak views of unlabeled rows, `[nu, ...]`.
    strong_views: strong views of the same rows, `[a, nu, ...]`.
    label_mean: mean target of recent labeled batches, `[k]`.
    guess_mean: mean prediction on recent weak views, the current ones included, `[k]`; both from a
      `distribution_queue`.
    weight: of the mixed unlabeled loss, at least 0.
    strong_weight: of the loss of the first strong view, not mixed, at least 0.
    temperature: of `augment.sharpen`, > 0.
    alpha: as in `mixmatch_batch`.

  Returns:
    The loss and its parts; `row_losses` are those of the first strong views.

  Raises:
    ValueError: if a number is out of range, or shapes do not agree.

  Reference: Berthelot et al., ReMixMatch, ICLR 2020, https://arxiv.org/abs/1911.09785, without
  rotations; Cances et al., 2022, https://arxiv.org/abs/2102.08183.
  """
  check_range("weight", weight, "[0, inf)")
  check_range("strong_weight", strong_weight, "[0, inf)")
  check_arrays(weak=(weak, "[nu, ...]"), strong_views=(strong_views, "[a, nu, ...]"))
  weak, strong_views = jnp.asarray(weak), jnp.asarray(strong_views)
  probs = _probs(apply_fn, params, weak[None])[0]
  aligned = align_distribution(probs, guess_mean, label_mean)
  guesses = jax.lax.stop_gradient(sharpen(aligned, temperature=temperature))
  views = jnp.concatenate([weak[None], strong_views])
  supervised, mixed = _mixed_losses(key, apply_fn, params, labeled, targets, views, guesses, alpha)
  rows = soft_cross_entropy(apply_fn(params, strong_views[0]), guesses)
  unlabeled = weight * jnp.mean(mixed) + strong_weight * jnp.mean(rows)
  return objective_parts(supervised, unlabeled, guesses, jnp.ones_like(rows), rows)
