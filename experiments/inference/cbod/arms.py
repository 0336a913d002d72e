"""Decoders that have read their questions in one wording or in many, and how they are tested."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.inference.cbod import questions as ask
from experiments.inference.cbod.questions import Questions
from experiments.kit.language_models import decoder, fit_decoder
from experiments.kit.train import first_reaching
from jaxlab import metrics, models, training

ACCURACY, LOG_PROB = "accuracy", "log-probability of the right choice"
DROP, FLAGGED, P_VALUE, EXACT = "drop", "flagged", "p-value", "exact p-value"
Z_LOG_PROB, Z_PAIRED, Z_UNPAIRED = "z of the log-probability", "z, paired", "z, unpaired"
PARTS = "synonyms", "templates", "fillers"  # Of what is put in other words.
OTHER_ORDER = "other order"
_ROWS = 500  # Questions at a time.


def network(config) -> models.DecoderLM:
  """The decoder of questions."""
  hidden_size, num_layers = config.decoder
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  vocab_size = ask.first_value(config) + config.num_values
  return decoder(vocab_size, ask.row_length(config), **sizes)


def value_logits(config, params, tokens) -> jax.Array:
  """Scores of the values behind the answer mark, `[n, values]`."""
  hidden = network(config).apply({"params": params}, tokens, return_hidden=True).hidden
  place = jnp.argmax(tokens == ask.ANSWER_MARK, axis=1)[:, None, None]
  first = ask.first_value(config)
  table = params["embed"]["embedding"][first : first + config.num_values]
  return jnp.take_along_axis(hidden, place, axis=1)[:, 0] @ table.T


def answer_loss(config):
  """The engine's loss of batches `Questions`: cross-entropy of the right value."""

  def loss(params, model_state, batch, key):
    del model_state, key
    log_probs = jax.nn.log_softmax(value_logits(config, params, batch.tokens))
    right = jnp.take_along_axis(log_probs, batch.answers[:, None], axis=1)[:, 0]
    return training.LossOutput(-right)

  return loss


def choose(config, params, questions: Questions) -> tuple[jax.Array, jax.Array]:
  """Which questions are answered rightly among their choices, and the log-probability of that."""

  def of_row(row):
    logits = value_logits(config, params, row.tokens[None])[0][row.choices]
    log_probs = jax.nn.log_softmax(logits)
    is_right = row.choices == row.answers
    right = jnp.sum(jnp.where(is_right, log_probs, 0))
    return is_right[jnp.argmax(logits)], right

  size = min(_ROWS, len(questions.answers))
  return jax.lax.map(of_row, questions, batch_size=size)


def names_of_sets(config) -> list[str]:
  """What `test_sets` gives, in order."""
  names = [f"strength {x:g}" for x in config.strengths]
  names += [OTHER_ORDER, f"{OTHER_ORDER}, strength 1"]
  return names + [f"{part} alone" for part in PARTS]


def test_sets(config, key, table, benchmark: Questions) -> Questions:
  """The benchmark in other words at all strengths, in other orders, in other words of one kind.

  The strengths share their draws as far as they go; all models see the same questions.

  Returns:
    `Questions` with a leading axis of sets, as `names_of_sets` has them.
  """
  fresh_key, word_key = jax.random.split(key)
  number = len(benchmark.answers)
  fresh = ask.ask(config, fresh_key, table, jnp.arange(number))
  full, stack = jnp.ones(number), lambda *x: jnp.stack(x)
  sets = jax.tree.map(stack, *[benchmark] * len(config.strengths), fresh, fresh)
  strengths = jnp.array([*config.strengths, 0.0, 1.0])
  sets = jax.lax.map(lambda x: ask.reword(config, word_key, x[0], full * x[1]), (sets, strengths))
  alone = [ask.reword(config, word_key, benchmark, full, (part,)) for part in PARTS]
  return jax.tree.map(lambda x, *y: jnp.concatenate([x, jnp.stack(y)]), sets, *alone)


def measure(config, key, seed, setting) -> dict[str, Any]:
  """Trains a model until it answers validation questions well enough, and tests it.

  Args:
    config: of the experiment.
    key: random key; models of a seed share table, benchmark, tests, initialization.
    seed: its number; the key has it.
    setting: as for `draw_training`.

  Returns:
    Name -> what was measured; of tests, stacked over the sets of `test_sets`; of `early`, over
    earlier checkpoints and the two ends of the strengths.
  """
  del seed
  keys = jax.random.split(key, 5)
  table = ask.draw_table(config, keys[0])
  benchmark = ask.ask(config, keys[1], table, jnp.arange(table.size))
  facts = jax.random.randint(keys[2], (config.num_validation,), 0, table.size)
  validation = ask.ask(config, jax.random.fold_in(keys[2], 1), table, facts)
  every = config.num_steps // config.num_evaluations

  def draw(key, num):
    return ask.draw_training(config, key, num, table, benchmark, setting)

  def evaluate(now):
    return jnp.mean(choose(config, now.params, validation)[0]), now.params

  trained = fit_decoder(
    keys[3],
    network(config),
    draw,
    num_steps=config.num_steps,
    batch_size=config.questions,
    learning_rate=config.learning_rate,
    loss_fn=answer_loss(config),
    evaluate=evaluate,
    eval_every=every,
  )
  reached, params = trained.scores
  stops = first_reaching(reached, jnp.array(config.enough))
  sets = test_sets(config, keys[4], table, benchmark)
  right_values = jnp.broadcast_to(benchmark.answers, sets.answers.shape)
  solved = jax.lax.map(lambda x: ask.solve(config, table, x), sets.tokens) == right_values
  names = names_of_sets(config)
  num_sets, ends = len(names), [names.index(f"strength {x:g}") for x in (0.0, 1.0)]
  # All sets where training ends, and two of them before.
  places = jnp.concatenate([jnp.full(num_sets, stops[-1]), jnp.repeat(stops[:-1], 2)])
  tested = jnp.array([*range(num_sets), *ends * (len(stops) - 1)])

  def test(pair):
    now = jax.tree.map(lambda x: x[pair[0]], params)
    return choose(config, now, jax.tree.map(lambda x: x[pair[1]], sets))

  right, log_probs = jax.lax.map(test, (places, tested))
  right, early = right[:num_sets], right[num_sets:]
  log_probs, ends = log_probs[:num_sets], jnp.array(ends)
  read = (stops[-1] + 1) * every * config.questions
  return {
    ACCURACY: jnp.mean(right, axis=1),
    LOG_PROB: jnp.mean(log_probs, axis=1),
    "early": jnp.mean(early, axis=1).reshape(-1, 2),
    "updates": (stops[-1] + 1) * every,
    "validation accuracy": reached[stops[-1]],
    "solved": jnp.mean(solved),
    "rarest word": ask.RAREST * setting["share"] * read,
    "readings of leaked items": setting["leaked"] * read / table.size,
    "by update": reached,
    **detect(right[ends], log_probs[ends]),
    "bad_step": trained.bad_step,
  }


def detect(right, log_probs) -> dict[str, jax.Array]:
  """What tests say of a model before and after other words, `[2, n]`."""
  test = metrics.benchmark_overfit_test(right[0], right[1])
  paired = metrics.mcnemar_test(right[0], right[1])
  exact = metrics.mcnemar_test(right[0], right[1], exact=True)
  fall, size = log_probs[0] - log_probs[1], right.shape[1]
  share = jnp.mean(right.astype(jnp.float32))
  deviation = jnp.sqrt(2 * share * (1 - share) / size)
  sign = jnp.sign(test.difference)
  return {
    DROP: test.difference,
    "relative drop": test.relative_difference,
    FLAGGED: test.overfit.astype(jnp.float32),
    P_VALUE: test.p_value,
    EXACT: exact.p_value,
    Z_PAIRED: sign * jnp.sqrt(paired.statistic),
    Z_LOG_PROB: jnp.mean(fall) / (jnp.std(fall) / jnp.sqrt(size) + 1e-9),
    Z_UNPAIRED: test.difference / (deviation + 1e-9),
  }
