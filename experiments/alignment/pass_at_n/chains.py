"""Chains of steps: many texts may reach the answer, or each step is verified by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alignment.pass_at_n import products
from experiments.alignment.pass_at_n.products import METHODS, objective, optimizer
from experiments.kit.train import epoch_rows, train
from jaxlab import data, losses, metrics, models, samplers, training
from jaxlab.data.reasoning import EOS_TOKEN

ANSWERS, PROOFS = "answers of chains", "proofs of chains"
# Chains that rollouts reach more often are left out, for several samples.
SUCCESS_THRESHOLD = 0.1


def decoder(config, chains: data.ModularChainConfig) -> models.DecoderLM:
  """The decoder of chains."""
  length = chains.prompt_length + chains.response_length
  sizes = {"vocab_size": chains.vocab_size, "length": length}
  return products.decoder(config, config.chain_decoder, **sizes)


def problems(config, chains: data.ModularChainConfig, key) -> tuple[data.ChainBatch, ...]:
  """Training texts that are used again and again; fresh problems, `[(validation, test), n]`."""
  train_key, fresh_key = jax.random.split(key)
  draw = functools.partial(data.modular_chain_batch, config=chains)
  fresh = draw(fresh_key, batch_size=2 * config.num_judged, clean=True)
  return draw(train_key, batch_size=config.num_problems), products.halves(fresh)


def train_on_chains(config, key, num_samples) -> dict[str, jax.Array]:
  """Phases of steps; before each, rollouts say how often the model reaches each answer.

  Gives pass@N of answers and of proofs, `[phases, (validation, test), chain_samples]`.
  """
  chains = data.ModularChainConfig(config.modulus, config.num_terms)
  model = decoder(config, chains)
  data_key, state_key, phase_key = jax.random.split(key, 3)
  train_rows, fresh = problems(config, chains, data_key)
  adamw = optimizer(config, config.num_phases * config.refresh_steps)

  def values(log_probs, rows, success):
    scores = log_probs, rows.loss_mask, success
    return losses.estimated_coverage_nll(*scores, num_samples=num_samples)

  update = training.build_update(objective(model, values), adamw)
  sample = functools.partial(sample_right, config, chains, model)

  def passes(params, split_and_key):
    right = sample(params, *split_and_key, num_samples=max(config.chain_samples))
    return jax.tree.map(lambda x: metrics.coverage_curve(x, ks=config.chain_samples), right)

  # Not kit.train.train: which rows a phase takes depends on rollouts of the model so far.
  def phase(state, key):
    keys = jax.random.split(key, 5)
    rollout_key, row_key, rare_key = keys[:3]
    # A text teaches its own answer, which is not the true one where it has a wrong step.
    taught = train_rows._replace(answers=train_rows.steps[:, -1])
    right = sample(state.params, taught, rollout_key, num_samples=config.num_rollouts)
    success = right[ANSWERS].mean(1)

    def step(state, rows):
      batch = jax.tree.map(lambda array: array[rows], (train_rows, success))
      return update(state, batch)[0], None

    rows = epoch_rows(
      row_key, config.num_problems, num_steps=config.refresh_steps, batch_size=config.batch_size
    )
    # For several samples batches are full of what is rarely reached.
    rare = rare_rows(rare_key, success, SUCCESS_THRESHOLD, rows.shape)
    state, _ = jax.lax.scan(step, state, jnp.where(num_samples > 1, rare, rows))
    return state, jax.lax.map(functools.partial(passes, state.params), (fresh, keys[3:]))

  params = model.init(state_key, train_rows.tokens[:1])["params"]
  state = training.init_state(state_key, params, adamw)
  return jax.lax.scan(phase, state, jax.random.split(phase_key, config.num_phases))[1]


def rare_rows(key, success, threshold: float, shape: tuple[int, ...]) -> jax.Array:
  """Random numbers of problems that are solved more rarely; of all problems if none is."""
  rare = success < threshold
  rare = jnp.where(jnp.any(rare), rare, True).astype(jnp.float32)
  return jax.random.choice(key, len(success), shape, p=rare / rare.sum())


def sample_right(config, chains, model, params, problems, key, *, num_samples: int) -> dict:
  """Which sampled chains end in the answer, and which do so by valid steps alone: a proof.

  A guess is the answer once in `modulus` times, so that many samples of guesses hold it.
  """
  fns = samplers.flax_decode_fns(model, params)
  options = {"max_new_tokens": chains.response_length, "eos_token_id": EOS_TOKEN}

  def some(inputs):
    key, tokens, lengths, answers = inputs
    drawn = samplers.generate_n(key, fns, tokens, lengths, num_samples=num_samples, **options)
    parsed = data.parse_chain(chains, drawn.tokens.reshape(-1, chains.response_length))
    prompts = jnp.repeat(tokens, num_samples, axis=0)
    valid = jnp.all(data.check_steps(chains, prompts, parsed.steps), axis=-1)
    right = parsed.answer == jnp.repeat(answers, num_samples)
    return {ANSWERS: right, PROOFS: right & valid}

  count = len(problems.answers) // config.rollout_chunk
  rows = (problems.tokens[:, : chains.prompt_length], problems.prompt_lengths, problems.answers)
  rows = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
  right = jax.lax.map(some, (jax.random.split(key, count), *rows))
  return jax.tree.map(lambda x: x.reshape(-1, num_samples), right)


def add_chain_records(config, results, measured: dict[int, dict[str, np.ndarray]]) -> None:
  """Adds what `train_on_chains` gave by training N, `[seeds, ...]`, in percent."""
  settings = [{"step": config.refresh_steps * (i + 1)} for i in range(config.num_phases)]
  for m, passes in measured.items():
    for problem, values in passes.items():
      splits = np.moveaxis(100 * values, -2, 0)
      for i, n in enumerate(config.chain_samples):
        where = {"problem": problem, "train_samples": m, "test_samples": n}
        last = {METHODS[m > 1]: {"sampled pass@N": splits[1, :, -1, i]}}
        results.add(last, **where, chosen="nothing")
        options = {"settings": settings, "chosen": "step", **where}
        products.add_chosen(results, "sampled pass@N", splits[..., i], **options)


def train_on_steps(config, key, num_samples) -> jax.Array:
  """Trains on steps and searches, each step verified: which test problems are solved."""
  # A step is a single token.
  chains = data.ModularChainConfig(config.modulus, config.num_terms, verbose=False)
  model = decoder(config, chains)
  data_key, train_key, search_key = jax.random.split(key, 3)
  train_rows, fresh = problems(config, chains, data_key)
  num_steps = config.num_terms - 1
  places = jnp.arange(train_rows.tokens.shape[1]) - chains.prompt_length
  step_ids = jnp.where((places >= 0) & (places < num_steps), places, -1)

  def values(log_probs, rows):
    del rows
    ids = jnp.broadcast_to(step_ids, log_probs.shape)
    counts = {"num_samples": num_samples, "num_steps": num_steps}
    return losses.stepwise_coverage_loss(log_probs, ids, **counts).sum(-1)

  sizes = {"num_steps": config.search_steps, "batch_size": config.batch_size}
  adamw = optimizer(config, config.search_steps)
  trained = train(train_key, model, objective(model, values), adamw, (train_rows,), **sizes)
  solve = functools.partial(search, config, chains, model, trained.params)
  return jax.vmap(solve)(jax.random.split(search_key, config.num_judged), fresh.tokens[1])


def search(config, chains, model, params, key, tokens) -> jax.Array:
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
  budget = {"num_expansions": config.num_expansions, "branching": config.branching}
  result = samplers.best_first_search(key, propose, proceed, root, max_depth=num_steps, **budget)
  return result.solved


def add_step_records(results, measured: dict[int, np.ndarray]) -> None:
  """Adds which problems each training N solved, bool `[seeds, problems]`, and their union."""
  for m, solved in measured.items():
    rows = {METHODS[m > 1]: {"solved": 100 * solved.mean(1)}}
    results.add(rows, problem="steps", train_samples=m)
  union = np.any(list(measured.values()), axis=0)
  results.add({"union": {"solved": 100 * union.mean(1)}}, problem="steps")
