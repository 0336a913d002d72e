"""Methods of semi-supervised learning that change the batch of another method.

They can be combined::

  method = sample_adaptive_method(
    fixmatch_method(), sample_adaptive_augmentation(num_unlabeled, start_step=10_000)
  )
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_at_least, check_range
from jaxlab.algorithms.sample_selection import SampleAdaptive
from jaxlab.algorithms.semi_supervised import SemiSupervisedMethod, Views
from jaxlab.augment.images import paste_half
from jaxlab.augment.interpolation import interpolate_pairs
from jaxlab.augment.mixing import MixDraw, draw_mix


def sample_adaptive_method(
  method: SemiSupervisedMethod,
  adaptive: SampleAdaptive,
  *,
  paste_fn: Callable[[chex.PRNGKey, chex.Array, chex.Array], chex.Array] = paste_half,
) -> SemiSupervisedMethod:
  """Gives a method more diverse strong views of the rows that it no longer learns from.

  Args:
    method: a method that reports `row_losses` of the first strong views, such as FixMatch or
      FlexMatch.
    adaptive: from `sample_adaptive_augmentation`; `batch.indices` tells which rows are seen.
    paste_fn: `(key, first strong views, second strong views) -> views` for rows that are naive.

  Returns:
    The method; it remembers a pair: what the given one does, and a `SampleAdaptiveState`.

  Raises:
    ValueError: on a call, if the batch has no indices, or fewer than two strong views.

  Reference: Gui et al., Enhancing Sample Utilization through Sample Adaptive Augmentation in
  Semi-Supervised Learning, ICCV 2023, https://arxiv.org/abs/2309.03598.
  """

  def loss_fn(key, step):
    inner, state = step.memory
    unlabeled, indices = step.batch.unlabeled, step.indices_below(len(state.naive))
    check_at_least(2, **{"the number of strong views": len(unlabeled.strong)})
    # The method's own key must be the same with and without the selection.
    pasted = paste_fn(jax.random.fold_in(key, 1), unlabeled.strong[0], unlabeled.strong[1])
    naive = state.naive.at[indices].get(mode="clip")
    naive = naive.reshape(-1, *(1,) * (pasted.ndim - 1))
    first = jnp.where(naive, pasted, unlabeled.strong[0])
    strong = jnp.concatenate([first[None], unlabeled.strong[1:]])
    batch = step.batch._replace(unlabeled=unlabeled._replace(strong=strong))
    loss = method.loss_fn(key, step._replace(memory=inner, batch=batch))
    return loss._replace(memory=(loss.memory, adaptive.update(state, indices, loss.row_losses)))

  return SemiSupervisedMethod(
    loss_fn, lambda: (method.init_fn(), adaptive.init()), method.predict_fn
  )


def mixup_method(
  method: SemiSupervisedMethod, *, alpha: chex.Numeric = 0.75, probability: chex.Numeric = 1.0
) -> SemiSupervisedMethod:
  """Gives a method mixtures of rows: labeled ones with their labels, unlabeled ones in every view.

  All views of a row have the same partner and share, so that a method which compares views compares
  those of one mixture. FixMatch has a mixup of its own, `fixmatch_method(mixup_alpha=0.75)`.

  Args:
    method: the method.
    alpha: ratios, one for the labeled rows and one for the others, are drawn from
      Beta(alpha, alpha), alpha > 0; a row keeps the larger share.
    probability: probability that a batch is mixed; others go to the method as they are.

  Returns:
    The method.

  Raises:
    ValueError: if `alpha` <= 0, or `probability` lies outside [0, 1].

  Reference: Cances et al., 2022, https://arxiv.org/abs/2102.08183.
  """
  check_range("alpha", alpha, "(0, inf)")
  check_range("probability", probability, "[0, 1]")

  def loss_fn(key, step):
    labeled_key, unlabeled_key = jax.random.split(jax.random.fold_in(key, 1))
    batch = step.batch
    draw = draw_mix(labeled_key, batch_size=len(batch.targets), alpha=alpha, majority=True)
    other = draw_mix(
      unlabeled_key, batch_size=len(batch.unlabeled.clean), alpha=alpha, majority=True
    )
    mixes = jax.random.uniform(jax.random.fold_in(key, 2)) < probability
    draw, other = (x._replace(ratio=jnp.where(mixes, x.ratio, 1.0)) for x in (draw, other))
    batch = batch._replace(
      labeled=_mixed_views(batch.labeled, draw),
      targets=interpolate_pairs(batch.targets, draw.permutation, draw.ratio),
      unlabeled=_mixed_views(batch.unlabeled, other),
    )
    return method.loss_fn(key, step._replace(batch=batch))

  return SemiSupervisedMethod(loss_fn, method.init_fn, method.predict_fn)


def _mixed_views(views: Views, draw: MixDraw) -> Views:
  def one(inputs):
    return interpolate_pairs(inputs, draw.permutation, draw.ratio)

  return Views(one(views.clean), jax.vmap(one)(views.weak), jax.vmap(one)(views.strong))
