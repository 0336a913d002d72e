"""Training of early exits and their gates on the features of a frozen backbone."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import classification
from jaxlab import algorithms, losses, metrics

MAIN = "JEI-DNN"
SCALED = "JEI-DNN, scale preserved"
CONFIDENT = "JEI-DNN, gates by confidence"
UNWEIGHTED = "gates alone, classifiers unweighted"
METHODS = (MAIN, SCALED, CONFIDENT, UNWEIGHTED)


class Setting(NamedTuple):
  """How one network with exits is trained.

  Attributes:
    cost_weight: what a unit of cost is worth.
    weighting: of the classifiers; 0: the expected loss of the exit taken, 1: the mean loss with
      the gradient of that, 2: the plain mean.
    by_confidence: whether the best exit is that of most confidence in the truth, not least loss.
  """

  cost_weight: jax.Array
  weighting: jax.Array
  by_confidence: jax.Array


class Exits(NamedTuple):
  """Parameters of the exits: what each phase trains, and what it leaves alone."""

  heads: dict
  gates: dict
  final: dict


def split_exits(params: dict) -> Exits:
  """Sorts the parameters of the exits; the last head belongs to the frozen backbone."""
  heads = {name: value for name, value in params.items() if name.startswith("heads")}
  last = max(heads, key=lambda name: int(name.rpartition("_")[2]))
  final = {last: heads.pop(last)}
  gates = {name: value for name, value in params.items() if name.startswith("gates")}
  return Exits(heads, gates, final)


def exit_outputs(net, exits: Exits, features):
  """Logits `[b, L + 1, k]` and gate logits `[b, L]` from features `[b, L + 1, d]`."""
  params = {**exits.heads, **exits.gates, **exits.final}
  output = net.apply({"params": params}, list(jnp.moveaxis(features, 1, 0)), method="exits")
  return jnp.stack(output.logits, axis=1), output.gate_logits


def _cross_entropies(logits, labels):
  labels = jnp.broadcast_to(labels[:, None], logits.shape[:-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _optimizer(config, rate: float, num_steps: int) -> optax.GradientTransformation:
  schedule = optax.cosine_decay_schedule(rate, num_steps)
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, config.momentum)
  )


def warm_up(key, exits: Exits, features, labels, *, config, net) -> Exits:
  """Trains all classifiers, early ones with more weight."""
  optimizer = _optimizer(config, config.learning_rate, config.warmup_steps)
  rows = classification.epoch_rows(
    key, len(labels), num_steps=config.warmup_steps, batch_size=config.batch_size
  )

  def loss(heads, rows):
    logits, _ = exit_outputs(net, exits._replace(heads=heads), features[rows])
    return jnp.mean(losses.exit_warmup_loss(_cross_entropies(logits, labels[rows])))

  def step(carry, rows):
    heads, state = carry
    updates, state = optimizer.update(jax.grad(loss)(heads, rows), state, heads)
    return (optax.apply_updates(heads, updates), state), None

  (heads, _), _ = jax.lax.scan(step, (exits.heads, optimizer.init(exits.heads)), rows)
  return exits._replace(heads=heads)


def train_jointly(
  key, setting: Setting, exits: Exits, train, validation, costs, *, config, net
) -> Exits:
  """Gates and classifiers in turns; one pair of turns ends with a look at the validation set."""
  head_optimizer, gate_optimizer = (
    _optimizer(config, rate, config.joint_steps // 2)
    for rate in (config.learning_rate, config.gate_learning_rate)
  )
  rows = classification.epoch_rows(
    key, len(train[1]), num_steps=config.joint_steps, batch_size=config.batch_size
  )

  def look(heads, gates, features, labels):
    logits, gate_logits = exit_outputs(net, Exits(heads, gates, exits.final), features)
    cross_entropies = _cross_entropies(logits, labels)
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    right = jnp.argmax(logits, axis=-1) == labels[:, None]
    terms = jnp.where(setting.by_confidence, -confidence * right, cross_entropies)
    best = losses.optimal_exit(terms, costs, cost_weight=setting.cost_weight)
    return cross_entropies, gate_logits, best

  def gate_loss(gates, heads, batch, pos_weights):
    _, gate_logits, best = look(heads, gates, *batch)
    return jnp.mean(losses.gate_loss(gate_logits, best, pos_weights))

  def classifier_loss(heads, gates, batch, pos_weights):
    del pos_weights
    cross_entropies, gate_logits, _ = look(heads, gates, *batch)
    early = cross_entropies[:, :-1]
    probs = losses.exit_distribution(jax.nn.sigmoid(gate_logits))[:, :-1]
    values = [
      losses.exit_weighted_loss(early, probs),
      losses.exit_weighted_loss(early, probs, preserve_scale=True),
      jnp.mean(early, axis=-1),
    ]
    return jnp.mean(jnp.stack(values)[setting.weighting])

  def descend(optimizer, loss, params, other, state, batch, pos_weights):
    grads = jax.grad(loss)(params, other, batch, pos_weights)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  def step(carry, inputs):
    (heads, gates, head_state, gate_state), pos_weights = carry
    number, rows = inputs
    batch = train[0][rows], train[1][rows]

    def open_gates(_):
      new = descend(gate_optimizer, gate_loss, gates, heads, gate_state, batch, pos_weights)
      return heads, new[0], head_state, new[1]

    def classify(_):
      new = descend(head_optimizer, classifier_loss, heads, gates, head_state, batch, pos_weights)
      return new[0], gates, new[1], gate_state

    phase = algorithms.alternate_phases(number, period=config.period)
    return (jax.lax.switch(phase, [open_gates, classify], None), pos_weights), None

  def turns(carry, inputs):
    (state, _), _ = jax.lax.scan(step, carry, inputs)
    best = look(state[0], state[1], *validation)[2]
    pos_weights = losses.gate_pos_weights(
      best, num_gates=len(costs) - 1, max_weight=config.max_pos_weight
    )
    return (state, pos_weights), None

  start = (
    exits.heads,
    exits.gates,
    head_optimizer.init(exits.heads),
    gate_optimizer.init(exits.gates),
  )
  numbers = jnp.arange(config.joint_steps)
  inputs = jax.tree.map(lambda a: a.reshape(-1, 2 * config.period, *a.shape[1:]), (numbers, rows))
  carry = start, jnp.ones(len(costs) - 1)
  ((heads, gates, *_), _), _ = jax.lax.scan(turns, carry, inputs)
  return Exits(heads, gates, exits.final)


def judge_exits(key, own, labels, costs, *, config, net):
  """What the exits of one seed say on validation and test: after warm-up, and in every way."""
  train, validation, test = zip(own["features"], map(jnp.asarray, labels))
  warm_key, joint_key = jax.random.split(key)
  warm = warm_up(warm_key, split_exits(own["exits"]), *train, config=config, net=net)

  def outputs(exits):
    found = []
    for features, _ in (validation, test):
      logits, gate_logits = exit_outputs(net, exits, features)
      exit_probs = losses.exit_distribution(jax.nn.sigmoid(gate_logits))
      found.append((jax.nn.softmax(logits), metrics.exit_levels(exit_probs)))
    return found

  joint = functools.partial(train_jointly, config=config, net=net)
  cost_weights = jnp.asarray(config.cost_weights)

  def method(weighting, by_confidence):
    return jax.vmap(
      lambda cost_weight: outputs(
        joint(
          joint_key,
          Setting(cost_weight, weighting, by_confidence),
          warm,
          train,
          validation,
          costs,
        )
      )
    )(cost_weights)

  weightings = jnp.array([0, 1, 0, 2])
  return outputs(warm), jax.vmap(method)(weightings, jnp.array([False, False, True, False]))
