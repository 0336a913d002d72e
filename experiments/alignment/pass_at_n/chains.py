"""Chains of steps: a whole proof is sampled N times, or each of its steps is tried k times."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alignment.pass_at_n import products
from experiments.alignment.pass_at_n.products import CROSS_ENTROPY, LITTLE_DECAY, METHODS, pass_at
from experiments.kit.sweep import choose, grid
from experiments.kit.train import adamw_cosine, train
from jaxlab import data, losses, samplers, training
from jaxlab.data.reasoning import EOS_TOKEN
from jaxlab.experiment import Results

PROOFS, SOLVED = "pass@N of proofs", "solved"
UNION_OF_N = "union of several N"
UNION_OF_RUNS = "union of runs of cross-entropy"


def step_ids(chains: data.ModularChainConfig) -> np.ndarray:
  """Which step a token belongs to, the end to the last one; -1 for the problem."""
  num_steps = chains.num_terms - 1
  per_step = chains.response_length // num_steps
  places = np.arange(-chains.prompt_length, chains.response_length)
  return np.where(places < 0, -1, np.minimum(places // per_step, num_steps - 1))


def train_on_chains(config, key, splits, setting, *, rollouts: bool) -> dict[str, jax.Array]:
  """Trains on texts that are used again and again, and tests on fresh problems meanwhile.

  Args:
    config: of the experiment.
    key: of the problems and of training.
    splits: nothing.
    setting: traced: `num_samples`, of a step or with `rollouts` of a whole text, and `run`, by
      which the same problems are learned from other parameters in another order.
    rollouts: whether the share of rollouts that reach a text's answer weights it, or the
      probabilities of its steps do.

  Returns:
    `log_probs` of the right steps, `[evaluations, temperatures, problems, steps]`.
  """
  del splits
  # Texts without errors: a model errs where it has not learned enough.
  sizes = {"modulus": config.modulus, "num_terms": config.num_terms}
  chains = data.ModularChainConfig(**sizes, misconception_rate=0.0, noise=0.0)
  ids, num_steps = step_ids(chains), chains.num_terms - 1
  sizes = {"vocab_size": chains.vocab_size, "length": len(ids)}
  model = products.decoder(config, config.chain_decoder, **sizes)
  train_key, fresh_key, run_key = jax.random.split(key, 3)
  draw = functools.partial(data.modular_chain_batch, config=chains)
  rows = draw(train_key, batch_size=config.num_chains)
  fresh = draw(fresh_key, batch_size=config.num_chain_validation + config.num_chain_test)

  def loss(params, model_state, batch, key):
    del model_state
    (rows,), options = batch, {"num_samples": setting["num_samples"]}
    logits = model.apply({"params": params}, rows.tokens).logits
    log_probs = losses.causal_token_log_probs(logits, rows.tokens)
    if rollouts:
      success = success_rate(config, chains, model, jax.lax.stop_gradient(params), rows, key)
      values = losses.estimated_coverage_nll(log_probs, rows.loss_mask, success, **options)
    else:
      steps = jnp.broadcast_to(ids, log_probs.shape)
      values = losses.stepwise_coverage_loss(log_probs, steps, num_steps=num_steps, **options)
      values = values.sum(-1)
    return training.LossOutput(values)

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
  return {"log_probs": train(run_key, model, loss, adamw, (rows,), **sizes, **options).scores}


def success_rate(config, chains, model, params, rows, key) -> jax.Array:
  """The share of sampled chains that end in the answer, by problem."""
  fns = samplers.flax_decode_fns(model, params)
  options = {"max_new_tokens": chains.response_length, "eos_token_id": EOS_TOKEN}
  prompts, count = rows.tokens[:, : chains.prompt_length], config.num_rollouts
  options["num_samples"] = count
  drawn = samplers.generate_n(key, fns, prompts, rows.prompt_lengths, **options)
  parsed = data.parse_chain(chains, drawn.tokens.reshape(-1, chains.response_length))
  return (parsed.answer.reshape(-1, count) == rows.answers[:, None]).mean(1)


def measure(config, context, results: Results) -> None:
  """Adds pass@N of whole proofs, and what a search that verifies every step solves."""
  runs = 1 + len(config.step_samples)  # As many as there are N: the unions are of equal size.
  numbers = [(1, run) for run in range(runs)] + [(n, 0) for n in config.step_samples]
  by_step = fit_all(config, context, "chains/by step", numbers, rollouts=False)
  numbers_of_texts = [(config.chain_samples, 0)]
  by_rollouts = fit_all(config, context, "chains/by rollouts", numbers_of_texts, rollouts=True)
  for method, log_probs in zip(METHODS.values(), (by_step[:, 0], by_rollouts[:, 0])):
    for n in (1, config.chain_samples):
      best = chosen(config, pass_at(log_probs.sum(-1), n))
      best = {PROOFS: best.pop("test").mean(-1), **best}
      results.add({method: best}, problem="chains", test_samples=n)

  def solve(log_probs, tries):
    return chosen(config, 100 * np.prod(pass_at(log_probs, tries) / 100, axis=-1))["test"]

  def union(solved):
    return {SOLVED: 100 * (1 - np.prod(1 - np.stack(solved) / 100, axis=0)).mean(-1)}

  tries = config.tries
  solved = [solve(by_step[:, i], tries) for i in range(len(numbers))]
  for (n, run), of_arm in zip(numbers, solved):
    where = {"train_samples": n, "run": run, "tries": tries}
    results.add({METHODS[n > 1]: union([of_arm])}, problem="steps", **where)
  # At as many tries as all members of a union have.
  rows = {
    CROSS_ENTROPY: union([solve(by_step[:, 0], runs * tries)]),
    UNION_OF_RUNS: union(solved[:runs]),
    UNION_OF_N: union([solved[0], *solved[runs:]]),
  }
  results.add(rows, problem="steps", tries=runs * tries)


def fit_all(config, context, stage: str, numbers, *, rollouts: bool) -> np.ndarray:
  """Trains for every (N, run), as a stage; `[seeds, settings, ...]`."""
  fit = functools.partial(train_on_chains, config, rollouts=rollouts)
  settings = [{"num_samples": float(n), "run": run} for n, run in numbers]
  return context.cached(stage, grid, context, fit, None, settings)["log_probs"]


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
