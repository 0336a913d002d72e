"""Chains of steps: a whole proof is sampled N times, or each of its steps is tried k times."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alignment.pass_at_n import products
from experiments.alignment.pass_at_n.products import CROSS_ENTROPY, LITTLE_DECAY, METHODS, pass_at
from experiments.kit.chains import step_ids
from experiments.kit.sweep import choose, grid
from experiments.kit.train import adamw_cosine, train
from jaxlab import data, losses, training
from jaxlab.experiment import Results

PROOFS, SOLVED = "pass@N of proofs", "solved"
UNION_OF_N = "union of several N"
UNION_OF_RUNS = "union of runs of cross-entropy"


def train_on_chains(config, key, splits, setting) -> dict[str, jax.Array]:
  """Trains on texts with errors, again and again, and tests on fresh problems without.

  Args:
    config: of the experiment.
    key: of the problems and of training.
    splits: nothing.
    setting: traced: `num_samples` of a step, or of a whole text where `whole` is 1; and `run`, by
      which the same problems are learned from other parameters in another order.

  Returns:
    `log_probs` of the right steps, `[evaluations, temperatures, problems, steps]`.
  """
  del splits
  # Some entries of the table are mostly shown wrong: the right step is rarely the likeliest.
  options = {"misconception_rate": config.misconceptions, "noise": 0.0}
  chains = data.ModularChainConfig(config.modulus, config.num_terms, **options)
  ids, num_steps = step_ids(chains), chains.num_terms - 1
  sizes = {"vocab_size": chains.vocab_size, "length": len(ids)}
  model = products.decoder(config, config.chain_decoder, **sizes)
  train_key, fresh_key, run_key = jax.random.split(key, 3)
  draw = functools.partial(data.modular_chain_batch, config=chains)
  rows = draw(train_key, batch_size=config.num_chains)
  num_fresh = config.num_chain_validation + config.num_chain_test
  fresh = draw(fresh_key, batch_size=num_fresh, clean=True)
  # The probability of a proof is that of one long step.
  taught = jnp.where(setting["whole"], np.minimum(ids, 0), ids)

  def loss(params, model_state, batch, key):
    del model_state, key
    logits = model.apply({"params": params}, batch[0].tokens).logits
    log_probs = losses.causal_token_log_probs(logits, batch[0].tokens)
    options = {"num_samples": setting["num_samples"], "num_steps": num_steps}
    steps = jnp.broadcast_to(taught, log_probs.shape)
    return training.LossOutput(losses.stepwise_coverage_loss(log_probs, steps, **options).sum(-1))

  def evaluate(trained):
    logits = model.apply({"params": trained.params}, fresh.tokens).logits

    def at(temperature):
      log_probs = losses.causal_token_log_probs(logits / temperature, fresh.tokens)
      steps = jnp.broadcast_to(ids, log_probs.shape)
      return losses.segment_log_probs(log_probs, steps, num_segments=num_steps)

    return jax.lax.map(at, jnp.array(config.chain_temperatures))

  sizes = {"num_steps": config.chain_updates, "batch_size": config.chain_batch}
  rate, run_key = config.chain_learning_rate, jax.random.fold_in(run_key, setting["run"])
  adamw = adamw_cosine(rate, config.chain_updates, weight_decay=LITTLE_DECAY)
  options = {"evaluate": evaluate, "eval_every": config.chain_eval_updates}
  trained = train(run_key, model, loss, adamw, (rows,), **sizes, **options)
  return {"log_probs": trained.scores, "bad_step": trained.bad_step}


def measure(config, context, results: Results) -> None:
  """Adds pass@N of whole proofs, and what a search that verifies every step solves."""
  runs = 1 + len(config.step_samples)  # As many as there are N: the unions are of equal size.
  arms = [(1, run) for run in range(runs)] + [(n, 0) for n in config.step_samples]
  settings = [{"num_samples": float(n), "run": run, "whole": 0} for n, run in arms]
  settings.append({"num_samples": float(config.chain_samples), "run": 0, "whole": 1})
  fit = functools.partial(train_on_chains, config)
  log_probs = grid(context, "chains", fit, None, settings)["log_probs"]
  for method, arm in zip(METHODS.values(), (0, -1)):
    for n in (1, config.chain_samples):
      best = chosen(config, pass_at(log_probs[:, arm].sum(-1), n))
      best = {PROOFS: best.pop("test").mean(-1), **best}
      results.add({method: best}, problem="chains", test_samples=n)

  def solve(arm, tries):
    return chosen(config, 100 * np.prod(pass_at(log_probs[:, arm], tries) / 100, axis=-1))["test"]

  def union(solved):
    return {SOLVED: 100 * (1 - np.prod(1 - np.stack(solved) / 100, axis=0)).mean(-1)}

  tries = config.tries
  solved = [solve(i, tries) for i in range(len(arms))]
  for (n, run), of_arm in zip(arms, solved):
    where = {"train_samples": n, "run": run, "tries": tries}
    results.add({METHODS[n > 1]: union([of_arm])}, problem="steps", **where)
  # At as many tries as all members of a union have.
  rows = {
    CROSS_ENTROPY: union([solve(0, runs * tries)]),
    UNION_OF_RUNS: union(solved[:runs]),
    UNION_OF_N: union([solved[0], *solved[runs:]]),
  }
  results.add(rows, problem="steps", tries=runs * tries)


def chosen(config, chances: np.ndarray) -> dict[str, np.ndarray]:
  """Chances of `test` problems at the update and the temperature that validation prefers.

  Args:
    config: of the experiment.
    chances: `[seeds, evaluations, temperatures, problems]`.
  """
  every = config.chain_eval_updates
  settings = [
    {"update": update, "temperature": temperature}
    for update in range(every, config.chain_updates + 1, every)
    for temperature in config.chain_temperatures
  ]
  chances = chances.reshape(len(chances), len(settings), -1)
  validation, test = np.split(chances, [config.num_chain_validation], axis=-1)
  scores = {"validation": validation.mean(-1), "test": test}
  best = choose(scores, settings, select="validation")
  best.pop("validation")
  return best
