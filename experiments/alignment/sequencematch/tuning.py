"""Maximum likelihood, and what texts and samples of the model make of it in a few updates."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.alignment.sequencematch import texts
from experiments.alignment.sequencematch.texts import Sampling, Texts
from experiments.kit import language_models
from experiments.kit.train import adamw_cosine, epoch_rows
from jaxlab import losses, metrics, models, samplers, training
from jaxlab.samplers import BackspaceLayout, BacktrackingOutput

_ANALYZED = 2048  # Samples whose single tokens are looked at.
AFTER_WRONG, LOWEST = "backspaces after wrong tokens", "least likely tokens that are wrong"
OF_BACKSPACES = "backspaces", AFTER_WRONG, LOWEST


class Arm(NamedTuple):
  """What fine-tuning learns from: all are one program.

  Attributes:
    corrections: whether wrong tokens and their removal are inserted into the data.
    backspace: whether the backspace is an action.
    model: whether the second half of a batch are samples of the model; else the data again.
    penalty: the inverse of alpha; 0 for maximum likelihood.
  """

  corrections: float = 0.0
  backspace: float = 0.0
  model: float = 0.0
  penalty: float = 0.0


LONGER = "maximum likelihood, longer"
CORRECTIONS = "corrections imitated"
WITHOUT, MAIN = "chi-squared, no backspace", "chi-squared with backspace"
DATA_ALONE = "chi-squared on data alone"
ARMS = {
  LONGER: Arm(),
  CORRECTIONS: Arm(corrections=1.0, backspace=1.0),
  WITHOUT: Arm(model=1.0, penalty=1.0),
  MAIN: Arm(corrections=1.0, backspace=1.0, model=1.0, penalty=1.0),
  DATA_ALONE: Arm(corrections=1.0, backspace=1.0, penalty=1.0),
}


class Rows(NamedTuple):
  """Sequences of actions, laid out for the decoder.

  Attributes:
    layout: inputs of the decoder.
    actions: int32 `[n, T]`.
    weights: 0 for inserted wrong tokens, float32 `[n, T]`.
    lengths: numbers of actions, int32 `[n]`.
    terminated: whether the last action is the end, bool `[n]`.
  """

  layout: BackspaceLayout
  actions: chex.Array
  weights: chex.Array
  lengths: chex.Array
  terminated: chex.Array


def decoder(config) -> models.DecoderLM:
  """The decoder of texts and backspaces."""
  width, num_layers = config.decoder
  sizes = {"hidden_size": width, "num_layers": num_layers, "num_heads": config.num_heads}
  size = max(config.max_actions, texts.length(config) + texts.SLACK)
  return language_models.decoder(texts.backspace(config) + 1, 1 + size, **sizes)


def lay_out(config, actions, weights, lengths, terminated) -> Rows:
  """`Rows` of actions after the start."""
  starts = jnp.full((len(actions), 1), texts.START)
  backspace = texts.backspace(config)
  layout = samplers.backspace_layout(starts, actions, lengths, backspace_token_id=backspace)
  return Rows(layout, actions, weights, lengths, terminated)


def rows_of_samples(config, samples: BacktrackingOutput) -> Rows:
  """What was sampled, as `Rows`."""
  ones = jnp.ones(samples.actions.shape)
  return lay_out(config, samples.actions, ones, samples.num_actions, samples.finished)


def rows_of_texts(config, key: chex.PRNGKey, rows: Texts, arm: Arm) -> Rows:
  """Texts as `Rows`, with corrections before some of their tokens if the arm has them."""
  tokens, backspace = rows.tokens[:, 1:], texts.backspace(config)
  insert_key, token_key = jax.random.split(key)
  insert = jax.random.bernoulli(insert_key, config.correction_rate, tokens.shape)
  # Any other token, but not the start.
  wrong = 1 + (tokens + jax.random.randint(token_key, tokens.shape, 0, backspace - 2)) % (
    backspace - 1
  )
  corrected = samplers.insert_corrections(
    tokens,
    jnp.full(len(tokens), tokens.shape[1]),
    insert & (arm.corrections > 0),
    wrong,
    backspace_token_id=backspace,
  )
  most = config.max_actions
  lengths = jnp.minimum(corrected.lengths, most)
  cut = (array[:, :most] for array in corrected[:2])
  return lay_out(config, *cut, lengths, corrected.lengths <= most)


def state_logits(config, params, layout: BackspaceLayout, backspace) -> jax.Array:
  """Logits in every state, `[n, T + 1, v]`; those of the backspace are -inf if it is no action."""
  tokens, positions, mask = layout
  logits = decoder(config).apply({"params": params}, tokens, positions, attention_mask=mask).logits
  is_backspace = jnp.arange(logits.shape[-1]) == texts.backspace(config)
  return jnp.where((is_backspace & (backspace == 0))[None, None], -jnp.inf, logits)


def matching_loss(config, arm: Arm):
  """The engine's loss on batches (data, sequences of the model or of the data, penalty)."""

  def loss(params, model_state, batch, key):
    del model_state, key
    halves = jax.tree.map(lambda *x: jnp.concatenate(x), *batch[:2])
    logits = state_logits(config, params, halves.layout, arm.backspace)
    alpha = 1.0 / batch[2][0]

    def half(source, rows):
      cut = jax.tree.map(lambda x: x[rows], (logits, *halves[1:]))
      logits_, actions, weights, lengths, terminated = cut
      return losses.occupancy_matching_loss(
        logits_, actions, lengths, terminated,
        source=source, discount=config.discount, alpha=alpha, weights=weights,
      )  # fmt: skip

    num = len(batch[2])
    return training.LossOutput(half("data", slice(num)) + half("model", slice(num, None)))

  return loss


class Tuned(NamedTuple):
  """Parameters, and what an arm's last update reported."""

  params: chex.ArrayTree
  loss: chex.Array


def tune(config, key, rows: Texts, params, arm: Arm, rate) -> Tuned:
  """Fine-tunes with an arm's objective; samples of the model are drawn anew now and then."""
  size, every = config.batch_size, config.refresh_every
  optimizer = adamw_cosine(rate, config.tuning_steps, weight_decay=0.01)
  state_key, order_key, phase_key = jax.random.split(key, 3)
  state = training.init_state(state_key, params, optimizer)
  update = training.build_update(matching_loss(config, arm), optimizer)
  order = epoch_rows(
    order_key, len(rows.tokens), num_steps=config.tuning_steps, batch_size=size
  ).reshape(-1, every, size)
  steps = jnp.arange(config.tuning_steps) / (config.ramp_share * config.tuning_steps)
  penalties = (arm.penalty / config.alpha * jnp.minimum(steps, 1.0)).reshape(-1, every)

  def phase(state, inputs):
    key, order, penalties = inputs
    text_key, sample_key, draw_key = jax.random.split(key, 3)
    data = rows_of_texts(config, text_key, rows, arm)
    sampling = Sampling(backspace=arm.backspace)
    own = texts.sample(config, sample_key, decoder(config), state.params, sampling, config.buffer)
    own = rows_of_samples(config, own)
    drawn = jax.random.randint(draw_key, order.shape, 0, config.buffer)

    def step(state, inputs):
      of_data, of_model, penalty = inputs
      first = jax.tree.map(lambda x: x[of_data], data)
      other = jax.tree.map(lambda x: x[of_model], own)
      second = jax.tree.map(lambda x, y: jnp.where(arm.model > 0, x, y), other, first)
      return update(state, (first, second, jnp.full(size, penalty)))

    return jax.lax.scan(step, state, (order, drawn, penalties))

  keys = jax.random.split(phase_key, len(order))
  state, reported = jax.lax.scan(phase, state, (keys, order, penalties))
  return Tuned(state.params, reported["loss"][-1, -1])


def analyze(config, params, samples: BacktrackingOutput) -> dict[str, jax.Array]:
  """What backspaces follow, against the removal of as many of the least likely tokens.

  Args:
    config: of the experiment.
    params: of the policy.
    samples: its samples.

  Returns:
    Backspaces per sample; their share that follows a wrong token; that share of as many tokens of
    the lowest log-probability; and, where there are no backspaces, the area under the curve of the
    log-probability for right against wrong results.
  """
  samples = jax.tree.map(lambda x: x[:_ANALYZED], samples)
  rows = rows_of_samples(config, samples)
  logits = state_logits(config, params, rows.layout, 0.0)[:, :-1]
  log_probs = losses.token_log_probs(logits, samples.actions)
  written, right, removes, removes_wrong = texts.trace(config, samples)
  num = jnp.sum(removes)
  ranks = jnp.argsort(jnp.argsort(jnp.where(written, log_probs, jnp.inf), axis=None))
  lowest = (ranks < num).reshape(written.shape)
  results = slice(2 * config.num_terms, 3 * config.num_terms - 1)
  area = metrics.auroc(log_probs[:, results].ravel(), right[:, results].ravel())
  shares = jnp.sum(removes_wrong) / num, jnp.sum(lowest & ~right) / num
  found = dict(zip(OF_BACKSPACES, (num / len(removes), *shares)))
  return found | {"area of right results": area}


def judge(config, key, params, sampling: Sampling) -> dict[str, jax.Array]:
  """Measures of many samples."""
  samples = texts.sample(config, key, decoder(config), params, sampling, config.num_judged)
  found = analyze(config, params, samples)
  return texts.describe(config, samples) | found


def select(config, key, params, sampling: Sampling) -> dict[str, jax.Array]:
  """Validity and distance of fewer samples, to choose settings on."""
  samples = texts.sample(config, key, decoder(config), params, sampling, config.num_selecting)
  found = texts.describe(config, samples)
  return {name: found[name] for name in ("valid", "distance")}


def best(config, found: dict[str, jax.Array], distance) -> jax.Array:
  """Which setting has most valid texts among those no farther from the law, or is the nearest."""
  near = found["distance"] <= distance + config.most_farther
  return jnp.argmax(jnp.where(near, found["valid"], -found["distance"] - 1))


def fit_likelihood(config, key, samplings: Sampling) -> dict[str, Any]:
  """Maximum likelihood, sampled in several ways.

  Args:
    config: of the experiment.
    key: of the data, the parameters, their order and samples.
    samplings: ways to sample, stacked; the first is the plain one.

  Returns:
    The `texts`, the `params`; what is `judged` and what `selecting` settings needs, for every way.
  """
  data_key, fit_key, select_key, judge_key = jax.random.split(key, 4)
  rows = texts.draw_texts(config, data_key, config.num_texts)
  sizes = {"num_steps": config.num_steps, "batch_size": config.batch_size}
  model = decoder(config)
  rate = config.learning_rate
  params = language_models.fit_decoder(fit_key, model, rows, learning_rate=rate, **sizes).params
  selecting = jax.lax.map(lambda way: select(config, select_key, params, way), samplings)
  judged = jax.lax.map(lambda way: judge(config, judge_key, params, way), samplings)
  return {"texts": rows._asdict(), "params": params, "selecting": selecting, "judged": judged}


def fit_arm(config, key, start, setting) -> dict[str, jax.Array]:
  """Tunes an arm at all learning rates, and judges the one that its samples prefer.

  Args:
    config: of the experiment.
    key: of order, corrections and samples.
    start: `texts`, `params`, and the `distance` of maximum likelihood.
    setting: the fields of an `Arm`.
  """
  arm = Arm(**setting)
  rows, sampling = Texts(**start["texts"]), Sampling(backspace=arm.backspace)
  tune_key, select_key, judge_key = jax.random.split(key, 3)
  rates = jnp.array(config.tuning_rates)

  def at(rate):
    tuned = tune(config, tune_key, rows, start["params"], arm, rate)
    return tuned, select(config, select_key, tuned.params, sampling)

  tuned, selecting = jax.lax.map(at, rates)
  chosen = best(config, selecting, start["distance"])
  tuned = jax.tree.map(lambda x: x[chosen], tuned)
  found = judge(config, judge_key, tuned.params, sampling)
  return found | {"chosen learning rate": rates[chosen], "last loss": tuned.loss}
