"""Products of two numbers: the probability of the answer, and with it pass@N, is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.sweep import choose
from experiments.kit.train import adamw_cosine, train
from jaxlab import data, losses, metrics, models, samplers, training
from jaxlab.data.reasoning import EOS_TOKEN

METHODS = {False: "cross-entropy", True: "coverage loss"}  # By whether N exceeds 1.


def problems(config) -> tuple[data.MultiplicationBatch, ...]:
  """Training, validation and test problems."""
  num = config.num_validation
  sizes = {"num_train": config.num_train, "num_test": num + config.num_test}
  drawn = data.multiplication_dataset(jax.random.key(0), num_digits=config.num_digits, **sizes)
  validation, test = (
    jax.tree.map(lambda array, rows=rows: array[rows], drawn.test)
    for rows in (slice(num), slice(num, None))
  )
  return drawn.train, validation, test


def decoder(config) -> models.DecoderLM:
  """The decoder of products."""
  return make_decoder(config, 14, 4 * config.num_digits + 3, config.hidden_size, config.num_layers)


def make_decoder(config, vocab_size: int, length: int, hidden_size: int, num_layers: int):
  """A decoder of texts of one length."""
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  architecture = models.decoder_config(vocab_size=vocab_size, max_positions=length, **sizes)
  return models.DecoderLM(architecture)


def optimizer(config, num_steps: int):
  """AdamW on a cosine to 0."""
  return adamw_cosine(config.learning_rate, num_steps, weight_decay=config.weight_decay)


def token_log_probs(model: models.DecoderLM, params, tokens) -> jax.Array:
  """Log-probability of every token given those before it, `[b, T]`, 0 for the first."""
  return losses.causal_token_log_probs(model.apply({"params": params}, tokens).logits, tokens)


def coverage_objective(model: models.DecoderLM, num_samples):
  """The engine's loss: cross-entropy per token, weighted for N samples; N = 1 is cross-entropy."""

  def loss(params, model_state, batch, key):
    del key
    log_probs = token_log_probs(model, params, batch.tokens)
    values = losses.coverage_weighted_nll(
      log_probs, batch.loss_mask, num_samples=num_samples, normalize_length=True
    )
    return training.LossOutput(values, model_state=model_state)

  return loss


def exact_pass_at_n(log_probs, num_samples: float) -> jax.Array:
  """Mean probability that one of N samples is right, where each is right with e^log_probs."""
  return jnp.mean(jnp.exp(-losses.coverage_loss(log_probs, num_samples=num_samples)), axis=-1)


def train_and_evaluate(config, key, num_samples) -> dict[str, jax.Array]:
  """Trains for N samples: pass@N over training, and what the last model says.

  "validation" and "test" are pass@N `[evaluations, temperatures, test_samples]`, the other names
  quantities of the last model.
  """
  train_rows, validation, test = problems(config)
  model = decoder(config)
  train_key, sample_key = jax.random.split(key)
  epoch = config.num_train // config.batch_size

  def log_probs(params, rows):
    logits = model.apply({"params": params}, rows.tokens).logits

    def at(temperature):
      tokens = losses.causal_token_log_probs(logits / temperature, rows.tokens)
      return losses.sequence_log_prob(tokens, rows.loss_mask)

    return jax.lax.map(at, jnp.array(config.temperatures))

  judged = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), validation, test)

  def evaluate(trained):
    def passes(values):
      return jnp.stack([exact_pass_at_n(values, float(n)) for n in config.test_samples], axis=-1)

    parts = jnp.split(log_probs(trained.params, judged), [config.num_validation], axis=1)
    checked = parts[1][config.temperatures.index(1.0), : config.num_checked]
    return {"validation": passes(parts[0]), "test": passes(parts[1]), "checked": checked}

  trained = train(
    train_key,
    model,
    coverage_objective(model, num_samples),
    optimizer(config, epoch * config.num_epochs),
    train_rows,
    num_steps=epoch * config.num_epochs,
    batch_size=config.batch_size,
    evaluate=evaluate,
    eval_every=epoch * config.eval_epochs,
  )
  fns = samplers.flax_decode_fns(model, trained.params)
  options = {"max_new_tokens": 2 * config.num_digits + 1, "eos_token_id": EOS_TOKEN}
  prompts, responses = jnp.split(test.tokens, [2 * config.num_digits + 2], axis=1)
  greedy = samplers.generate(key, fns, prompts, test.prompt_lengths, temperature=0.0, **options)
  right = jnp.all(greedy.tokens == responses, axis=1)
  calibration = metrics.greedy_calibration(greedy.log_probs.sum(1), right)
  generate = functools.partial(samplers.generate_n, **options)

  def sample(row):
    key, prompt, length, response = jax.tree.map(lambda x: x[None], row)
    drawn = generate(key[0], fns, prompt, length, num_samples=config.num_draws)
    return jnp.all(drawn.tokens[0] == response, axis=-1)

  # That the probability is the share of samples is checked on some problems.
  num, n = config.num_checked, config.test_samples[1]
  rows = jax.tree.map(lambda x: x[:num], (prompts, test.prompt_lengths, responses))
  sampled = jax.lax.map(sample, (jax.random.split(sample_key, num), *rows))
  sampled = metrics.coverage_curve(sampled, ks=(n,))[0]
  exact = exact_pass_at_n(trained.scores.pop("checked")[-1], float(n))
  return trained.scores | {
    "greedy accuracy": calibration.accuracy,
    "greedy confidence": calibration.mean_confidence,
    "overconfidence": calibration.overconfidence,
    "sampled less exact pass@N": sampled - exact,
  }


def add_records(config, results, measured: dict[int, dict[str, np.ndarray]]) -> None:
  """Adds what `train_and_evaluate` gave by training N, `[seeds, ...]`, in percent.

  Cross-entropy and training for `judged_samples` also choose the epoch, and epoch and temperature,
  on validation problems.
  """
  at_one, num_temperatures = config.temperatures.index(1.0), len(config.temperatures)
  epochs = range(config.eval_epochs, config.num_epochs + 1, config.eval_epochs)
  choices = {"epoch": [at_one], "epoch and temperature": [*range(num_temperatures)]}
  for m, values in measured.items():
    values = {name: 100 * value for name, value in values.items()}
    validation, test = values.pop("validation"), values.pop("test")
    method = METHODS[m > 1]
    results.add({method: values}, problem="products", train_samples=m)
    for i, n in enumerate(config.test_samples):
      where = {"problem": "products", "train_samples": m, "test_samples": n}
      results.add({method: {"pass@N": test[:, -1, at_one, i]}}, **where, chosen="nothing")
      for j, epoch in enumerate(epochs):
        results.add({method: {"pass@N by epoch": test[:, j, at_one, i]}}, **where, epoch=epoch)
      for chosen, columns in choices.items() if m in (1, config.judged_samples) else ():
        temperatures = [config.temperatures[column] for column in columns]
        settings = [{"epoch": e, "temperature": t} for e in epochs for t in temperatures]
        scores = (values[:, :, columns, i] for values in (validation, test))
        add_chosen(results, "pass@N", *scores, settings, **where, chosen=chosen)


def add_chosen(results, quantity: str, validation, test, settings, **where) -> None:
  """Adds the test values `[seeds, ...]` of the settings that validation prefers per seed."""
  scores = {f"validation/{quantity}": validation, quantity: test}
  scores = {name: values.reshape(len(values), -1) for name, values in scores.items()}
  best = choose(scores, settings, select=f"validation/{quantity}")
  results.add({METHODS[where["train_samples"] > 1]: best}, **where)
