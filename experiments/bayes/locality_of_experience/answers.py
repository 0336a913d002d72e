"""What a language model of texts about a net answers: at once, and after steps of reasoning."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bayes.locality_of_experience.nets import Questions, Steps
from experiments.kit.language_models import decoder, fit_decoder
from jaxlab import data, losses, metrics, models, samplers, training

DIRECT, FREE, SCAFFOLDED, NEGATIVE = "direct", "free", "scaffolded", "negative scaffolded"
ESTIMATORS = DIRECT, FREE, SCAFFOLDED, NEGATIVE
AVERAGED, MARGINAL = "direct, after a random variable", "marginal"
EXACT, EXACT_DRAWS = "exact scaffold", "exact scaffold, draws"
REACHED, SEPARATE = "texts that reach the target", "traces that separate"
STARTED, NUMBER = "traces with a variable", "variables in a trace"
MSE, TO_MARGINAL, OF_NEIGHBORS = "MSE", "MSE to the marginal", "MSE of neighbors"


def network(config) -> models.DecoderLM:
  """The decoder; positions are learned."""
  sizes = {"hidden_size": config.decoder[0], "num_layers": config.decoder[1]}
  sizes |= {"num_heads": config.num_heads, "family": "gpt2"}
  return decoder(4 + config.num_variables, config.row_length, unstacked=True, **sizes)


def packed_loss(model: models.DecoderLM):
  """The engine's loss on batches (rows of texts,): a text does not see the others of its row."""

  def loss(params, model_state, batch, key):
    del model_state, key
    tokens = batch[0].astype(jnp.int32)
    segments = jnp.cumsum(tokens == 1, axis=1)  # Every text begins with a 1.
    logits = model.apply({"params": params}, tokens, segment_ids=segments).logits
    return training.LossOutput(-losses.causal_token_log_probs(logits, tokens), tokens > 1)

  return loss


def learn(config, key: chex.PRNGKey, inputs: tuple[chex.Array, chex.Numeric]) -> dict[str, Any]:
  """Trains on rows of texts, each seen once, with a learning rate: the parameters and a loss."""
  texts, rate = inputs
  model = network(config)
  loss_fn = packed_loss(model)
  sizes = {"num_steps": config.num_steps, "batch_size": config.rows_per_update}
  trained = fit_decoder(key, model, (texts,), learning_rate=rate, loss_fn=loss_fn, **sizes)
  scored = loss_fn(trained.params, {}, (texts[: config.num_scored],), key)
  loss = jnp.mean(scored.values, where=scored.weights)
  return {"params": trained.params, "loss": loss, "bad_step": trained.bad_step}


def evaluate(
  config,
  key: chex.PRNGKey,
  params: chex.ArrayTree,
  questions: Questions,
  steps: Steps,
  neighbors: Questions,
) -> dict[str, Any]:
  """Answers questions in all ways, and those about neighbors at once.

  Gives `answers`, estimator -> probabilities `[q]`; `errors`, estimator -> quantity -> value; and
  the `traces` of free texts.
  """
  size, asked = {"num_variables": config.num_variables}, questions[:3]
  draws = size | {"num_samples": config.num_samples}
  fns = samplers.flax_decode_fns(network(config), params)
  keys = jax.random.split(key, 4)
  free = samplers.free_estimate(keys[0], fns, *asked, **draws)
  after = samplers.scaffolded_estimate
  repeated = (jnp.repeat(x, config.num_samples) for x in asked)
  single = after(keys[3], fns, *repeated, steps.others.reshape(-1, 1), num_samples=1, **size)
  answers = {
    DIRECT: samplers.direct_estimate(fns, *asked, **size),
    FREE: free.prob,
    SCAFFOLDED: after(keys[1], fns, *asked, steps.scaffolds, **draws),
    NEGATIVE: after(keys[2], fns, *asked, steps.negatives, **draws),
    AVERAGED: jnp.mean(single.reshape(-1, config.num_samples), axis=1),
    MARGINAL: questions.marginals,
    EXACT: steps.chained,
  }
  errors = {row: errors_of(x, questions) for row, x in answers.items()}
  added = jnp.mean(steps.variances, where=questions.used) / config.num_samples
  errors[EXACT_DRAWS] = {MSE: errors[EXACT][MSE] + added}
  near = samplers.direct_estimate(fns, *neighbors[:3], **size)
  errors[DIRECT][OF_NEIGHBORS] = errors_of(near, neighbors)[MSE]
  return {"answers": answers, "errors": errors, "traces": free.traces}


def errors_of(answers: chex.Array, questions: Questions) -> dict[str, jax.Array]:
  """Mean squared distances from the truth and from the marginals, of the questions that count."""
  truths = (jnp.where(questions.used, x, answers) for x in (questions.probs, questions.marginals))
  share = jnp.mean(questions.used.astype(jnp.float32))
  return {
    name: error / share
    for name, error in zip((MSE, TO_MARGINAL), metrics.conditional_errors(answers, *truths))
  }


def describe_traces(
  parents: np.ndarray, questions: Questions, traces: np.ndarray
) -> dict[str, float]:
  """What is written between condition and target in free texts, `[q, num_samples, N]`.

  Gives the share of texts that reached the target; and of these the share whose variables separate
  the two, the share with any variable, and the mean number of variables, NaN if none did.
  """
  known, rows, total = {}, [], 0
  for i in np.flatnonzero(questions.used):
    target, condition = int(questions.targets[i]), int(questions.conditions[i])
    total += len(traces[i])
    for trace in traces[i]:
      written = trace[trace >= 0]
      if len(written) == len(parents):
        continue  # Never the target.
      given = tuple(sorted({*written.tolist()} - {condition}))
      case = target, condition, given
      if case not in known:
        known[case] = data.d_separated(parents, *case)
      rows.append((known[case], len(written) > 0, len(written)))
  names = SEPARATE, STARTED, NUMBER
  means = np.mean(rows, axis=0) if rows else [np.nan] * len(names)
  return {REACHED: len(rows) / total, **dict(zip(names, means))}
