"""Direct answers: products of two numbers, where the answer's probability is known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import classification, common
from experiments.alignment import pass_at_n_models as shared
from experiments.members import over_members
from jaxlab import data, losses, metrics, models, samplers, training
from jaxlab.data.reasoning import EOS_TOKEN


def direct_rows(config) -> tuple[data.MultiplicationBatch, ...]:
  """Training, validation and test problems."""
  num_judged = config.num_validation + config.num_test
  drawn = data.multiplication_dataset(
    jax.random.key(0), num_digits=config.num_digits, num_train=config.num_train, num_test=num_judged
  )
  validation, test = (
    jax.tree.map(lambda array, rows=rows: array[rows], drawn.test)
    for rows in (slice(config.num_validation), slice(config.num_validation, None))
  )
  return drawn.train, validation, test


def direct_decoder(config):
  """The decoder of products, with the length of its texts."""
  length = 4 * config.num_digits + 3
  decoder = models.decoder_config(
    vocab_size=14,
    hidden_size=config.hidden_size,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    max_positions=length,
  )
  return models.DecoderLM(decoder), length


def coverage_objective(model, num_samples):
  """The engine's loss: cross-entropy a token, weighted for N samples; N = 1 is cross-entropy."""

  def loss(params, model_state, batch, key):
    del key
    log_probs = shared.token_log_probs(model, params, batch.tokens)
    values = losses.coverage_weighted_nll(
      log_probs, batch.loss_mask, num_samples=num_samples, normalize_length=True
    )
    return training.LossOutput(values, model_state=model_state)

  return loss


def run_direct(config, context: common.Context) -> dict[str, dict]:
  """What every training N gives, all seeds: arrays `[seeds, ...]` by name."""
  rows = direct_rows(config)
  found = {}
  for num_samples in config.train_samples:
    found[num_samples] = context.cached(
      f"direct/trained for {num_samples}", _all_seeds, config, context, rows, float(num_samples)
    )
  return found


def _all_seeds(config, context, rows, num_samples) -> dict:
  keys = jax.random.split(context.key, context.seeds)
  one = functools.partial(_one_seed, config, *rows)
  return over_members(
    lambda member: one(*member), (keys, np.full(context.seeds, num_samples)), context.mesh
  )


def _one_seed(config, train, validation, test, key, num_samples) -> dict[str, jax.Array]:
  """Answers' log-probabilities over training, and what the last model says."""
  model, _ = direct_decoder(config)
  train_key, sample_key = jax.random.split(key)
  steps = config.num_train // config.batch_size * config.num_epochs
  temperatures = jnp.array(config.temperatures)

  def log_probs(params, rows):
    logits = model.apply({"params": params}, rows.tokens).logits

    def at(temperature):
      tokens = losses.causal_token_log_probs(logits / temperature, rows.tokens)
      return losses.sequence_log_prob(tokens, rows.loss_mask)

    return jax.lax.map(at, temperatures)

  def evaluate(trained):
    return {
      "validation": log_probs(trained.params, validation),
      "test": log_probs(trained.params, test),
    }

  trained = classification.train(
    train_key,
    model,
    coverage_objective(model, num_samples),
    shared.make_optimizer(config, steps),
    train,
    num_steps=steps,
    batch_size=config.batch_size,
    evaluate=evaluate,
    eval_every=config.num_train // config.batch_size * config.eval_epochs,
  )
  fns = samplers.flax_decode_fns(model, trained.params)
  prompt_length = 2 * config.num_digits + 2
  options = {"max_new_tokens": 2 * config.num_digits + 1, "eos_token_id": EOS_TOKEN}
  prompts, responses = jnp.split(test.tokens, [prompt_length], axis=1)
  greedy = samplers.generate(key, fns, prompts, test.prompt_lengths, temperature=0.0, **options)
  checked = config.num_checked

  def right(row):
    prompt, response, key = row
    lengths = jnp.array([prompt_length])
    drawn = samplers.generate_n(
      key, fns, prompt[None], lengths, num_samples=config.num_draws, **options
    )
    return jnp.all(drawn.tokens[0] == response, axis=-1)

  keys = jax.random.split(sample_key, checked)
  sampled = jax.lax.map(right, (prompts[:checked], responses[:checked], keys))
  return trained.scores | {
    "greedy log-probs": greedy.log_probs.sum(1),
    "greedy right": jnp.all(greedy.tokens == responses, axis=1),
    "sampled": metrics.coverage_curve(sampled, ks=config.test_samples),
  }


def direct_table(config, found) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
  """Rows of the table, and the curves and histograms of the figure."""
  at_one = config.temperatures.index(1.0)

  def curve(log_probs, num_samples):
    """pass@N in percent, `[seeds, evaluations, temperatures]`."""
    return shared.points(shared.pass_at_n(log_probs, float(num_samples)))

  rows, extras = {}, {}
  for trained_for, values in found.items():
    calibration = jax.vmap(metrics.greedy_calibration)(
      values["greedy log-probs"], values["greedy right"]
    )
    row = {f"pass@{n}": curve(values["test"], n)[:, -1, at_one] for n in config.test_samples}
    row["greedy accuracy"] = shared.points(calibration.accuracy)
    row["greedy confidence"] = shared.points(calibration.mean_confidence)
    row["over-confidence"] = shared.points(calibration.overconfidence)
    checked = shared.pass_at_n(
      values["test"][:, -1, at_one, : config.num_checked], float(config.test_samples[1])
    )
    row["sampled - exact"] = shared.points(values["sampled"][:, 1] - np.asarray(checked))
    rows[trained_label(trained_for)] = row
    extras[f"{trained_for}/curves"] = np.stack(
      [curve(values["test"], n)[..., at_one].mean(0) for n in config.test_samples]
    )
    extras[f"{trained_for}/confidences"] = np.exp(values["greedy log-probs"]).ravel()
  # The rival chooses on validation when to stop and how to sample; the method may do the same.
  for trained_for in (1, config.judged_samples):
    stopped, tempered = {}, {}
    for n in config.test_samples:
      validation, test = (curve(found[trained_for][split], n) for split in ("validation", "test"))
      stopped[f"pass@{n}"] = shared.at_best(validation[..., at_one], test[..., at_one])
      flat = [x.reshape(len(x), -1) for x in (validation, test)]
      tempered[f"pass@{n}"] = shared.at_best(*flat)
      if trained_for == 1:
        best = validation[..., at_one].argmax(1)
        extras[f"epochs/{n}"] = config.eval_epochs * (1 + best)
    rows[f"{trained_label(trained_for)}, best epoch"] = stopped
    rows[f"{trained_label(trained_for)}, best epoch and temperature"] = tempered
  return rows, extras


def trained_label(num_samples: int) -> str:
  """Name of a training N in the table."""
  return "cross-entropy" if num_samples == 1 else f"trained for N = {num_samples}"
