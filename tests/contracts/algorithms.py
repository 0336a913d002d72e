"""Calls of the algorithms; of a pair `init`, `update` one step is called."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.algorithms import (
  AdaptBatch,
  AdaptLoss,
  GaussianNBState,
  GuardedStep,
  PolicyBatch,
  SemiSupervisedBatch,
  Views,
  continual_mean_teacher,
  entropy_minimization,
  fixmatch_method,
  rloo_objective,
  sample_adaptive_augmentation,
  sample_rollout,
  semi_supervised_training,
  supervised_method,
)
from jaxlab.losses import causal_token_log_probs, softmax_entropy
from jaxlab.samplers import PriorBatch, ridge_prior, table_decode_fns
from tests.contracts.calls import KEY, B, b, c, call, f, n, p, t, u

_SGD = optax.sgd(0.1, momentum=0.9)
# Steps are compiled by those who use them, and op by op they take seconds.
_STEP = {"gradients": "step", "compiles_once": "step"}
_PARAMS = {"norm": {"scale": u(4)}, "head": f(4, 4)}
_TABLE = {"w": f(1)}
_COVARIANCES = np.stack([np.eye(4, dtype=np.float32)] * 2)
_SETS = PriorBatch(f(2, 5, 1), f(2, 5), f(2, 5))


class _Output(NamedTuple):
  features: chex.Array
  logits: chex.Array


def _forward(params, inputs):
  features = jnp.tanh(inputs * params["norm"]["scale"][None])
  return _Output(features, features @ params["head"])


def _logits(params, inputs):
  return _forward(params, inputs).logits


def _jitter(key, inputs):
  del key
  return inputs[:, ::-1]


def _weighted_square(params, weights, inputs=0.0):
  return jnp.mean(weights * jnp.square(params - inputs))


def _square(params, inputs=0.0):
  return jnp.mean(jnp.square(params - inputs))


def _solve_bilevel(function, inner, outer, batch, held_out, **kwargs):
  def loss(params, weights, inputs):
    return _weighted_square(params, weights, jnp.mean(inputs, axis=0))

  solver = function(loss, lambda x, y: _square(x, jnp.mean(y, axis=0)), _SGD, _SGD, **kwargs)
  return solver.update(solver.init(inner, outer), batch, held_out)


def _fill_bank(function, features, labels):
  bank = function(capacity=4, dim=4)
  return bank.update(bank.init(), features, labels)


def _keep_errors(function, features, targets):
  buffer = function(capacity=4, num_features=4)
  return buffer.update(buffer.init(), features, targets)


def _fit_mean(key, x, y, mask, previous):
  del key, x, previous
  return jnp.sum(jnp.where(mask, y, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _mean_at(model, x):
  return jnp.broadcast_to(model, x.shape[:1])


def _gaps(model, x, training_x, mask):
  gaps = jnp.where(mask[:, None], training_x, 0).sum(axis=0)
  return x - gaps[None] + 0 * model


def _fit_error(features, targets, mask):
  return jnp.sum(jnp.where(mask[:, None], features * targets[:, None], 0), axis=0)


def _error_at(model, features):
  return features @ model


def _project(params, features):
  return features @ params["w"]


def _entropy(key, batch: AdaptBatch):
  del key
  return AdaptLoss(softmax_entropy(batch.outputs.logits))


def _predict(params, x, y, num_context):
  del num_context
  return x @ params["w"] + 0 * y


def _error(outputs, targets):
  return jnp.square(outputs - targets)


def _every(path):
  del path
  return True


def _is_head(path):
  return path[0] == "head"


def _exceedance(curve, observed, best):
  return jnp.where(jnp.arange(curve.shape[0]) < observed, 0.0, curve - best)


def _distance(key, x, y, mask, candidates):
  del key
  return jnp.sum(candidates, axis=-1) + jnp.sum(jnp.where(mask, y, 0)) + 0 * jnp.sum(x)


def _adapter(function, key, params, inputs, **kwargs):
  adapter = function(_forward, _SGD, **kwargs)
  return adapter.update(key, adapter.init(params), inputs)


def _teacher(function, key, params, inputs, **kwargs):
  adapter = function(_forward, _jitter, _SGD, **kwargs)
  return adapter.update(key, adapter.init(params), inputs)


def _robust_teacher(function, key, params, projector, inputs, replay, **kwargs):
  adapter = function(_forward, _jitter, _SGD, project_fn=_project, **kwargs)
  return adapter.update(key, adapter.init(params, projector), inputs, replay)


def _warm_up(function, params, inputs):
  state = continual_mean_teacher(_forward, _jitter, _SGD).init(params)
  return function(_forward, _SGD, state, inputs)


def _stream(function, key, params, batches):
  adapter = entropy_minimization(_forward, _SGD)
  return function(key, adapter, adapter.init(params), batches)


def _guarded(function, params, inputs):
  objective = lambda params: (jnp.mean(_logits(params, inputs)), None)  # noqa: E731
  return function(objective, _SGD, params, _SGD.init(params), inputs=inputs)


def _fit_prior(function, key, params, **options):
  prior = partial(ridge_prior, batch_size=2, num_points=5)
  fitting = function(_predict, _SGD, prior, _error, max_context=4, **options)
  return fitting.update(key, fitting.init(params))


def _objective(function, *, rewards, mask, policy, old, reference):
  objective = function()
  weights, samples = objective.weigh_fn(rewards)
  rows = policy, old, reference, mask
  if samples is not None:
    rows = [jnp.take_along_axis(x, samples[..., None], axis=1) for x in rows]
  return objective.loss_fn(PolicyBatch(*rows, weights)).values


def _roll_out(key, table, prompts):
  lengths = jnp.full(prompts.shape[0], 2)
  sizes = {"num_samples": 2, "max_new_tokens": 3, "eos_token_id": 0}
  return sample_rollout(key, table_decode_fns(table), prompts, lengths, **sizes)


def _post_train(function, key, table, prompts):
  score = lambda rollout, _: jnp.sum(rollout.mask, axis=-1).astype(jnp.float32)  # noqa: E731
  scores = lambda table, tokens: causal_token_log_probs(table[tokens], tokens)  # noqa: E731
  trainer = function(_roll_out, score, scores, rloo_objective(), _SGD, kl_penalty=0.1)
  return trainer.update(key, trainer.init(table), prompts)


def _impute(function, key, values, mask, times, labels, table):
  return function(
    key,
    lambda filled, _: (jnp.tanh(filled), jnp.exp(jnp.tanh(filled))),
    lambda z, _: (z, jnp.exp(jnp.tanh(z))),
    jnp.tanh,
    lambda series, *_: jax.nn.log_softmax(jnp.mean(series, axis=-2) @ table),
    lambda z: -jnp.sum(jnp.square(z), axis=(-2, -1)),
    values,
    mask,
    times,
    labels,
    num_latents=2,
    rate=jnp.ones(2),
    bias=jnp.ones(2),
  )


# A reward that is not finite cannot be scored; supervised losses read the policy alone.
_UNREAD = "rewards old reference"
_SAMPLES = call(
  rewards=u(B, 2), mask=b(B, 2, 5), policy=n(B, 2, 5), old=n(B, 2, 5), reference=n(B, 2, 5)
)
_LABELED = (f(5, 4), c(5))
_TUNED = {"num_steps": 2, "batch_size": 2, "eval_every": 1}
_LABELED_SOFT = (f(5, 4), p(5, 4))
_ROWS = np.array([0, 2], np.int32)
# Labeled views, targets, unlabeled views; rows are remembered, so no axis is one of B rows.
_BATCH = ((f(5, 4), f(2, 5, 4), f(2, 5, 4)), p(5, 4), (f(5, 4), f(2, 5, 4), f(2, 5, 4)))
_DRAWN = {"traced_floats": "part"}


def _swap(key, first, second):
  del key
  return jnp.concatenate([second[:, :2], first[:, 2:]], axis=1)


def _one_mean(function, probs):
  queue = function(num_classes=4, history=2)
  return queue.update(queue.init(), probs)


def _one_selection(function, indices, losses):
  adaptive = function(5, refresh_every=1)
  return adaptive.update(adaptive.init(), indices, losses)


def _learn(build, function, key, params, labeled, targets, unlabeled):
  """One update of the training and the method that are built of the function."""
  training, method = build(function)
  trainer = training(_logits, method, _SGD)
  rows = np.array([0, 1, 2, 3, 7], np.int32)
  batch = SemiSupervisedBatch(Views(*labeled), targets, Views(*unlabeled), rows, rows % 4)
  return trainer.update(key, trainer.init(params), batch)


def _semi_supervised(*args, pair=False, **kwargs):
  """The call of a method with these arguments, in a training."""
  build = lambda function: (semi_supervised_training, function(*args, **kwargs))  # noqa: E731
  params = (_PARAMS, _PARAMS) if pair else _PARAMS
  return call(KEY, params, *_BATCH).but(use=partial(_learn, build), keeps=True, skip=_STEP)


TABLE = {
  "accept_step": call(
    GuardedStep(f(4), f(4), f(), None, b()), f(4), f(4), logits=f(B, 4), selected=u(B)
  ).but(keeps=True),
  "adapt_stream": call(KEY, _PARAMS, f(2, 5, 4)).but(use=_stream, keeps=True, skip=_STEP),
  "agreement_mask": call(p(B, 4), c(B)),
  "agreement_report": call(b(5), c(5), c(5)),
  "alternate_phases": call(c(B)),
  "anova_select": call(f(5, 4), c(5), num_features=2, num_classes=4),
  "apply_selection": call(f(B, 4, 8)).but(
    use=lambda function, features: function(features, np.eye(4, 8, dtype=bool)), keeps=True
  ),
  "best_of_n_objective": _SAMPLES.but(use=_objective, quiet=_UNREAD),
  "bilevel": call(f(4), f(4), f(5, 4), f(5, 4), inner_learning_rate=0.1).but(
    use=_solve_bilevel, keeps=True, skip=_STEP
  ),
  "bilevel:every": call(f(4), f(4), f(5, 4), f(5, 4), inner_learning_rate=0.1, outer_every=2).but(
    use=_solve_bilevel, keeps=True, skip=_STEP
  ),
  "calibrate_tail_gaussians": call(f(4, 2), f(4, 2, 2), u(4), b(4)),
  "centroid_pseudo_labels": call(f(5, 2), p(5, 4)),
  "class_log_density": call(f(B, 4), f(2, 4), _COVARIANCES),
  "co_training_method": _semi_supervised(pair=True),
  "co_training_objective": call(
    _logits, (_PARAMS, _PARAMS), (f(5, 4), f(5, 4)), (p(5, 4), p(5, 4)), f(2, 4)
  ),
  "continual_mean_teacher": call(KEY, _PARAMS, f(5, 4), num_augmentations=2).but(
    use=_teacher, keeps=True, skip=_STEP
  ),
  "cosine_logits": call(f(B, 1, 4, 4, 2), f(B, 2)),
  "cross_validated_errors": call(KEY, _fit_mean, _mean_at, _gaps, f(5, 2), f(5)),
  "distribution_queue": call(p(5, 4)).but(use=_one_mean),
  "draw_views": call(KEY, f(B, 4), weak_fn=_jitter, strong_fn=_jitter).but(keeps=True),
  "em_update": call(f(5, 2), f(4, 2)),
  "entropy_minimization": call(KEY, _PARAMS, f(5, 4)).but(use=_adapter, keeps=True, skip=_STEP),
  "error_buffer": call(f(2, 4), f(2)).but(use=_keep_errors, skip={"gradients": "steps"}),
  "factor_mle": call(f(5, 4), rank=2),
  "factor_mle_gram": call(f(5, 4), rank=2),
  "factor_posterior_covariance": call(f(4, 2)),
  "factor_posterior_mean": call(f(B, 4), f(4, 2)),
  "factor_regression": call(f(5, 4), f(5), f(4, 2)),
  "factor_regression:means": call(f(5, 4), f(5), f(4, 2), posterior_loss=False),
  "feature_bank": call(f(5, 4), c(5)).but(use=_fill_bank, skip={"gradients": "steps"}),
  "exponential_rampup": call(t(B), 8.0),
  "filtered_entropy_minimization": call(KEY, _PARAMS, f(5, 4)).but(
    use=_adapter, keeps=True, skip=_STEP
  ),
  "fine_tune": call(
    KEY, _logits, _PARAMS, _SGD, _LABELED, _LABELED, trainable=_every, **_TUNED
  ).but(keeps=True, skip=_STEP),
  "fit_class_gaussians": call(f(5, 2), c(5), u(5), num_classes=4),
  "fit_isotropic_mixture": call(KEY, f(5, 2), num_components=2, num_restarts=2, num_steps=2),
  "fixmatch_method": _semi_supervised(),
  "fixmatch_objective": call(KEY, _logits, _PARAMS, *_LABELED_SOFT, f(2, 4), f(2, 4)),
  "fixmatch_objective:mixup": call(
    KEY, _logits, _PARAMS, *_LABELED_SOFT, f(5, 4), f(5, 4), mixup_alpha=0.75
  ).but(skip=_DRAWN),
  "flexmatch_method": _semi_supervised(8, num_classes=4),
  "flexmatch_select": call(c(5), _ROWS, p(2, 4)),
  "flexmatch_status": call(c(5), num_classes=4),
  "flexmatch_thresholds": call(u(4)),
  "gaussian_nb_fit": call(f(5, 2), c(5), num_classes=4),
  "gaussian_nb_linear": call(u(4), f(4, 2), u(4, 2)),
  "gaussian_nb_log_joint": call(u(4), f(4, 2), u(4, 2), f(B, 2)),
  "gaussian_nb_log_joint:own": call(u(4), f(4, 2), u(4, 2), f(B, 2), shared_variance=False),
  "gaussian_nb_predict": call(u(4), f(4, 2), u(4, 2), f(B, 2)),
  "gaussian_nb_predict:own": call(u(4), f(4, 2), u(4, 2), f(B, 2), shared_variance=False),
  "gaussian_nb_update": call(GaussianNBState(u(4), f(4, 2), u(4, 2)), f(5, 2), c(5)),
  "gradient_noise_weights": call(KEY, batch_size=8, base_batch_size=2),
  "grpo_objective": _SAMPLES.but(use=_objective, quiet="rewards"),
  "guarded_step": call(_PARAMS, f(5, 4)).but(use=_guarded, keeps=True, skip=_STEP),
  "history_update": call(u(5), _ROWS, u(2)).but(skip={"gradients": "steps"}),
  "information_maximization_adaptation": call(KEY, _PARAMS, f(5, 4), trainable=_every).but(
    use=_adapter, keeps=True, skip=_STEP
  ),
  "init_optimizer": call(_SGD, _PARAMS).but(keeps=True),
  "invasion_rates": call(u(5), c(5), c(5), b(5)),
  "linear_probe_fine_tune": call(
    KEY,
    _logits,
    _PARAMS,
    _SGD,
    _SGD,
    _LABELED,
    _LABELED,
    num_head_steps=2,
    is_head=_is_head,
    **_TUNED,
  ).but(keeps=True, skip=_STEP),
  "linear_rampup": call(t(B), 8.0),
  "loss_adapter": call(KEY, _PARAMS, f(5, 4)).but(
    use=lambda function, key, params, inputs: _adapter(
      lambda forward, optimizer: function(forward, _entropy, optimizer, trainable=_every),
      key,
      params,
      inputs,
    ),
    keeps=True,
    skip=_STEP,
  ),
  "loss_by_context": call(_predict, _TABLE, _SETS, _error, context_sizes=(1, 2)),
  "masked_prototype": call(f(B, 1, 4, 4, 2), c(B, 1, 4, 4)),
  "mean_teacher_method": _semi_supervised(),
  "mean_teacher_objective": call(
    _logits, _PARAMS, _PARAMS, *_LABELED_SOFT, f(2, 4), f(2, 4), weight=0.5
  ),
  "mean_teacher_warm_up": call(_PARAMS, f(2, 5, 4)).but(use=_warm_up, keeps=True, skip=_STEP),
  "mixmatch_batch": call(KEY, *_LABELED_SOFT, f(2, 2, 4), p(2, 4)).but(keeps=True, skip=_DRAWN),
  "mixmatch_method": _semi_supervised(),
  "mixmatch_objective": call(KEY, _logits, _PARAMS, *_LABELED_SOFT, f(2, 2, 4), weight=0.5).but(
    skip=_DRAWN
  ),
  "mixup_method": _semi_supervised(fixmatch_method()),
  "mrmr_select": call(f(5, 4), c(5), num_features=2, num_classes=4).but(
    skip={"gradients": "steps"}
  ),
  "norm_adaptation": call(KEY, _PARAMS, f(5, 4)).but(
    use=lambda function, *args: _adapter(lambda forward, _: function(forward), *args),
    keeps=True,
    skip=_STEP,
  ),
  "not_miwae_objective": call(KEY, f(B, 5, 2), b(B, 5, 2), u(B, 5), c(B), f(2, 4)).but(
    use=_impute, skip={"gradients": "step", "compiles_once": "step"}
  ),
  "online_dpo_objective": _SAMPLES.but(use=_objective, quiet="rewards old"),
  "optimize_on_grid": call(KEY, f(5, 2), f(5), _distance, num_steps=2).but(keeps=True),
  "optimize_with_error_prediction": call(
    KEY,
    f(7, 2),
    f(7),
    fit_fn=_fit_mean,
    predict_fn=_mean_at,
    feature_fn=_gaps,
    fit_error_fn=_fit_error,
    predict_error_fn=_error_at,
    num_init=2,
    num_steps=2,
  ).but(keeps=True, skip=_STEP),
  "post_training": call(KEY, f(4, 4), c(B, 2)).but(use=_post_train, keeps=True, skip=_STEP),
  "predictive_stop": call(u(B, 4)),
  "prior_bar_borders": call(
    KEY, partial(ridge_prior, batch_size=2, num_points=5), 4, num_values=20
  ),
  "prior_fitting": call(KEY, _TABLE).but(use=_fit_prior, keeps=True, skip=_STEP),
  "prior_fitting:lengths": call(KEY, _TABLE, lengths=(3, 5)).but(
    use=_fit_prior, keeps=True, skip=_STEP
  ),
  "proportion_regularized_inference": call(
    f(B, 1, 4, 4, 2),
    c(B, 1, 4, 4),
    f(B, 1, 4, 4, 2),
    b(B, 1, 4, 4),
    num_steps=2,
    proportion_update_step=2,
  ),
  "pseudo_label_method": _semi_supervised(np.zeros(8, np.int32), np.ones(8, np.float32)),
  "query_losses": call(_predict, _TABLE, _SETS, _error, num_context=2).but(keeps=True),
  "query_mean_loss": call(f(4, 5), 2),
  "ratio_ema": call(u(), u()).but(skip={"gradients": "steps"}),
  "rejection_sampling_objective": _SAMPLES.but(use=_objective, quiet=_UNREAD),
  "remixmatch_method": _semi_supervised(num_classes=4),
  "remixmatch_objective": call(
    KEY, _logits, _PARAMS, *_LABELED_SOFT, f(2, 4), f(1, 2, 4), p(4), p(4)
  ).but(skip=_DRAWN),
  "responsibilities": call(f(B, 2), f(4, 2)),
  "rloo_objective": _SAMPLES.but(use=_objective, quiet="rewards reference"),
  "robust_mean_teacher": call(
    KEY, _PARAMS, {"w": f(4, 2)}, f(5, 4), _LABELED, prototypes=f(4, 4), source_weight=0.5
  ).but(use=_robust_teacher, keeps=True, skip=_STEP),
  "run_with_early_stopping": call(u(4, 5), _exceedance),
  "sample_class_gaussians": call(KEY, f(2, 4), _COVARIANCES, num_samples=5),
  "sample_rollout": call(KEY, f(4, 4), c(B, 2)).but(
    use=lambda function, *args: _roll_out(*args), skip={"gradients": "loop"}
  ),
  "virtual_step_gradient": call(_weighted_square, _square, f(4), f(4), inner_learning_rate=0.1).but(
    keeps=True
  ),
  "tail_classes": call(u(4)),
  "sample_adaptive_augmentation": call(_ROWS, u(2)).but(
    use=_one_selection, skip={"compiles_once": "step"}
  ),
  "sample_adaptive_method": _semi_supervised(
    fixmatch_method(), sample_adaptive_augmentation(8, refresh_every=1), paste_fn=_swap
  ),
  "select_naive": call(u(5), b(5)),
  "select_reliable": call(f(5), fraction=0.5).but(static="fraction"),
  "selection_fraction": call(t(B)),
  "semi_supervised_training": call(KEY, _PARAMS, *_BATCH).but(
    use=partial(_learn, lambda training: (training, supervised_method())), keeps=True, skip=_STEP
  ),
  "shrinkmatch_method": _semi_supervised(_logits, num_classes=4),
  "supervised_method": _semi_supervised(),
  "transfer_pseudo_labels": call(f(B, 2), f(5, 2), c(5), num_classes=4, mask=b(5)).but(
    skip={"gradients": "steps"}
  ),
  "warm_ema_decay": call(t(B)),
  "warmup_cosine": call(1e-3, np.array(2, np.int32)).but(
    use=lambda function, peak, step: function(peak, 10)(step)
  ),
}
