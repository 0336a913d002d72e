"""The policy, its losses, and what is measured along a training."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.alignment.rpo.problems import Part, Problem
from experiments.kit.train import Trained, train
from jaxlab import losses, metrics, models, training

DPO, RPO, MEAN, SFT = "DPO", "RPO", "RPO, mean form", "likelihood alone"
GOLD, OUTSIDE, DIVERGENCE = "gold value (sd)", "mass outside", "divergence (nats)"
UNPENALIZED = "value without penalty (sd)"
RISE, MARGIN, LOSS = "log-probability gained", "margin", "validation loss"


def network(config) -> nn.Module:
  """What the policy adds to the reference's log-probability of a response."""
  return models.MLP(1, (config.width,), activation=jnp.tanh)


def start(config, key, num_features: int) -> Trained:
  """Parameters whose policy is the reference."""
  params = dict(network(config).init(key, jnp.zeros((1, num_features)))["params"])
  return Trained(params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}, {})


def policy(config, params, part: Part) -> jax.Array:
  """Log-probabilities of all responses, `[X, Y]`."""
  rows = part.features.reshape(-1, part.features.shape[-1])
  scores = network(config).apply({"params": params}, rows).logits
  return jax.nn.log_softmax(part.reference + scores.reshape(part.reference.shape))


def _likelihood(chosen, rejected, reference_chosen, reference_rejected, *, beta, sft_weight):
  del rejected, reference_chosen, reference_rejected, beta, sft_weight
  return -chosen


def _mean_form(chosen, *others, beta, sft_weight):
  options = {"average": True, "baseline_lengths": jnp.ones_like(chosen)}  # A response is one token.
  return losses.rpo_loss(chosen, *others, beta=beta, sft_weight=sft_weight, **options)


LOSSES = {RPO: losses.rpo_loss, MEAN: _mean_form, SFT: _likelihood}


def preference_loss(config, objective, part: Part, beta, eta):
  """The engine's loss on comparisons of the part."""

  def loss(params, model_state, batch, key):
    del model_state, key
    seen = part._replace(comparisons=batch)
    pairs = *seen.compared(policy(config, params, part)), *seen.compared(part.reference)
    return training.LossOutput(objective(*pairs, beta=beta, sft_weight=eta))

  return loss


def train_policy(config, key, problem: Problem, setting, *, objective) -> dict:
  """Trains one policy: what it is worth at every evaluation."""
  beta = setting["beta"]

  def evaluate(trained):
    ours = [policy(config, trained.params, part) for part in problem]
    seen, held_out, test = problem
    chosen, rejected = (
      x - y for x, y in zip(seen.compared(ours[0]), seen.compared(seen.reference))
    )
    pairs = *held_out.compared(ours[1]), *held_out.compared(held_out.reference)
    return {
      GOLD: test.value(ours[2], test.gold),
      UNPENALIZED: test.value(ours[2], test.unpenalized),
      OUTSIDE: metrics.unsupported_mass(ours[2], test.supported, test.prompt_probs),
      DIVERGENCE: metrics.policy_divergence(ours[2], test.reference, test.prompt_probs),
      RISE: jnp.mean(chosen),
      MARGIN: jnp.mean(chosen - rejected),
      LOSS: jnp.mean(losses.dpo_loss(*pairs, beta=beta)),
    }

  comparisons = problem.train.comparisons
  first = start(config, key, problem.train.features.shape[-1])
  return train(
    key,
    network(config),
    preference_loss(config, objective, problem.train, beta, setting["eta"]),
    optax.adam(config.learning_rate),
    comparisons,
    num_steps=config.num_steps,
    batch_size=len(comparisons),
    start=first,
    evaluate=evaluate,
    eval_every=config.eval_every,
  ).scores
