"""The policy: imitation of texts, training with a search over rates, samples and completions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.alignment.rl_incorrect_data.problems import Problems
from experiments.kit import chains as kit
from experiments.kit.alignment import Pairs, pair_log_probs, pair_loss
from experiments.kit.language_models import decoder, fit_decoder, respond, search_decoder
from experiments.kit.train import Trained
from jaxlab import losses, models


def network(config, chains) -> models.DecoderLM:
  """The decoder; positions are learned, those behind a text for completions of its prefixes."""
  (width, num_layers), length = config.decoder, chains.prompt_length + 2 * chains.response_length
  sizes = {"hidden_size": width, "num_layers": num_layers, "family": "gpt2"}
  return decoder(chains.vocab_size, length, **sizes)


def imitate(config, chains, key, problems: Problems) -> dict[str, Any]:
  """Trains a new policy on the corpus; gives its `params` and measurements."""
  model, corpus = network(config, chains), problems.corpus
  every = jnp.ones((len(corpus), chains.num_terms - 1))
  sizes = {"num_steps": len(corpus) // config.base_texts, "batch_size": config.base_texts}
  loss = kit.step_loss(model, chains, beta=config.beta)
  texts = kit.Steps(corpus, 0 * every, every)
  params = fit_decoder(key, model, texts, loss_fn=loss, **sizes).params
  return {"params": params, **measure(model, params, chains, problems)}


def search(config, chains, key, start, rows, problems, **options) -> dict[str, Any]:
  """Trains on `Steps`, or on `Pairs` with `start` as reference; rate and update by validation."""
  model = network(config, chains)
  loss = kit.step_loss(model, chains, beta=config.beta, max_weight=config.max_weight)
  options |= {name: getattr(config, name) for name in ("num_evaluations", "batch_size")}
  if isinstance(rows, Pairs):
    loss = pair_loss(model, functools.partial(losses.dpo_loss, beta=config.beta))
    rows = rows, pair_log_probs(model, start, rows)
  validate = lambda params: kit.greedy_accuracy(model, params, chains, *problems.validation)  # noqa: E731
  options |= {"validate": validate, "loss_fn": loss, "start": Trained(start, {})}
  params, chosen = search_decoder(key, model, rows, **options)
  chosen = {f"chosen/{name}": value for name, value in chosen.items()}
  return {"params": params, **chosen, **measure(model, params, chains, problems)}


def measure(model, params, chains, problems: Problems) -> dict[str, jax.Array]:
  """Accuracy and wrong steps of greedy solutions, and how likely misconceptions are repeated."""
  written = kit.greedy_texts(model, params, chains, problems.test.tokens)
  wrong = ~kit.right_steps(chains, problems.misled.tokens)
  chances = jnp.exp(kit.step_log_probs(model, params, chains, problems.misled.tokens))
  return {
    "accuracy": kit.greedy_accuracy(model, params, chains, *problems.test),
    "wrong steps": 1 - jnp.mean(kit.right_steps(chains, written)),
    "misconceptions": jnp.sum(jnp.where(wrong, chances, 0)) / jnp.maximum(jnp.sum(wrong), 1),
  }


def sample(config, chains, key, params, problems: Problems) -> dict[str, jax.Array]:
  """Samples solutions; `correct` answers, `right` steps, and those that `met` a misconception."""
  prompts = problems.train.tokens[:, : chains.prompt_length]
  sizes = {"num_samples": config.num_samples, "max_new_tokens": chains.response_length}
  rollout = respond(key, network(config, chains), params, prompts, **sizes)
  parsed = kit.parse(chains, rollout.tokens)
  places = kit.entries(chains, rollout.tokens, parsed.steps)
  return {
    "tokens": rollout.tokens,
    "correct": parsed.answer == problems.train.answers[:, None],
    "right": kit.right_steps(chains, rollout.tokens),
    "met": problems.wrong_values[places] >= 0,
    "sampled tokens": jnp.sum(rollout.mask),
  }


def complete(config, chains, key, params, texts) -> dict[str, jax.Array]:
  """Completions of all prefixes of texts, as `complete_prefixes` gives them."""
  sizes = {"num_rollouts": config.num_rollouts}
  return kit.complete_prefixes(key, network(config, chains), params, chains, texts, **sizes)


def replace(config, chains, key, params, texts, step, *, num_rollouts) -> dict[str, jax.Array]:
  """Other steps in the place of one, and completions after them, as of `replace_steps`."""
  sizes = {"num_rollouts": num_rollouts, "num_candidates": config.num_candidates}
  return kit.replace_steps(key, network(config, chains), params, chains, texts, step, **sizes)
