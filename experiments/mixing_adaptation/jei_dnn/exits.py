"""Training of early exits and their gates on the features of a frozen backbone."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.kit.train import Trained, epoch_rows, sgd_cosine, train
from jaxlab import algorithms, losses, metrics, training


class Method(NamedTuple):
  """How gates and classifiers are trained; numbers, so that all methods are one program."""

  weighting: int  # Of classifiers: 0 expected loss, 1 with the scale of the mean, 2 mean.
  by_confidence: bool  # Whether the best exit has most confidence in the truth, not least loss.


MAIN, UNWEIGHTED = "JEI-DNN", "gates alone, classifiers unweighted"
METHODS = {
  MAIN: Method(0, False),
  "JEI-DNN, scale preserved": Method(1, False),
  "JEI-DNN, gates by confidence": Method(0, True),
  UNWEIGHTED: Method(2, False),
}


class Exits(NamedTuple):
  """Parameters of the exits: what each phase trains, and what it leaves alone."""

  heads: dict
  gates: dict
  final: dict


def split_exits(params: dict) -> Exits:
  """Sorts the parameters of the exits; the last head belongs to the frozen backbone."""
  heads = {name: value for name, value in params.items() if name.startswith("heads")}
  last = max(heads, key=lambda name: int(name.rpartition("_")[2]))
  gates = {name: value for name, value in params.items() if name.startswith("gates")}
  return Exits(heads, gates, final={last: heads.pop(last)})


def exit_outputs(net, exits: Exits, features):
  """Logits `[b, L + 1, k]` and gate logits `[b, L]` from features `[b, L + 1, d]`."""
  params = {**exits.heads, **exits.gates, **exits.final}
  output = net.apply({"params": params}, list(jnp.moveaxis(features, 1, 0)), method="exits")
  return jnp.stack(output.logits, axis=1), output.gate_logits


def _cross_entropies(logits, labels):
  labels = jnp.broadcast_to(labels[:, None], logits.shape[:-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def warm_up(key, exits: Exits, rows, *, config, net) -> Exits:
  """Trains all classifiers, early ones with more weight."""

  def loss(heads, model_state, batch, key):
    del model_state, key
    logits, _ = exit_outputs(net, exits._replace(heads=heads), batch[0])
    return training.LossOutput(losses.exit_warmup_loss(_cross_entropies(logits, batch[1])))

  steps, size, start = config.warmup_steps, config.batch_size, Trained(exits.heads, {})
  optimizer = sgd_cosine(config.learning_rate, steps, weight_decay=config.weight_decay)
  trained = train(key, net, loss, optimizer, rows, num_steps=steps, batch_size=size, start=start)
  return exits._replace(heads=trained.params)


def train_jointly(
  key, method: Method, cost_weight, exits: Exits, rows, validation, costs, *, config, net
) -> Exits:
  """Gates and classifiers in turns; one pair of turns ends with a look at the validation set.

  A loop of its own: two optimizers take turns, and the targets' weights change between turns.
  """
  optimizers = [
    sgd_cosine(rate, config.joint_steps // 2, weight_decay=config.weight_decay)
    for rate in (config.gate_learning_rate, config.learning_rate)
  ]

  def look(gates, heads, features, labels):
    logits, gate_logits = exit_outputs(net, Exits(heads, gates, exits.final), features)
    cross_entropies = _cross_entropies(logits, labels)
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    right = jnp.argmax(logits, axis=-1) == labels[:, None]
    terms = jnp.where(method.by_confidence, -confidence * right, cross_entropies)
    best = losses.optimal_exit(terms, costs, cost_weight=cost_weight)
    return cross_entropies, gate_logits, best

  def gate_loss(gates, heads, batch, pos_weights):
    _, gate_logits, best = look(gates, heads, *batch)
    return jnp.mean(losses.gate_loss(gate_logits, best, pos_weights))

  def classifier_loss(heads, gates, batch, pos_weights):
    del pos_weights
    cross_entropies, gate_logits, _ = look(gates, heads, *batch)
    early = cross_entropies[:, :-1]
    probs = losses.exit_distribution(jax.nn.sigmoid(gate_logits))[:, :-1]
    plain, scaled = (
      losses.exit_weighted_loss(early, probs, preserve_scale=scale) for scale in (False, True)
    )
    return jnp.mean(jnp.stack([plain, scaled, jnp.mean(early, axis=-1)])[method.weighting])

  def turn(i, loss):
    """A step of the gates (0) or of the classifiers (1), the others fixed."""

    def descend(params, states, *arguments):
      params, states = list(params), list(states)
      grads = jax.grad(loss)(params[i], params[1 - i], *arguments)
      updates, states[i] = optimizers[i].update(grads, states[i], params[i])
      params[i] = optax.apply_updates(params[i], updates)
      return params, states

    return descend

  def step(carry, inputs):
    (state, pos_weights), (number, chosen) = carry, inputs
    batch = jax.tree.map(lambda array: array[chosen], rows)
    phase = algorithms.alternate_phases(number, period=config.period)
    descend = [turn(0, gate_loss), turn(1, classifier_loss)]
    return (jax.lax.switch(phase, descend, *state, batch, pos_weights), pos_weights), None

  def turns(carry, inputs):
    (state, _), _ = jax.lax.scan(step, carry, inputs)
    best = look(*state[0], *validation)[2]
    weights = functools.partial(losses.gate_pos_weights, max_weight=config.max_pos_weight)
    return (state, weights(best, num_gates=len(costs) - 1)), None

  steps, params = config.joint_steps, [exits.gates, exits.heads]
  order = epoch_rows(key, len(rows[1]), num_steps=steps, batch_size=config.batch_size)
  inputs = jnp.arange(steps), order
  inputs = jax.tree.map(lambda a: a.reshape(-1, 2 * config.period, *a.shape[1:]), inputs)
  start = params, [optimizer.init(p) for optimizer, p in zip(optimizers, params)]
  (((gates, heads), _), _), _ = jax.lax.scan(turns, (start, jnp.ones(len(costs) - 1)), inputs)
  return Exits(heads, gates, exits.final)


def train_exits(key, own, labels, costs, *, config, net):
  """What the exits of one seed say, after warm-up, and of every method and cost weight.

  Each is a pair for validation and test rows: (probabilities `[n, L + 1, k]`, levels `[n]`).
  """
  rows, validation, test = zip(own["features"], map(jnp.asarray, labels))
  warm_key, joint_key = jax.random.split(key)
  warm = warm_up(warm_key, split_exits(own["exits"]), rows, config=config, net=net)

  def outputs(exits):
    both = [exit_outputs(net, exits, features) for features, _ in (validation, test)]
    shares = [losses.exit_distribution(jax.nn.sigmoid(gate_logits)) for _, gate_logits in both]
    return [(jax.nn.softmax(own[0]), metrics.exit_levels(p)) for own, p in zip(both, shares)]

  joint = functools.partial(train_jointly, config=config, net=net)

  def one(method, cost_weight):
    return outputs(joint(joint_key, method, cost_weight, warm, rows, validation, costs))

  methods = jax.tree.map(lambda *numbers: jnp.array(numbers), *METHODS.values())
  sweep = jax.vmap(one, in_axes=(None, 0))
  return outputs(warm), jax.vmap(sweep, in_axes=(0, None))(methods, jnp.array(config.cost_weights))
