"""Training until the labels are fitted, with a look at held-out examples on the way."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.kit.train import Trained, accuracy, classification_loss, epoch_rows, predict
from experiments.mixing_adaptation.overlap_calibration.problems import Problem
from jaxlab import metrics, training

LEARNING_RATE = 1e-3  # Of Adam.


class Fit(NamedTuple):
  """Variables at the end and where the held-out loss was least, and how training went."""

  last: Any
  best: Any
  best_nll: Any
  rounds: Any
  accuracy: Any


def fit(config, module, loss_fn, problem: Problem, key, *, rounds=None) -> Fit:
  """Trains until the training labels are fitted, or for a given number of rounds.

  A round is `eval_every` updates. With `rounds` nothing is evaluated on the way. This is no call of
  `kit.train`, whose number of steps is fixed before training starts.
  """
  init_key, order_key, state_key = jax.random.split(key, 3)
  rows, num_rows = problem.train, len(problem.train.labels)
  variables = dict(module.init(init_key, rows.inputs[:1]))
  optimizer = optax.adam(LEARNING_RATE)
  update = training.build_update(classification_loss(module, loss_fn), optimizer)
  state = training.init_state(state_key, variables.pop("params"), optimizer, model_state=variables)

  def variables_of(state):
    return Trained(state.params, state.model_state).variables

  def one_round(carry):
    state, result = carry
    key, size = jax.random.fold_in(order_key, result.rounds), min(config.batch_size, num_rows)
    batches = epoch_rows(key, num_rows, num_steps=config.eval_every, batch_size=size)

    def step(state, batch):
      return update(state, jax.tree.map(lambda x: x[batch], rows))[0], None

    state, _ = jax.lax.scan(step, state, batches)
    result = result._replace(rounds=result.rounds + 1)
    if rounds is not None:
      return state, result
    now = variables_of(state)
    logits = predict(module, now, problem.held_out.inputs).logits
    nll = jnp.mean(metrics.negative_log_likelihood(logits, problem.held_out.labels))
    better = nll < result.best_nll
    return state, result._replace(
      best=jax.tree.map(lambda new, old: jnp.where(better, new, old), now, result.best),
      best_nll=jnp.minimum(nll, result.best_nll),
      accuracy=accuracy(module, now, rows),
    )

  def unfinished(carry):
    _, result = carry
    if rounds is not None:
      return result.rounds < rounds
    in_time = result.rounds * config.eval_every < config.max_steps
    return in_time & (result.accuracy < config.fitted)

  start = Fit(None, variables_of(state), jnp.float32(jnp.inf), jnp.int32(0), jnp.float32(0.0))
  state, result = jax.lax.while_loop(unfinished, one_round, (state, start))
  return result._replace(last=variables_of(state))
