"""Products of two numbers: the probability of the answer, and with it pass@N, is exact."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.sweep import choose
from experiments.kit.train import adamw_cosine, train
from jaxlab import data, losses, metrics, models, samplers, training
from jaxlab.data.reasoning import EOS_TOKEN

METHODS = {False: "cross-entropy", True: "coverage loss"}  # By whether N exceeds 1.
WEIGHT_DECAY = 0.01  # Of AdamW.


def problems(config) -> tuple[data.MultiplicationBatch, data.MultiplicationBatch]:
  """Training problems; fresh ones, `[(validation, test), n]`."""
  sizes = {"num_train": config.num_train, "num_test": 2 * config.num_test}
  drawn = data.multiplication_dataset(jax.random.key(0), num_digits=config.num_digits, **sizes)
  return drawn.train, halves(drawn.test)


def halves(rows):
  """Rows as `[2, n, ...]`: those of validation, and those to test on."""
  return jax.tree.map(lambda array: array.reshape(2, -1, *array.shape[1:]), rows)


def decoder(config, size=None, *, vocab_size: int = 14, length: int | None = None):
  """A decoder of texts of one length, by default of products."""
  hidden_size, num_layers = size or config.decoder
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  length = length or 4 * config.num_digits + 3
  architecture = models.decoder_config(vocab_size=vocab_size, max_positions=length, **sizes)
  return models.DecoderLM(architecture)


def optimizer(config, num_steps: int):
  """AdamW on a cosine to 0."""
  return adamw_cosine(config.learning_rate, num_steps, weight_decay=WEIGHT_DECAY)


def objective(model: models.DecoderLM, values_fn):
  """The engine's loss on batches (rows, *more): `values_fn(token_log_probs, rows, *more)`."""

  def loss(params, model_state, batch, key):
    del model_state, key
    tokens = batch[0].tokens
    logits = model.apply({"params": params}, tokens).logits
    return training.LossOutput(values_fn(losses.causal_token_log_probs(logits, tokens), *batch))

  return loss


def coverage_objective(model: models.DecoderLM, num_samples):
  """Cross-entropy per token, weighted for N samples; N = 1 is cross-entropy."""

  def values(log_probs, rows):
    options = {"num_samples": num_samples, "normalize_length": True}
    return losses.coverage_weighted_nll(log_probs, rows.loss_mask, **options)

  return objective(model, values)


def exact_pass_at_n(log_probs, num_samples: float) -> jax.Array:
  """Mean probability that one of N samples is right, where each is right with e^log_probs."""
  return jnp.mean(jnp.exp(-losses.coverage_loss(log_probs, num_samples=num_samples)), axis=-1)


def train_and_evaluate(config, key, num_samples) -> dict[str, jax.Array]:
  """Trains for N samples: "pass@N" over training, and how confident the last model is.

  pass@N is `[evaluations, temperatures, (validation, test), samples]`.
  """
  train_rows, fresh = problems(config)
  model = decoder(config)
  epoch = config.num_train // config.batch_size
  num_steps = epoch * config.num_epochs

  def evaluate(trained):
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in (fresh.tokens, fresh.loss_mask))
    logits = model.apply({"params": trained.params}, tokens).logits

    def at(temperature):
      log_probs = losses.causal_token_log_probs(logits / temperature, tokens)
      values = halves(losses.sequence_log_prob(log_probs, mask))
      return jnp.stack([exact_pass_at_n(values, float(n)) for n in config.samples], axis=-1)

    return jax.lax.map(at, jnp.array(config.temperatures))

  trained = train(
    jax.random.split(key)[0],
    model,
    coverage_objective(model, num_samples),
    optimizer(config, num_steps),
    (train_rows,),
    num_steps=num_steps,
    batch_size=config.batch_size,
    evaluate=evaluate,
    eval_every=epoch * config.eval_epochs,
  )
  test = jax.tree.map(lambda array: array[1], fresh)
  prompts, responses = jnp.split(test.tokens, [2 * config.num_digits + 2], axis=1)
  fns = samplers.flax_decode_fns(model, trained.params)
  options = {"max_new_tokens": responses.shape[1], "eos_token_id": EOS_TOKEN, "temperature": 0.0}
  greedy = samplers.generate(key, fns, prompts, test.prompt_lengths, **options)
  right = jnp.all(greedy.tokens == responses, axis=1)
  calibration = metrics.greedy_calibration(greedy.log_probs.sum(1), right)
  return {
    "pass@N": trained.scores,
    "greedy accuracy": calibration.accuracy,
    "greedy confidence": calibration.mean_confidence,
    "overconfidence": calibration.overconfidence,
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
    splits = np.moveaxis(values.pop("pass@N"), -2, 0)
    method = METHODS[m > 1]
    results.add({method: values}, problem="products", train_samples=m)
    for i, n in enumerate(config.samples):
      where = {"problem": "products", "train_samples": m, "test_samples": n}
      by_epoch = splits[1, :, :, at_one, i]
      results.add({method: {"pass@N": by_epoch[:, -1]}}, **where, chosen="nothing")
      for epoch, value in zip(epochs, by_epoch.T):
        results.add({method: {"pass@N by epoch": value}}, **where, epoch=epoch)
      for chosen, columns in choices.items() if m in (1, config.judged_samples) else ():
        temperatures = [config.temperatures[column] for column in columns]
        settings = [{"epoch": e, "temperature": t} for e in epochs for t in temperatures]
        add_chosen(results, "pass@N", splits[..., columns, i], settings, **where, chosen=chosen)


def add_chosen(results, quantity: str, splits, settings, **where) -> None:
  """Adds the test values per seed of the settings that validation prefers; splits come first."""
  validation, test = splits.reshape(*splits.shape[:2], -1)
  scores = {f"validation/{quantity}": validation, quantity: test}
  best = choose(scores, settings, select=f"validation/{quantity}")
  results.add({METHODS[where["train_samples"] > 1]: best}, **where)
