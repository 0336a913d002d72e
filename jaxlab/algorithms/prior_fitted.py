"""Prior fitting: trains a network to predict the hidden points of data sets drawn from a prior.

One trainer serves every network that learns in context. What it learns is decided by the prior, a
function of a key, and by which points of a data set a prediction may use.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab._checks import check_arrays, check_at_least, check_filled, check_range
from jaxlab._programs import compiled_once
from jaxlab.samplers import contexts
from jaxlab.samplers.priors import draw_data_sets
from jaxlab.uncertainty.borders import bar_borders


class PriorFittingState(NamedTuple):
  """The state of prior fitting.

  Attributes:
    params: parameters of the network.
    opt_state: state of the optimizer.
    step: updates done, int32 scalar.
  """

  params: chex.ArrayTree
  opt_state: optax.OptState
  step: chex.Array


class PriorFittingInfo(NamedTuple):
  """What one step of prior fitting reports.

  Attributes:
    loss: mean loss of the queries, in the unit of the loss (nats for a log-loss), scalar.
    num_context: context size of this step, int32 scalar.
    grad_norm: global norm of the gradient before the optimizer, scalar.
  """

  loss: chex.Array
  num_context: chex.Array
  grad_norm: chex.Array


class PriorFitting(NamedTuple):
  """The two functions of prior fitting.

  Attributes:
    init: `init(params) -> PriorFittingState`.
    update: `update(key, state) -> (PriorFittingState, PriorFittingInfo)`; pure, to be jitted.
  """

  init: Callable[[chex.ArrayTree], PriorFittingState]
  update: Callable[[chex.PRNGKey, PriorFittingState], tuple[PriorFittingState, PriorFittingInfo]]


def prior_fitting(
  apply_fn: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  prior_fn: Callable[[chex.PRNGKey], Any],
  loss_fn: Callable[[Any, chex.Array], chex.Array],
  *,
  max_context: int,
  scheme: str = "weighted",
  stochastic: bool = False,
  scheduled: bool = False,
  lengths: Sequence[int] | None = None,
) -> PriorFitting:
  """Builds the training of a network on data sets drawn from a prior.

  Each step draws a context size and a fresh batch of data sets, and descends on the log-loss of
  the points outside the context. The minimizer over all functions is the posterior predictive
  distribution of the prior, so a trained network does Bayesian inference in one forward pass. No
  gradient flows into the data.

  A causal network predicts every point from those before it and needs no context size: with
  `max_context=1` the loss is the mean over all points. Two answers to one question are data sets of
  one point. Examples::

    pfn = lambda params, x, y, num_context: model.apply({"params": params}, x, y, num_context)
    prior_fitting(pfn, optimizer, partial(gp_prior, ...), bar_loss, max_context=30)

    causal = lambda params, x, y, _: model.apply({"params": params}, interleave_pairs(x, y))[:, ::2]
    prior_fitting(causal, optimizer, regression_prior, gaussian_loss, max_context=1)

    classify = lambda params, x, y, _: model.apply(
      {"params": params}, jnp.concatenate([x, previous_label_one_hot(y, num_classes=5)], axis=-1)
    )
    prior_fitting(classify, optimizer, partial(sample_task_sequences, ...), loss, max_context=1)

  Args:
    apply_fn: `apply_fn(params, x[b, T, f], y[b, T], num_context) -> outputs`, rows first
      `[b, T, ...]`; `num_context` is a traced int32 scalar, so that one program serves all sizes.
    optimizer: an optax transformation, e.g. `optax.chain(optax.clip_by_global_norm(1.0),
      optax.adam(schedule))`.
    prior_fn: `prior_fn(key)` draws a batch with fields `x[b, T, f]`, `y[b, T]` and
      `targets[b, T]`, e.g. a `jaxlab.samplers` prior with its sizes bound.
    loss_fn: `loss_fn(outputs, targets) -> [b, T]`.
    max_context: context sizes are drawn from 0 to `max_context - 1`; at most T.
    scheme: distribution of the context size, "weighted" (every size gets the same training loss
      per query) or "uniform".
    stochastic: also pass `key=` to `apply_fn`, for a network with dropout.
    scheduled: also pass `step=`, the updates done, to `prior_fn`, for a prior that changes during
      the training.
    lengths: numbers of points to which data sets are cut, one drawn uniformly at every update; the
      context size is then below it, too. One program holds a branch per length, of which an update
      runs one. None for T alone.

  Returns:
    `PriorFitting(init, update)`.

  Raises:
    ValueError: if `max_context` is below 1 or exceeds T, `scheme` is unknown, or `lengths` is empty
      or has one outside [1, T].

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, algorithm 1 and
  equation 2, https://arxiv.org/abs/2112.10510.
  """
  contexts.context_size_probs(max_context, scheme=scheme)  # A bad value fails here, not in jit.
  if lengths is not None:
    check_filled(lengths=np.array(lengths))
    check_at_least(1, **{f"lengths[{i}]": length for i, length in enumerate(lengths)})

  def init(params):
    return PriorFittingState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

  def update(key, state):
    key_prior, key_context, key_apply = jax.random.split(key, 3)
    when = {"step": state.step} if scheduled else {}
    batch = jax.lax.stop_gradient(prior_fn(key_prior, **when))
    x, y, targets = batch.x, batch.y, batch.targets
    num_points = x.shape[1]
    for name, size in {"max_context": max_context, "lengths": max(lengths or (1,))}.items():
      if size > num_points:
        raise ValueError(f"{name} must be at most the number of points, got {size} > {num_points}")
    extra = {"key": key_apply} if stochastic else {}

    def of_length(length, params):
      most = min(max_context, length)
      num_context = contexts.sample_context_size(key_context, most, scheme=scheme)

      def mean_loss(params):
        outputs = apply_fn(params, x[:, :length], y[:, :length], num_context, **extra)
        return query_mean_loss(loss_fn(outputs, targets[:, :length]), num_context)

      return *jax.value_and_grad(mean_loss)(params), num_context

    if lengths is None:
      loss, grads, num_context = of_length(num_points, state.params)
    else:
      branches = [functools.partial(of_length, length) for length in lengths]
      chosen = jax.random.randint(jax.random.fold_in(key_context, 1), (), 0, len(branches))
      loss, grads, num_context = jax.lax.switch(chosen, branches, state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    info = PriorFittingInfo(loss, num_context, optax.tree.norm(grads))
    return PriorFittingState(params, opt_state, state.step + 1), info

  return PriorFitting(init, update)


def query_mean_loss(loss: chex.Array, num_context: chex.Numeric) -> chex.Array:
  """Mean of the loss over the batch and the points outside the context.

  Args:
    loss: loss of every point, `[b, T]`; values of context points are ignored, even NaN.
    num_context: context size c in [0, T], shared by the batch; may be traced.

  Returns:
    Mean over b and points j >= c, float32 scalar; 0 if there are no queries (c = T).

  Raises:
    ValueError: if the shapes differ from these, or `num_context` is concrete and lies outside
      [0, T].

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, equation 2,
  https://arxiv.org/abs/2112.10510.
  """
  loss = jnp.asarray(loss)
  check_arrays(loss=(loss, "[b, T]"), num_context=(num_context, "[]"))
  batch_size, num_points = loss.shape
  check_range("num_context", num_context, f"[0, {num_points}]")
  is_query = jnp.arange(num_points) >= num_context
  total = jnp.sum(jnp.where(is_query, loss.astype(jnp.float32), 0))
  return total / jnp.maximum(batch_size * (num_points - num_context), 1)


class QueryLosses(NamedTuple):
  """Losses of all points, and which of them count.

  Attributes:
    values: loss of every point, `[b, T]`.
    weights: 1 for a query and 0 for a context point, float32 `[b, T]`.
  """

  values: chex.Array
  weights: chex.Array


def query_losses(
  apply_fn: Callable[..., Any],
  params: chex.ArrayTree,
  batch: Any,
  loss_fn: Callable[[Any, chex.Array], chex.Array],
  *,
  num_context: chex.Numeric,
) -> QueryLosses:
  """Losses and weights whose weighted mean is that of `query_mean_loss`.

  This is the form that a training step wants which averages over devices and micro-batches itself:
  `training.LossOutput(*query_losses(...))`.

  Args:
    apply_fn: `apply_fn(params, x[b, T, f], y[b, T], num_context) -> outputs`.
    params: parameters of the network.
    batch: data sets, with fields `x[b, T, f]`, `y[b, T]` and `targets[b, T]`.
    loss_fn: `loss_fn(outputs, targets) -> [b, T]`.
    num_context: context size c, shared by the batch; may be traced.

  Returns:
    `QueryLosses`.

  Raises:
    ValueError: if the losses are not `[b, T]` or `num_context` is no scalar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, equation 2,
  https://arxiv.org/abs/2112.10510.
  """
  values = loss_fn(apply_fn(params, batch.x, batch.y, num_context), batch.targets)
  check_arrays(**{"the result of loss_fn": (values, "[b, T]"), "num_context": (num_context, "[]")})
  is_query = jnp.arange(values.shape[1]) >= num_context
  return QueryLosses(values, jnp.broadcast_to(is_query, values.shape).astype(jnp.float32))


def loss_by_context(
  apply_fn: Callable[..., Any],
  params: chex.ArrayTree,
  batch: Any,
  loss_fn: Callable[[Any, chex.Array], chex.Array],
  *,
  context_sizes: Sequence[int] | chex.Array,
) -> chex.Array:
  """Mean loss of the queries at several context sizes, on the same data sets.

  This is the learning curve of the network as an inference algorithm. The sizes are run one after
  another inside one program, so they share its compilation and memory.

  Args:
    apply_fn: `apply_fn(params, x[b, T, f], y[b, T], num_context) -> outputs`.
    params: parameters of the network.
    batch: data sets, with fields `x[b, T, f]`, `y[b, T]` and `targets[b, T]`.
    loss_fn: `loss_fn(outputs, targets) -> [b, T]`.
    context_sizes: context sizes, each in [0, T - 1].

  Returns:
    Mean loss for each size, float32 `[len(context_sizes)]`.

  Raises:
    ValueError: if `context_sizes` is no vector, or a concrete size lies outside [0, T - 1].

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 5,
  https://arxiv.org/abs/2112.10510.
  """
  num_points = batch.x.shape[1]
  check_range("context_sizes", context_sizes, f"[0, {num_points - 1}]")
  sizes = jnp.asarray(context_sizes, jnp.int32)
  check_arrays(context_sizes=(sizes, "[n]"))
  return _losses_at(apply_fn, params, batch.x, batch.y, batch.targets, loss_fn, sizes)


@compiled_once
def _losses_at(apply_fn, params, x, y, targets, loss_fn, sizes) -> jax.Array:
  def loss_at(num_context):
    return query_mean_loss(loss_fn(apply_fn(params, x, y, num_context), targets), num_context)

  return jax.lax.map(loss_at, sizes)


def prior_bar_borders(
  key: chex.PRNGKey,
  prior_fn: Callable[[chex.PRNGKey], Any],
  num_bars: int,
  *,
  num_values: int = 20_000,
) -> chex.Array:
  """Borders of bars that hold equal shares of a prior's targets.

  Args:
    key: random key.
    prior_fn: `prior_fn(key)` draws a batch with a field `targets[b, T]`.
    num_bars: number of bars, K.
    num_values: targets to draw.

  Returns:
    Borders, `[K + 1]`.

  Raises:
    ValueError: if `num_bars` is below 2 or exceeds `num_values`.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 3,
  https://arxiv.org/abs/2112.10510.
  """
  per_key = jax.eval_shape(prior_fn, key).targets.size
  keys = jax.random.split(key, -(-num_values // per_key))
  targets = draw_data_sets(keys, prior_fn, one_by_one=True).targets
  return bar_borders(targets.reshape(-1)[:num_values], num_bars)


def prior_fitting_optimizer(
  learning_rate: chex.Numeric, num_steps: int, *, warmup_fraction: float = 0.25
) -> optax.GradientTransformation:
  """Adam with gradients clipped to a global norm of 1, its rate that of `warmup_cosine`.

  Args:
    learning_rate: highest learning rate; may be traced.
    num_steps: number of updates.
    warmup_fraction: part of the updates spent on the warm-up, in [0, 1].

  Returns:
    The gradient transformation.

  Raises:
    ValueError: as `warmup_cosine`, and if `learning_rate` is negative.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, appendix,
  https://arxiv.org/abs/2112.10510.
  """
  check_range("learning_rate", learning_rate, "[0, inf)")
  schedule = warmup_cosine(learning_rate, num_steps, warmup_fraction=warmup_fraction)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def warmup_cosine(
  peak: chex.Numeric, num_steps: int, *, warmup_fraction: float = 0.25
) -> optax.Schedule:
  """Linear warm-up from 0, then half a cosine back to 0.

  With w = ⌊warmup_fraction · num_steps⌋, step s < w has the rate `peak·s/w` and a later one
  `peak·½(1 + cos(π(s − w)/(num_steps − w)))`; the rate stays 0 after the last step.

  Args:
    peak: highest learning rate; may be traced.
    num_steps: number of updates S.
    warmup_fraction: part of the updates spent on the warm-up, in [0, 1].

  Returns:
    An optax schedule from the step to the learning rate, float32.

  Raises:
    ValueError: if `num_steps` is below 1 or `warmup_fraction` lies outside [0, 1].

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, appendix,
  https://arxiv.org/abs/2112.10510; Loshchilov and Hutter, SGDR, equation 5,
  https://arxiv.org/abs/1608.03983.
  """
  check_at_least(1, num_steps=num_steps)
  check_range("warmup_fraction", warmup_fraction, "[0, 1]")
  warmup = math.floor(warmup_fraction * num_steps)
  # Of height 1, since optax compares the peak with 0 and ours may be traced.
  schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, max(num_steps, warmup + 1))
  return lambda step: peak * schedule(step)


def transformer_peak_learning_rate(num_params: int) -> float:
  """Peak learning rate for a transformer of a given size, `0.003239 − 0.0001395·ln(num_params)`.

  Args:
    num_params: number of parameters, without embeddings of a vocabulary.

  Returns:
    Learning rate for Adam.

  Raises:
    ValueError: if `num_params` is below 1, or so large that the formula is not positive.

  Reference: Kaplan et al., Scaling Laws for Neural Language Models, 2020, appendix D.6,
  https://arxiv.org/abs/2001.08361.
  """
  check_at_least(1, num_params=num_params)
  rate = 0.003239 - 0.0001395 * math.log(num_params)
  if rate <= 0:
    raise ValueError(f"num_params is beyond the range of the formula, got {num_params}")
  return rate
