"""A model that answers and judges, searches that use its judgement, and what they must beat."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.inference.rain import dialogues as texts
from experiments.inference.rain.dialogues import REQUEST, Dialogues
from experiments.kit.language_models import decoder, fit_decoder, respond
from experiments.kit.verifiers import ErrorRates, flip_verdicts
from jaxlab import models, samplers

ORDINARY, ATTACKED = "ordinary", "attacked"
REGIMES = ORDINARY, ATTACKED
SAMPLING, GREEDY, BEST = "sampling", "greedy", "best of n, equal tokens"
RAIN, CLAUSES = "RAIN", "rejection of clauses"
_SEARCH_SIZES = (
  *("num_candidates", "set_lengths", "max_iterations", "extra_iterations", "min_visits"),
  "candidate_top_k",
)
PERFECT, FLIPPED, COIN = "RAIN, perfect judge", "RAIN, 35% turned over", "RAIN, coin toss"


class Search(NamedTuple):
  """A variant of the search, all of which are one program."""

  attacked: bool = True  # Which requests it answers.
  perfect: bool = False  # Whether the judge knows the words.
  flips: float = 0.05  # Share of verdicts that are turned over.
  similarity_weight: float = 0.2  # As in `rewind_generate`.
  uniform_weight: float = 0.25  # Likewise.


# Method and regime of each variant.
SEARCHES = {
  (RAIN, ORDINARY): Search(attacked=False),
  (PERFECT, ORDINARY): Search(attacked=False, perfect=True, flips=0.0),
  (RAIN, ATTACKED): Search(),
  ("RAIN without similarity", ATTACKED): Search(similarity_weight=0.0),
  ("RAIN without prior", ATTACKED): Search(uniform_weight=1.0),
  ("RAIN, nothing turned over", ATTACKED): Search(flips=0.0),
  (PERFECT, ATTACKED): Search(perfect=True, flips=0.0),
  (FLIPPED, ATTACKED): Search(flips=0.35),
  (COIN, ATTACKED): Search(perfect=True, flips=0.5),
}


def network(config) -> models.DecoderLM:
  """The decoder; positions are learned."""
  sizes = {"hidden_size": config.decoder[0], "num_layers": config.decoder[1]}
  sizes |= {"num_heads": config.num_heads, "family": "gpt2"}
  return decoder(config.vocab_size, config.line_length, **sizes)


def train(config, key: chex.PRNGKey) -> dict[str, Any]:
  """Trains the model on dialogues and on lines that judge; the laws of words are the seed's."""
  law_key, key = jax.random.split(key)
  laws = texts.draw_laws(law_key, config)
  draw = lambda key, num: texts.draw_texts(key, config, laws, num)  # noqa: E731
  sizes = {"num_steps": config.num_steps, "batch_size": config.texts_per_update}
  fit = fit_decoder(key, network(config), draw, learning_rate=config.learning_rate, **sizes)
  return {"params": fit.params, "bad_step": fit.bad_step[None]}


def judge(config, params, rows, lengths) -> jax.Array:
  """Asks the model whether the beginnings of texts `[n, T]` are harmless: -1, 0 or 1, `[n]`."""
  twice, is_first = (lambda x: jnp.concatenate([x, x])), jnp.arange(2 * len(rows)) < len(rows)
  lines, last = texts.ask(config, twice(rows), twice(lengths), is_first)
  logits = network(config).apply({"params": params}, lines).logits
  logits = jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]
  letters = jnp.split(logits[:, texts.LETTER_A : texts.LETTER_B + 1], 2)
  return samplers.self_evaluation_score(*letters)


def settle(config, key, search: Search, verdicts, rows) -> jax.Array:
  """The verdicts of a variant's judge on texts `[n, T]`; one text always gets the same.

  A judge that learns from true labels hardly errs here, so that some verdicts are turned over.
  """
  truth = jnp.where(texts.is_harmful(config, rows), -1.0, 1.0)
  rates = ErrorRates(search.flips, search.flips)
  return flip_verdicts(key, jnp.where(search.perfect, truth, verdicts), rates, texts=rows)


def measure(config, key: chex.PRNGKey, trained) -> dict[str, Any]:
  """Answers requests in all ways.

  Gives the scores of every method and regime; those of best of n and of the rejection of clauses by
  their numbers, of attacks; and how often the judge is right, of every variant.
  """
  keys = jax.random.split(key, 6)
  params = trained["params"]
  draw = functools.partial(texts.draw_requests, task=config, num=config.num_requests)
  requests = [draw(keys[i], attack_rate=float(i)) for i in range(2)]
  score = functools.partial(describe, config)
  pools = sample_pools(config, keys[2], keys[4], params, requests)
  likeliest = answer(
    config, keys[3], params, jnp.concatenate(requests), num_samples=1, temperature=0.0
  )
  found = {}
  for name, rows, pool, drawn in zip(REGIMES, requests, pools, jnp.split(likeliest[:, 0], 2)):
    sampled = score(rows[:, None], pool["answers"])
    found[SAMPLING, name] = sampled | {"tokens": jnp.float32(config.answer_length)}
    found[GREEDY, name] = score(rows, drawn)

  names, variants = zip(*SEARCHES.items())
  searched = jax.lax.map(
    lambda variant: rewind(config, keys[4], params, requests, variant),
    jax.tree.map(lambda *x: jnp.array(x), *variants),
  )
  found |= {name: jax.tree.map(lambda x, i=i: x[i], searched) for i, name in enumerate(names)}
  per_sample = config.answer_length + judged_tokens(config, config.answer_length)
  by_number = {BEST: [], CLAUSES: []}
  for name, rows, pool in zip(REGIMES, requests, pools):

    def best(n, rows=rows, pool=pool):
      scores = jnp.where(jnp.arange(config.pool) < n, pool["scores"], -jnp.inf)
      chosen = jax.vmap(lambda x, i: x[i])(pool["answers"], jnp.argmax(scores, axis=1))
      return score(rows, chosen) | {"tokens": jnp.asarray(n * per_sample, float)}

    # No fewer than the search has, if the pool is large enough.
    equal = jnp.minimum(jnp.ceil(found[RAIN, name]["tokens"] / per_sample), config.pool)
    found[BEST, name] = best(equal) | {"n": equal}
    by_number[BEST] = jax.lax.map(best, jnp.array(config.best_of))
  reject = functools.partial(reject_clauses, config, keys[5], keys[4], params, requests[1])
  by_number[CLAUSES] = jax.lax.map(reject, jnp.array(config.tries))
  found[CLAUSES, ATTACKED] = jax.tree.map(lambda x: x[-1], by_number[CLAUSES])
  return {
    "scores": {name: {m: x for (m, n), x in found.items() if n == name} for name in REGIMES},
    "by number": by_number,
    "judge": judge_accuracy(config, keys[4], params, requests, pools),
  }


def describe(task: Dialogues, requests, answers) -> dict[str, jax.Array]:
  """Shares of answers that are harmless and that name the topic."""
  found = {"harmless": ~texts.is_harmful(task, answers)}
  found["topic"] = texts.has_topic(requests, answers)
  return {name: jnp.mean(x.astype(jnp.float32)) for name, x in found.items()}


def judged_tokens(task: Dialogues, length) -> chex.Numeric:
  """Tokens that a judgement of so many tokens of an answer takes, in both orders."""
  return 2 * (task.line_length - 1 - task.answer_length + length)


def answer(config, key, params, requests, **options: Any) -> jax.Array:
  """Samples of answers `[b, n, t]`."""
  options |= {"max_new_tokens": config.answer_length}
  drawn = respond(key, network(config), params, requests, **options)
  return drawn.tokens[..., requests.shape[1] :]


def sample_pools(config, key, judge_key, params, requests) -> list[dict[str, jax.Array]]:
  """Samples of answers to the requests of both regimes, and the judge's scores of them."""
  both = jnp.concatenate(requests)
  answers = answer(config, key, params, both, num_samples=config.pool)

  def score(row):
    request, drawn = row
    whole = jnp.concatenate([jnp.broadcast_to(request, (config.pool, len(request))), drawn], axis=1)
    verdicts = judge(config, params, whole, jnp.full(config.pool, whole.shape[1]))
    return settle(config, judge_key, Search(), verdicts, whole)

  scores = jax.lax.map(score, (both, answers))
  return [{"answers": x, "scores": y} for x, y in zip(jnp.split(answers, 2), jnp.split(scores, 2))]


def rewind(config, key, params, requests, search: Search) -> dict[str, jax.Array]:
  """Answers requests by the search of a variant."""
  rows = jnp.where(search.attacked, requests[1], requests[0])
  fns, table = samplers.flax_decode_fns(network(config), params), params["embed"]["embedding"]

  def evaluate(tokens, length):
    verdicts = judge(config, params, tokens[None], length[None])
    return settle(config, key, search, verdicts, tokens[None])[0]

  def embed(tokens, length):
    inside = (jnp.arange(len(tokens)) < length)[:, None]
    mean = jnp.sum(jnp.where(inside, table[tokens], 0.0), axis=0)
    return mean / jnp.maximum(jnp.linalg.norm(mean), 1e-6)

  search_fn = functools.partial(
    samplers.rewind_generate,
    decode_fns=fns,
    evaluate_fn=evaluate,
    embed_fn=embed,
    max_new_tokens=config.answer_length,
    eos_token_id=None,
    clause_end_ids=texts.COMMA,
    similarity_weight=search.similarity_weight,
    uniform_weight=search.uniform_weight,
    **{name: getattr(config, name) for name in _SEARCH_SIZES},
  )
  one = lambda key, request: search_fn(key, prompt_tokens=request)  # noqa: E731
  out = jax.vmap(one)(jax.random.split(key, len(rows)), rows)
  asked = 2 * (out.num_evaluated + out.num_iterations * (judged_tokens(config, 0) // 2 - 3))
  return describe(config, rows, out.tokens) | {
    "tokens": jnp.mean((out.num_generated + asked).astype(jnp.float32)),
    "visits": jnp.mean(out.num_iterations.astype(jnp.float32)),
  }


def reject_clauses(config, key, judge_key, params, requests, tries) -> dict[str, jax.Array]:
  """Draws clause by clause, each until the judge finds the text harmless, at most `tries` times."""
  most, num = max(config.tries), len(requests)
  clause, room = config.clause_length + 1, REQUEST + config.answer_length
  rows = jnp.pad(requests, ((0, 0), (0, room - requests.shape[1])))

  def step(carry, inputs):
    rows, tokens = carry
    key, i = inputs
    length = REQUEST + i * clause
    options = {"num_samples": most, "max_new_tokens": clause}
    options["prompt_lengths"] = jnp.full(num, length)
    begun = rows[:, : room - clause]
    drawn = respond(key, network(config), params, begun, **options).tokens
    flat = drawn.reshape(num * most, -1)
    verdicts = judge(config, params, flat, jnp.full(len(flat), length + clause))
    verdicts = settle(config, judge_key, Search(), verdicts, flat)
    fine = (verdicts.reshape(num, most) > 0) & (jnp.arange(most) < tries)
    chosen = jnp.where(jnp.any(fine, axis=1), jnp.argmax(fine, axis=1), tries - 1)
    rows = jax.vmap(lambda x, j: x[j])(drawn, chosen)
    each = clause + judged_tokens(config, (i + 1) * clause)
    return (rows, tokens + each * (chosen + 1)), None

  inputs = jax.random.split(key, config.num_clauses), jnp.arange(config.num_clauses)
  (rows, tokens), _ = jax.lax.scan(step, (rows, jnp.zeros(num, int)), inputs)
  found = describe(config, requests, rows[:, REQUEST:])
  return found | {"tokens": jnp.mean(tokens.astype(jnp.float32))}


def judge_accuracy(config, key, params, requests, pools) -> dict[str, jax.Array]:
  """How often the judge of each variant is right of partial answers, a mean of both classes."""
  num = min(config.pool, 8)
  answers = jnp.concatenate([pool["answers"][:, :num] for pool in pools])
  rows = jnp.repeat(jnp.concatenate(requests)[:, None], num, axis=1)
  rows = jnp.concatenate([rows, answers], axis=-1).reshape(2 * config.num_requests * num, -1)
  clauses = jax.random.randint(key, (len(rows),), 1, config.num_clauses + 1)
  lengths = REQUEST + clauses * (config.clause_length + 1)
  rows = jnp.where(jnp.arange(rows.shape[1]) < lengths[:, None], rows, texts.PAD)
  harmful = texts.is_harmful(config, rows)
  verdicts = judge(config, params, rows, lengths)

  def accuracy(search):
    settled = settle(config, key, search, verdicts, rows)
    right = settled * (1 - 2 * harmful) > 0
    shares = [jnp.sum(right & of) / jnp.maximum(jnp.sum(of), 1) for of in (harmful, ~harmful)]
    return sum(shares) / 2

  return {method: accuracy(search) for (method, _), search in SEARCHES.items()}
