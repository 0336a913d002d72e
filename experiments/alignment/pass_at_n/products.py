"""Products of two numbers: the probability of the answer, and with it pass@N, is exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import language_models
from experiments.kit.sweep import choose, grid
from experiments.kit.train import adamw_cosine, nan_unless, train
from jaxlab import data, losses, metrics, models, training
from jaxlab.experiment import Results

CROSS_ENTROPY, COVERAGE = "cross-entropy", "coverage loss"
METHODS = {False: CROSS_ENTROPY, True: COVERAGE}  # By whether N exceeds 1.
LITTLE_DECAY = 0.01  # Weight decay where it is no regularizer.
PLAIN = {"label_smoothing": 0.0, "dropout": 0.0, "weight_decay": LITTLE_DECAY}
TUNED, CHOSEN = "pass@N with a recipe", "chosen on validation"
RESAMPLINGS = 1000  # Of the bootstrap.


def problems(config, key) -> data.MultiplicationData:
  """Problems to train on, and for a test: those of validation, one, and those to test on.

  The one between them is left out, lest the two sides share a x b and b x a.
  """
  num_fresh = config.num_validation + 1 + config.num_test
  sizes = {"num_train": config.num_train, "num_test": num_fresh}
  return data.multiplication_dataset(key, num_digits=config.num_digits, **sizes)


def decoder(config, size=None, *, vocab_size: int = 14, length: int | None = None, dropout=0.0):
  """A decoder of texts of one length, by default of products."""
  hidden_size, num_layers = size or config.decoder
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  length = length or 4 * config.num_digits + 3
  return language_models.decoder(vocab_size, length, **sizes, dropout_rate=dropout)


def objective(model: models.DecoderLM, num_samples, label_smoothing=0.0):
  """Smoothed cross-entropy per token, weighted for N samples; N = 1 is cross-entropy."""

  def loss(params, model_state, batch, key):
    del model_state
    tokens, mask, *_ = batch[0]
    options = {"deterministic": False, "rngs": {"dropout": key}}
    logits = model.apply({"params": params}, tokens, **options).logits
    log_probs = losses.causal_token_log_probs(logits, tokens)
    answers = losses.sequence_log_prob(log_probs, mask)
    of_all = jnp.pad(jax.nn.log_softmax(logits).mean(-1)[:, :-1], ((0, 0), (1, 0)))
    smoothed = (1 - label_smoothing) * log_probs + label_smoothing * of_all
    values = -losses.sequence_log_prob(smoothed, mask, normalize_length=True)
    weights = losses.coverage_weight(answers, num_samples=num_samples)
    return training.LossOutput(weights * values)

  return loss


def train_and_evaluate(
  config, key, splits, setting, *, epochs, temperatures, dropout=0.0, every=None, greedy=False
) -> dict[str, jax.Array]:
  """Trains on problems of its own key, with the `epochs` of a cosine.

  Args:
    config: of the experiment.
    key: of the problems, the initial parameters and the order.
    splits: nothing.
    setting: traced: `num_samples`, `label_smoothing`, `weight_decay`.
    epochs: over the problems.
    temperatures: of sampling.
    dropout: its rate.
    every: epochs between evaluations; None evaluates at the end.
    greedy: whether to answer the test problems greedily, too.

  Returns:
    `log_probs` of right answers to fresh problems, `[evaluations, temperatures, fresh]`, and their
    `answers`; accuracy and overconfidence of greedy ones.
  """
  del splits
  data_key, train_key = jax.random.split(key)
  train_rows, fresh = problems(config, data_key)
  model = decoder(config, dropout=dropout)

  def evaluate(trained):
    logits = model.apply({"params": trained.params}, fresh.tokens).logits

    def at(temperature):
      log_probs = losses.causal_token_log_probs(logits / temperature, fresh.tokens)
      return losses.sequence_log_prob(log_probs, fresh.loss_mask)

    return jax.lax.map(at, jnp.array(temperatures))

  updates = config.num_train // config.batch_size  # In an epoch.
  sizes = {"num_steps": updates * epochs, "eval_every": updates * (every or epochs)}
  loss = objective(model, setting["num_samples"], setting["label_smoothing"])
  decay = setting["weight_decay"]
  adamw = adamw_cosine(config.learning_rate, sizes["num_steps"], weight_decay=decay)
  sizes["batch_size"] = config.batch_size
  trained = train(train_key, model, loss, adamw, (train_rows,), evaluate=evaluate, **sizes)
  measured = {"log_probs": trained.scores, "answers": fresh.answers, "bad_step": trained.bad_step}
  if greedy:
    test = jax.tree.map(lambda array: array[config.num_validation + 1 :], fresh)
    measured |= confidence(config, key, model, trained.params, test)
  return measured


def confidence(config, key, model, params, rows) -> dict[str, jax.Array]:
  """How often greedy answers are right, and by how much confidence exceeds that."""
  prompts, responses = jnp.split(rows.tokens, [2 * config.num_digits + 2], axis=1)
  options = {"num_samples": 1, "max_new_tokens": responses.shape[1], "temperature": 0.0}
  texts = language_models.respond(key, model, params, prompts, **options)
  right = jnp.all(texts.tokens[:, 0] == rows.tokens, axis=1)
  log_probs = texts.log_probs[:, 0, prompts.shape[1] :]
  calibration = metrics.greedy_calibration(log_probs.sum(1), right)
  overconfidence = calibration.overconfidence
  accuracy = nan_unless(jnp.isfinite(overconfidence), calibration.accuracy)
  return {"greedy accuracy": accuracy, "overconfidence": overconfidence}


def pass_at(log_probs, num_samples: float) -> np.ndarray:
  """Probability in percent that one of N samples is right, where each is right with e^log_probs."""
  failure = -np.expm1(np.minimum(np.asarray(log_probs, np.float64), 0.0))
  return 100 * (1 - failure**num_samples)


def fit_all(config, context, stage: str, samples, setting, **options) -> dict[str, np.ndarray]:
  """Trains every seed for every N, as a stage: name -> `[seeds, samples, ...]`."""
  rates = {name: value for name, value in setting.items() if name != "dropout"}
  settings = [rates | {"num_samples": float(n)} for n in samples]
  options["dropout"] = setting["dropout"]
  fit = functools.partial(train_and_evaluate, config, **options)
  return grid(context, stage, fit, None, settings)


def fit_both(config, context, stage: str, regularizer: str, epochs: int) -> dict[str, np.ndarray]:
  """Trains with both losses, and tests them at all temperatures."""
  options = {"epochs": epochs, "temperatures": config.temperatures}
  stage, samples = f"{stage}/{epochs} epochs, {regularizer}", (1, config.headline_samples)
  return fit_all(config, context, stage, samples, recipes(config)[regularizer], **options)


def recipes(config) -> dict[str, dict[str, float]]:
  """What the search tries beside the length and the temperature."""
  regularizers = ("label_smoothing", "dropout", "weight_decay")
  return {"none": PLAIN} | {name: PLAIN | {name: getattr(config, name)} for name in regularizers}


def search(config, context, results: Results) -> None:
  """Adds pass@N of both losses at all lengths, regularizers and temperatures.

  It is the mean over all fresh problems.
  """
  tried = itertools.product(config.search_epochs, recipes(config).items())
  for epochs, (regularizer, setting) in tried:
    log_probs = fit_both(config, context, "search", regularizer, epochs)["log_probs"]
    passes = pass_at(log_probs[:, :, 0], config.headline_samples).mean(-1)
    for i, method in enumerate(METHODS.values()):
      for j, temperature in enumerate(config.temperatures):
        where = {**setting, "epochs": epochs, "temperature": temperature}
        results.add({method: {TUNED: passes[:, i, j]}}, **where)


def measure(config, context, results: Results) -> None:
  """Adds trainings for every N without regularizer, and both losses with those that won."""
  options = {"epochs": config.num_epochs, "temperatures": (1.0,), "every": config.eval_epochs}
  trained = fit_all(config, context, "every N", config.samples, PLAIN, **options, greedy=True)
  add_every_n(config, results, trained)
  names, chances = config.chosen_regularizers, []
  for name in names:
    trained = fit_both(config, context, "chosen", name, config.chosen_epochs)
    chances.append(pass_at(trained["log_probs"][:, :, 0], config.headline_samples))
  chances, passes = np.stack(chances, axis=2), {}
  groups = {name: [i] for i, name in enumerate(names)} | {CHOSEN: [*range(len(names))]}
  for (i, method), (name, group) in itertools.product(enumerate(METHODS.values()), groups.items()):
    settings = [
      {"dropout": recipes(config)[names[j]]["dropout"], "temperature": temperature}
      for j in group
      for temperature in config.temperatures
    ]
    validation, test = parts(config, chances[:, i, group].reshape(context.seeds, len(settings), -1))
    scores = {"validation": validation.mean(-1), TUNED: test}
    best = choose(scores, settings, select="validation")
    best.pop("validation")
    passes[method, name] = best[TUNED]
    where = {"regularizer": name, "test_samples": config.headline_samples}
    results.add({method: best | {TUNED: best[TUNED].mean(-1)}}, problem="products", **where)
  _, answers = parts(config, trained["answers"][:, 0])
  ends = bootstrap(passes[COVERAGE, CHOSEN] - passes[CROSS_ENTROPY, CHOSEN], answers)
  interval = dict(zip(("low end of the bootstrap", "high end of the bootstrap"), ends))
  results.add({f"{COVERAGE} - {CROSS_ENTROPY}": interval}, problem="products")


def parts(config, values):
  """What belongs to validation problems, and to those to test on."""
  return values[..., : config.num_validation], values[..., config.num_validation + 1 :]


def add_every_n(config, results: Results, trained: dict[str, np.ndarray]) -> None:
  """Adds pass@N of all N over training, in percent, and how confident the last model is.

  With `chosen="epoch"`, at the epoch whose pass@N for `headline_samples` validation prefers.
  """
  ends = range(config.eval_epochs, config.num_epochs + 1, config.eval_epochs)
  settings = [{"epoch": epoch} for epoch in ends]
  for i, m in enumerate(config.samples):
    method, where = METHODS[m > 1], {"problem": "products", "train_samples": m}
    greedy = {name: 100 * trained[name][:, i] for name in ("greedy accuracy", "overconfidence")}
    results.add({method: greedy}, **where)
    validation, test = parts(config, trained["log_probs"][:, i, :, 0])
    scores = {"validation": pass_at(validation, config.headline_samples).mean(-1)}
    for n in config.samples:
      by_epoch = pass_at(test, n).mean(-1)
      best = choose(scores | {"pass@N": by_epoch}, settings, select="validation")
      best.pop("validation")
      results.add({method: best}, **where, test_samples=n, chosen="epoch")
      results.add({method: {"pass@N": by_epoch[:, -1]}}, **where, test_samples=n, chosen="nothing")
      for setting, value in zip(settings, by_epoch.T):
        results.add({method: {"pass@N by epoch": value}}, **where, test_samples=n, **setting)


def bootstrap(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """95% interval of the mean of `[seeds, problems]`: seeds and, within each, groups are drawn.

  Groups are problems of one answer, such as a x b and b x a.
  """
  rng, means = np.random.default_rng(0), []
  for of_seed, group in zip(values, groups):
    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    shares = np.full(len(counts), 1 / len(counts))
    weights = rng.multinomial(len(counts), shares, size=RESAMPLINGS)
    means.append(weights @ np.bincount(index, of_seed) / (weights @ counts))
  seeds = rng.integers(len(means), size=(RESAMPLINGS, len(means)))
  draws = np.stack(means)[seeds, rng.integers(RESAMPLINGS, size=seeds.shape)].mean(1)
  return np.percentile(draws, [2.5, 97.5])
