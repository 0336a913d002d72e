"""Maximum likelihood, and what texts and samples of the model make of it in a few updates."""

import functools
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
AREA = "area of right results"


class Arm(NamedTuple):
  """What fine-tuning learns from: all are one program."""

  corrections: float = 0.0  # Whether wrong tokens and their removal are inserted into the data.
  backspace: float = 0.0  # Whether the backspace is an action.
  model: float = 0.0  # Whether half of a batch are samples of the model; else the data again.
  penalty: float = 0.0  # 1 for that of squared rewards, 0 for maximum likelihood.


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
  """Sequences of actions, laid out for the decoder."""

  layout: BackspaceLayout
  actions: chex.Array
  lengths: chex.Array
  terminated: chex.Array  # Whether the last action is the end.
  weights: chex.Array  # 0 for inserted wrong tokens.


def decoder(config) -> models.DecoderLM:
  """The decoder of texts and backspaces; positions are learned."""
  names = "hidden_size", "num_layers", "num_heads", "family"
  sizes = dict(zip(names, (*config.decoder, config.num_heads, "gpt2")))
  return language_models.decoder(texts.backspace(config) + 1, 1 + config.max_actions, **sizes)


def lay_out(config, actions, lengths, terminated, weights=None) -> Rows:
  """`Rows` of actions after the start; all weights are 1 by default."""
  starts, token = jnp.full((len(actions), 1), texts.START), texts.backspace(config)
  layout = samplers.backspace_layout(starts, actions, lengths, backspace_token_id=token)
  weights = jnp.ones(actions.shape) if weights is None else weights
  return Rows(layout, actions, lengths, terminated, weights)


def lay_out_samples(config, samples: BacktrackingOutput) -> Rows:
  """What was sampled, as `Rows`."""
  return lay_out(config, samples.actions, samples.num_actions, samples.finished)


def lay_out_texts(config, key: chex.PRNGKey, rows: Texts, arm: Arm) -> Rows:
  """Texts as `Rows`, with corrections before some of their results if the arm has them."""
  tokens, token, most = rows.tokens[:, 1:], texts.backspace(config), config.max_actions
  insert_key, wrong_key = jax.random.split(key)
  # Before results, where a wrong value can be told; any other number is as right as the next.
  rate = config.correction_rate * texts.is_result(config, jnp.arange(tokens.shape[1]))
  insert = jax.random.bernoulli(insert_key, rate, tokens.shape)
  values = (
    tokens - texts.FIRST_NUMBER + jax.random.randint(wrong_key, tokens.shape, 1, config.modulus)
  )
  wrong = texts.FIRST_NUMBER + values % config.modulus
  sizes, insert = jnp.full(len(tokens), tokens.shape[1]), insert & (arm.corrections > 0)
  corrected = samplers.insert_corrections(tokens, sizes, insert, wrong, backspace_token_id=token)
  actions, weights = (array[:, :most] for array in corrected[:2])
  lengths = jnp.minimum(corrected.lengths, most)
  return lay_out(config, actions, lengths, corrected.lengths <= most, weights)


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
    num, penalty = len(batch[2]), batch[2][0]
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), *batch[:2])
    rows = state_logits(config, params, rows.layout, arm.backspace), *rows[1:]

    def half(source, part):
      *inputs, weights = (x[part] for x in rows)
      options = {"source": source, "discount": config.discount, "alpha": 1.0 / penalty}
      return losses.occupancy_matching_loss(*inputs, weights=weights, **options)

    return training.LossOutput(half("data", slice(num)) + half("model", slice(num, None)))

  return loss


def tune(config, key, rows: Texts, params, arm: Arm, rate) -> tuple[chex.ArrayTree, jax.Array]:
  """Parameters tuned by an arm's objective, and its last value.

  Corrections and samples of the model are drawn anew every few updates.
  """
  size, every, num_steps = config.batch_size, config.refresh_every, config.tuning_steps
  optimizer = adamw_cosine(rate, num_steps, weight_decay=0.01)
  state_key, order_key, phase_key = jax.random.split(key, 3)
  state = training.init_state(state_key, params, optimizer)
  update = training.build_update(matching_loss(config, arm), optimizer)
  order = epoch_rows(order_key, len(rows.tokens), num_steps=num_steps, batch_size=size)
  ramp = jnp.minimum(jnp.arange(num_steps) / (config.ramp_share * num_steps), 1.0)
  inputs = order, arm.penalty / config.alpha * ramp
  inputs = jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]), inputs)

  def phase(state, inputs):
    text_key, sample_key, draw_key = jax.random.split(inputs[0], 3)
    sampling = Sampling(backspace=arm.backspace)
    own = texts.sample(config, sample_key, decoder(config), state.params, sampling, config.buffer)
    own, given = lay_out_samples(config, own), lay_out_texts(config, text_key, rows, arm)
    drawn = jax.random.randint(draw_key, (every, size), 0, config.buffer)

    def step(state, inputs):
      at, of_model, penalty = inputs
      first = jax.tree.map(lambda x: x[at], given)
      second = jax.tree.map(lambda x, y: jnp.where(arm.model > 0, x[of_model], y), own, first)
      return update(state, (first, second, jnp.full(size, penalty)))

    return jax.lax.scan(step, state, (inputs[1], drawn, inputs[2]))

  keys = jax.random.split(phase_key, num_steps // every)
  state, reported = jax.lax.scan(phase, state, (keys, *inputs))
  return state.params, reported["loss"][-1, -1]


def token_errors(config, params, samples: BacktrackingOutput) -> dict[str, jax.Array]:
  """How often backspaces, and as many of a policy's least likely tokens, meet wrong tokens.

  Where there are no backspaces, also the area under the curve of the log-probability for right
  against wrong results.
  """
  rows = lay_out_samples(config, jax.tree.map(lambda x: x[:_ANALYZED], samples))
  logits = state_logits(config, params, rows.layout, 0.0)[:, :-1]
  log_probs = losses.token_log_probs(logits, rows.actions)
  # The texts of all states, and the token that an action writes, or the one that it removes.
  tokens, positions, mask = rows.layout
  at = positions[:, :, None] == 1 + jnp.arange(texts.length(config) + texts.SLACK)
  states = jnp.einsum("nsk,nkp->nsp", mask[:, :-1] * tokens[:, None], at.astype(int))
  removes = rows.actions == texts.backspace(config)
  places = positions[:, :-1] - removes
  right = jax.vmap(jax.vmap(functools.partial(texts.allowed, config)))(states, places)
  token = jnp.where(removes, tokens[:, :-1], rows.actions)
  right = jnp.take_along_axis(right, token[..., None], axis=2)[..., 0]
  real = jnp.arange(token.shape[1]) < rows.lengths[:, None]
  removes, writes = real & removes, real & ~removes
  num = jnp.sum(removes)
  ranks = jnp.argsort(jnp.argsort(jnp.where(writes, log_probs, jnp.inf), axis=None))
  lowest = (ranks < num).reshape(writes.shape)
  wrong = [jnp.sum(chosen & ~right) / num for chosen in (removes, lowest)]
  results = slice(2 * config.num_terms, 3 * config.num_terms - 1)
  area = metrics.auroc(log_probs[:, results].ravel(), right[:, results].ravel())
  return dict(zip((*OF_BACKSPACES, AREA), (num / len(removes), *wrong, area)))


def measure(config, key, params, sampling: Sampling, num: int) -> dict[str, jax.Array]:
  """Measures of samples."""
  samples = texts.sample(config, key, decoder(config), params, sampling, num)
  return texts.describe(config, samples) | token_errors(config, params, samples)


def best(config, found: dict[str, jax.Array], distance) -> jax.Array:
  """Of settings `[..., n]`, that of most valid texts among those no farther, or the nearest."""
  near = found["distance"] <= distance + config.most_farther
  return jnp.argmax(jnp.where(near, found["valid"], -found["distance"] - 1), axis=-1)


def fit_likelihood(config, samplings: Sampling, key) -> dict[str, Any]:
  """Texts, parameters of maximum likelihood, and measures of samples drawn in stacked ways."""
  data_key, fit_key, *keys = jax.random.split(key, 4)
  rows = texts.draw_texts(config, data_key, config.num_texts)
  names = "num_steps", "batch_size", "learning_rate"
  sizes = {name: getattr(config, name) for name in names}
  fitted = language_models.fit_decoder(fit_key, decoder(config), rows, **sizes)
  found = {"texts": rows._asdict(), "params": fitted.params}
  nums = {"selecting": config.num_selecting, "judged": config.num_judged}
  for key, (name, num) in zip(keys, nums.items()):
    of_way = functools.partial(measure, config, key, fitted.params, num=num)
    found[name] = jax.lax.map(of_way, samplings)
  return found


def fit_arm(config, key, start, setting) -> dict[str, jax.Array]:
  """Tunes an arm, the `setting`, at all learning rates; judges the one that its samples prefer.

  `start` holds `texts`, `params`, and the `distance` of maximum likelihood.
  """
  arm, rows = Arm(**setting), Texts(**start["texts"])
  sampling, rates = Sampling(backspace=arm.backspace), jnp.array(config.tuning_rates)
  tune_key, select_key, judge_key = jax.random.split(key, 3)

  def at(rate):
    params, loss = tune(config, tune_key, rows, start["params"], arm, rate)
    return params, loss, measure(config, select_key, params, sampling, config.num_selecting)

  params, last, selecting = jax.lax.map(at, rates)
  chosen = best(config, selecting, start["distance"])
  params = jax.tree.map(lambda x: x[chosen], params)
  found = measure(config, judge_key, params, sampling, config.num_judged)
  return found | {"chosen learning rate": rates[chosen], "last loss": last[chosen]}
