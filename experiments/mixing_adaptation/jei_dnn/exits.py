"""Training of early exits and their gates on the features of a frozen backbone."""

import jax
import jax.numpy as jnp
import optax

from experiments.kit.train import Trained, epoch_rows, sgd_cosine, train
from jaxlab import losses, metrics, training

MAIN, UNWEIGHTED = "JEI-DNN", "gates alone, classifiers unweighted"
# The classifiers' loss: 0 expected, 1 with the scale of the mean, 2 mean. Numbers, so that all
# methods are one program.
METHODS = {MAIN: 0, "JEI-DNN, scale preserved": 1, UNWEIGHTED: 2}


def exit_outputs(net, exits, features):
  """Logits `[b, L + 1, k]` and gate logits `[b, L]` from features `[b, L + 1, d]`."""
  output = net.apply({"params": exits}, list(jnp.moveaxis(features, 1, 0)), method="exits")
  return jnp.stack(output.logits, axis=1), output.gate_logits


def cross_entropies(logits, labels):
  """Of every exit, `[b, L + 1]`."""
  labels = jnp.broadcast_to(labels[:, None], logits.shape[:-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def trainable(net, exits, kind: str) -> dict:
  """The parameters of all `gates` or `heads`, but the last head, which the backbone has trained."""
  last = f"heads_{len(net.stages) - 1}"
  return {name: p for name, p in exits.items() if name.startswith(kind) and name != last}


def warm_up(key, exits, rows, setting, *, config, net) -> dict:
  """Trains all classifiers, early ones with more weight."""

  def loss(heads, model_state, batch, key):
    del model_state, key
    logits, _ = exit_outputs(net, exits | heads, batch[0])
    return training.LossOutput(losses.exit_warmup_loss(cross_entropies(logits, batch[1])))

  steps, size = config.warmup_steps, config.batch_size
  optimizer = sgd_cosine(setting["learning_rate"], steps, weight_decay=config.weight_decay)
  start = Trained(trainable(net, exits, "heads"), {})
  trained = train(key, net, loss, optimizer, rows, num_steps=steps, batch_size=size, start=start)
  return exits | trained.params


def train_jointly(
  key, weighting, cost_weight, exits, rows, validation, costs, setting, *, config, net
) -> dict:
  """Gates and classifiers in turns; one pair of turns ends with a look at the validation set.

  A loop of its own: two optimizers take turns, and the targets' weights change between turns.
  """
  optimizers = [
    sgd_cosine(setting[rate], config.joint_steps // 2, weight_decay=config.weight_decay)
    for rate in ("gate_learning_rate", "learning_rate")
  ]

  def look(gates, heads, features, labels):
    logits, gate_logits = exit_outputs(net, exits | gates | heads, features)
    ces = cross_entropies(logits, labels)
    return ces, gate_logits, losses.optimal_exit(ces, costs, cost_weight=cost_weight)

  def gate_loss(gates, heads, batch, pos_weights):
    _, gate_logits, best = look(gates, heads, *batch)
    return jnp.mean(losses.gate_loss(gate_logits, best, pos_weights))

  def classifier_loss(heads, gates, batch, pos_weights):
    del pos_weights
    ces, gate_logits, _ = look(gates, heads, *batch)
    early, probs = ces[:, :-1], losses.exit_distribution(jax.nn.sigmoid(gate_logits))[:, :-1]
    weighted = [losses.exit_weighted_loss(early, probs, preserve_scale=s) for s in (False, True)]
    return jnp.mean(jnp.stack([*weighted, jnp.mean(early, axis=-1)])[weighting])

  def descend(i, loss, state, others, pos_weights, order):
    """A turn of the gates (0) or of the classifiers (1), the others fixed."""

    def step(state, chosen):
      batch = jax.tree.map(lambda array: array[chosen], rows)
      grads = jax.grad(loss)(state[0], others, batch, pos_weights)
      updates, opt_state = optimizers[i].update(grads, state[1], state[0])
      return (optax.apply_updates(state[0], updates), opt_state), None

    return jax.lax.scan(step, state, order)[0]

  def turns(carry, order):
    gates, heads, pos_weights = carry
    gates = descend(0, gate_loss, gates, heads[0], pos_weights, order[0])
    heads = descend(1, classifier_loss, heads, gates[0], pos_weights, order[1])
    best, most = look(gates[0], heads[0], *validation)[2], config.max_pos_weight
    pos_weights = losses.gate_pos_weights(best, num_gates=len(pos_weights), max_weight=most)
    return (gates, heads, pos_weights), None

  steps, size = config.joint_steps, config.batch_size
  order = epoch_rows(key, len(rows[1]), num_steps=steps, batch_size=size)
  params = [trainable(net, exits, kind) for kind in ("gates", "heads")]
  start = [(own, optimizer.init(own)) for own, optimizer in zip(params, optimizers)]
  start = *start, jnp.ones(len(costs) - 1)
  (gates, heads, _), _ = jax.lax.scan(turns, start, order.reshape(-1, 2, config.period, size))
  return exits | gates[0] | heads[0]


def train_exits(key, own, labels, costs, setting, *, config, net):
  """What the exits of one seed say, after warm-up, and of every method and cost weight.

  They are trained on the second split, which the backbone has not been fitted to. Each result is a
  pair for validation and test rows: (probabilities `[n, L + 1, k]`, levels `[n]`).
  """
  _, rows, validation, test = zip(own["features"], map(jnp.asarray, labels))
  warm_key, joint_key = jax.random.split(key)
  warm = warm_up(warm_key, own["exits"], rows, setting, config=config, net=net)

  def outputs(exits):
    both = [exit_outputs(net, exits, features) for features, _ in (validation, test)]
    shares = [losses.exit_distribution(jax.nn.sigmoid(gate_logits)) for _, gate_logits in both]
    return [(jax.nn.softmax(own[0]), metrics.exit_levels(p)) for own, p in zip(both, shares)]

  def one(weighting, cost_weight):
    arguments = weighting, cost_weight, warm, rows, validation, costs, setting
    return outputs(train_jointly(joint_key, *arguments, config=config, net=net))

  sweep = jax.vmap(one, in_axes=(None, 0))
  weightings, cost_weights = jnp.array(list(METHODS.values())), jnp.array(config.cost_weights)
  return outputs(warm), jax.vmap(sweep, in_axes=(0, None))(weightings, cost_weights)
