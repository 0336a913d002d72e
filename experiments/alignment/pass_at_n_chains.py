"""Chains of steps: the answer may be reached by many texts, or each step be verified by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import classification, common
from experiments.alignment import pass_at_n_models as shared
from experiments.members import over_members
from jaxlab import data, losses, metrics, models, samplers, training
from jaxlab.data.reasoning import EOS_TOKEN


def chain_config(config, *, verbose: bool) -> data.ModularChainConfig:
  """The chains of the experiment; a step of a terse one is a single token."""
  return data.ModularChainConfig(
    modulus=config.modulus, num_terms=config.num_terms, verbose=verbose
  )


def chain_decoder(config, chains: data.ModularChainConfig):
  """The decoder of chains."""
  return models.DecoderLM(
    models.decoder_config(
      vocab_size=chains.vocab_size,
      hidden_size=config.chain_hidden_size,
      num_layers=config.chain_layers,
      num_heads=config.num_heads,
      max_positions=chains.prompt_length + chains.response_length,
    )
  )


def _problems(config, chains, key):
  """Training texts that are used again and again, and fresh problems to choose and judge on."""
  train_key, validation_key, test_key = jax.random.split(key, 3)
  draw = functools.partial(data.modular_chain_batch, config=chains)
  return (
    draw(train_key, batch_size=config.num_problems),
    draw(validation_key, batch_size=config.num_judged, clean=True),
    draw(test_key, batch_size=config.num_judged, clean=True),
  )


# ---------------------------------------------------------------------------------- whole chains


def run_chains(config, context: common.Context) -> dict[int, dict]:
  """By training N, of the right answers and of the right proofs: pass@k `[seeds, phases, k]`."""
  trained_for = (1, config.chain_samples)
  return _over_trainings("chains", _train_on_chains, config, context, trained_for)


def _over_trainings(stage, train, config, context, trained_for) -> dict[int, dict]:
  """What `train(config, key, N)` gives for every N and all seeds, `[seeds, ...]` each."""
  found = context.cached(stage, _all_members, train, config, context, trained_for)
  shape = len(trained_for), context.seeds
  found = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)
  return {n: jax.tree.map(lambda x, i=i: x[i], found) for i, n in enumerate(trained_for)}


def _all_members(train, config, context, trained_for):
  keys = jax.random.split(jax.random.fold_in(context.key, 1), context.seeds)
  members = (
    jnp.concatenate([keys] * len(trained_for)),
    np.repeat(np.float32(trained_for), context.seeds),
  )
  return over_members(lambda member: train(config, *member), members, context.mesh)


def _train_on_chains(config, key, num_samples) -> dict[str, dict[str, jax.Array]]:
  """Phases of steps; before each, rollouts say how often the model reaches each answer."""
  chains = chain_config(config, verbose=True)
  model = chain_decoder(config, chains)
  data_key, state_key, phase_key = jax.random.split(key, 3)
  train, validation, test = _problems(config, chains, data_key)
  num_phases = config.chain_steps // config.refresh_steps
  optimizer = shared.make_optimizer(config, num_phases * config.refresh_steps)

  def loss(params, model_state, batch, key):
    del key
    rows, success = batch
    values = losses.estimated_coverage_nll(
      shared.token_log_probs(model, params, rows.tokens),
      rows.loss_mask,
      success,
      num_samples=num_samples,
    )
    return training.LossOutput(values, model_state=model_state)

  update = training.build_update(loss, optimizer)

  def phase(state, key):
    rollout_key, row_key, rare_key, *judge_keys = jax.random.split(key, 5)
    sample = functools.partial(_sample_right, config, chains, model, state.params)
    # A text teaches its own answer, which is not the true one where it has a wrong step.
    taught = train._replace(answers=train.steps[:, -1])
    success = sample(taught, rollout_key, num_samples=config.num_rollouts)["answers"].mean(1)

    def step(state, rows):
      batch = jax.tree.map(lambda array: array[rows], (train, success))
      return update(state, batch)[0], None

    rows = classification.epoch_rows(
      row_key, config.num_problems, num_steps=config.refresh_steps, batch_size=config.batch_size
    )
    # For several samples batches are full of what is rarely reached.
    rare = _rare_rows(rare_key, success, config.success_threshold, rows.shape)
    state, _ = jax.lax.scan(step, state, jnp.where(num_samples > 1, rare, rows))
    sample = functools.partial(_sample_right, config, chains, model, state.params)
    scores = {}
    for name, problems, key in zip(("validation", "test"), (validation, test), judge_keys):
      right = sample(problems, key, num_samples=config.num_chain_draws)
      scores[name] = {
        what: metrics.coverage_curve(hits, ks=config.chain_test_samples)
        for what, hits in right.items()
      }
    return state, scores

  params = model.init(state_key, train.tokens[:1])["params"]
  state = training.init_state(state_key, params, optimizer)
  return jax.lax.scan(phase, state, jax.random.split(phase_key, num_phases))[1]


def _rare_rows(key, success, threshold, shape) -> jax.Array:
  """Random numbers of problems below the threshold; of all problems if none is."""
  rare = success < threshold
  rare = jnp.where(jnp.any(rare), rare, True).astype(jnp.float32)
  return jax.random.choice(key, len(success), shape, p=rare / rare.sum())


def _sample_right(
  config, chains, model, params, problems, key, *, num_samples
) -> dict[str, jax.Array]:
  """Which sampled chains end in the answer, and which do so by valid steps alone: a proof.

  A guess is the answer once in `modulus` times, so that many samples of guesses hold it.
  """
  fns = samplers.flax_decode_fns(model, params)
  chunk = config.rollout_chunk

  def some(inputs):
    key, tokens, lengths, answers = inputs
    drawn = samplers.generate_n(
      key,
      fns,
      tokens,
      lengths,
      num_samples=num_samples,
      max_new_tokens=chains.response_length,
      eos_token_id=EOS_TOKEN,
    )
    parsed = data.parse_chain(chains, drawn.tokens.reshape(-1, chains.response_length))
    prompts = jnp.repeat(tokens, num_samples, axis=0)
    valid = jnp.all(data.check_steps(chains, prompts, parsed.steps), axis=-1)
    right = parsed.answer == jnp.repeat(answers, num_samples)
    found = {"answers": right, "proofs": right & valid}
    return jax.tree.map(lambda x: x.reshape(chunk, num_samples), found)

  count = len(problems.answers) // chunk
  rows = (problems.tokens[:, : chains.prompt_length], problems.prompt_lengths, problems.answers)
  rows = jax.tree.map(lambda x: x.reshape(count, chunk, *x.shape[1:]), rows)
  right = jax.lax.map(some, (jax.random.split(key, count), *rows))
  return jax.tree.map(lambda x: x.reshape(count * chunk, num_samples), right)


# -------------------------------------------------------------------------------- verified steps


def run_steps(config, context: common.Context) -> dict[int, np.ndarray]:
  """Which fresh problems a tree search solves, bool `[seeds, problems]`, by training N."""
  return _over_trainings("steps", _train_on_steps, config, context, config.step_samples)


def _train_on_steps(config, key, num_samples) -> jax.Array:
  """Trains on steps and searches, each step verified: which problems are solved."""
  chains = chain_config(config, verbose=False)
  model = chain_decoder(config, chains)
  data_key, train_key, search_key = jax.random.split(key, 3)
  train, _, test = _problems(config, chains, data_key)
  num_steps = config.num_terms - 1
  places = jnp.arange(train.tokens.shape[1]) - chains.prompt_length
  step_ids = jnp.where((places >= 0) & (places < num_steps), places, -1)

  def loss(params, model_state, batch, key):
    del key
    values = losses.stepwise_coverage_loss(
      shared.token_log_probs(model, params, batch.tokens),
      jnp.broadcast_to(step_ids, batch.tokens.shape),
      num_samples=num_samples,
      num_steps=num_steps,
    )
    return training.LossOutput(values.sum(-1), model_state=model_state)

  trained = classification.train(
    train_key,
    model,
    loss,
    shared.make_optimizer(config, config.search_steps),
    train,
    num_steps=config.search_steps,
    batch_size=config.batch_size,
  )
  search = functools.partial(_search, config, chains, model, trained.params)
  keys = jax.random.split(search_key, config.num_judged)
  return jax.vmap(search)(keys, test.tokens)


def _search(config, chains, model, params, key, tokens) -> jax.Array:
  """Whether best-first search over verified steps reaches the end of one problem."""
  first, num_steps = chains.prompt_length, chains.num_terms - 1

  def propose(key, state):
    tokens, depth = state
    logits = model.apply({"params": params}, tokens[None]).logits[0, first - 1 + depth]
    drawn = samplers.sample_without_replacement(key, logits, num_samples=config.branching)
    return drawn.tokens, drawn.log_probs

  def proceed(state, action):
    tokens, depth = state
    tokens = tokens.at[first + depth].set(action)
    steps = data.parse_chain(chains, tokens[None, first:]).steps
    valid = data.check_steps(chains, tokens[None, :first], steps)[0, depth]
    status = jnp.where(valid, jnp.where(depth + 1 == num_steps, 1, 0), -1)
    return (tokens, depth + 1), status

  root = jnp.where(jnp.arange(len(tokens)) < first, tokens, 0), jnp.zeros((), jnp.int32)
  return samplers.best_first_search(
    key,
    propose,
    proceed,
    root,
    num_expansions=config.num_expansions,
    branching=config.branching,
    max_depth=num_steps,
  ).solved
