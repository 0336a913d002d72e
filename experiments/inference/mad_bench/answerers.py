"""Trains models that answer questions about pictures, and evaluates their answers."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util

from experiments.inference.mad_bench import questions
from experiments.inference.mad_bench.questions import KINDS, NEUTRAL, PLAIN, VERIFY, WARNING
from experiments.kit.language_models import decoder
from experiments.kit.train import Trained, adamw_cosine, nan_unless, train
from jaxlab import data, losses, metrics, models, samplers, training
from jaxlab.data import PromptBatch
from jaxlab.metrics.false_premises import ANSWER_END_TOKEN, CHECK_TOKEN, NO_SUCH_TOKEN

BIASES = np.linspace(0.0, 20.0, 81)  # Added to the logit of `no such`, to choose from.
_POOL = 24  # Pictures drawn for each that is kept of a category.
_FORCED = len(KINDS)  # The plain prompt, whose answer begins with `no such`.


def network(config) -> models.SceneQuestionAnswerer | models.DecoderLM:
  """The model: of pictures, or a decoder that reads the tokens of their cells before the text."""
  (width, num_layers), num_heads = config.decoder, config.num_heads
  if config.pixels:
    return models.SceneQuestionAnswerer(len(data.PROMPT_WORDS), width, num_layers, num_heads)
  sizes = {"hidden_size": width, "num_layers": num_layers, "num_heads": num_heads}
  length = questions.NUM_SEEN + questions.WIDTH + 1
  return decoder(questions.NUM_TOKENS, length, family="gpt2", unstacked=True, **sizes)


def answer_loss(model):
  """The engine's loss on `Rows`."""

  def loss(params, model_state, batch, key):
    del model_state, key
    seen, tokens, mask = batch
    if isinstance(model, models.DecoderLM):
      logits = model.apply({"params": params}, jnp.concatenate([seen, tokens], axis=1)).logits
      logits = logits[:, seen.shape[1] :]
    else:
      logits = model.apply({"params": params}, seen, tokens)
    return training.LossOutput(-losses.causal_token_log_probs(logits, tokens), mask)

  return loss


def write(model, params, seen, prompts, lengths, num_new: int) -> samplers.GenerateOutput:
  """Greedy answers to prompts of the given lengths about what is seen."""
  if isinstance(model, models.DecoderLM):
    fns, lengths = samplers.flax_decode_fns(model, params), lengths + seen.shape[1]
    prompts = jnp.concatenate([seen, prompts], axis=1)
  else:
    fns = model.decode_fns(params, seen)
  options = {"max_new_tokens": num_new, "temperature": 0.0, "eos_token_id": ANSWER_END_TOKEN}
  return samplers.generate(jax.random.key(0), fns, prompts, lengths, return_logits=True, **options)


def initial(config, key) -> chex.ArrayTree:
  """Parameters before training."""
  text = jnp.zeros((1, questions.WIDTH), jnp.int32)
  examples = (jnp.zeros((1, 24, 24, 3)), text) if config.pixels else (text,)
  return network(config).init(key, *examples)["params"]


def fit(config, key, start: chex.Array, setting) -> dict[str, Any]:
  """Trains on a mix of texts, and measures answers to other questions.

  The setting is that of `questions.draw_mix`, and whether training begins anew, `fresh`, or from a
  vector of parameters. Gives what `summary` gives, this vector, and the share admitted.
  """
  init_key, train_key, test_key = jax.random.split(key, 3)
  # All mixes of a seed share the texts up to their shares; the base model has others.
  train_key = jax.random.fold_in(train_key, setting["fresh"].astype(jnp.int32))
  first, unravel = flatten_util.ravel_pytree(initial(config, init_key))
  start = Trained(unravel(jnp.where(setting["fresh"] > 0, first, start)), {})
  options = {"weight_decay": 0.01, "num_warmup": config.num_warmup}
  optimizer = adamw_cosine(config.learning_rate, config.num_steps, **options)
  sizes = {"num_steps": config.num_steps, "batch_size": config.num_questions}
  loss = answer_loss(network(config))
  draw = lambda key, size: questions.draw_mix(key, size, setting, pixels=config.pixels)  # noqa: E731
  trained = train(train_key, network(config), loss, optimizer, draw, start=start, **sizes)
  # Pictures of validation, and others of the test.
  tests = jax.lax.map(lambda key: draw_test(config, key), jax.random.split(test_key))
  found = jax.lax.map(lambda x: measure(config, trained.params, x), tests)
  parts = (jax.tree.map(lambda x, i=i: x[i], found) for i in range(2))
  return {
    **nan_unless(trained.bad_step < 0, summary(*parts, setting["held_out"])),
    "admitted": jnp.mean(tests.valid),
    "params": flatten_util.ravel_pytree(trained.params)[0],
    "bad_step": trained.bad_step,
  }


class Questions(NamedTuple):
  """Pictures with a question of each category, and its twin with a false premise."""

  seen: chex.Array  # Pictures or cells, `[n, 6, ...]`.
  tokens: chex.Array  # The questions, int32 `[n, 6, 2, 9]`.
  answers: chex.Array  # The right answers, int32 `[n, 6, 2, 3]`.
  valid: chex.Array  # Whether the picture admits the question, bool `[n, 6]`.


def draw_test(config, key) -> Questions:
  """Draws pictures with a question of each category, if there are enough among many."""
  (scene_key, ask_key), num = jax.random.split(key), config.num_questions_each
  scenes = data.sample_grid_scenes(scene_key, _POOL * num)
  asked = questions.ask(ask_key, scenes)
  kinds = jnp.arange(len(data.CATEGORIES))[:, None]
  admits = asked.valid[None] & (asked.category[None] == kinds)
  first = jnp.argsort(~admits, axis=1, stable=True)[:, :num].T  # `[n, 6]`.
  tokens, answers = (jnp.moveaxis(x[:, first], 0, 2) for x in asked[:2])
  seen = questions.look(scenes, config.pixels)
  return Questions(seen[first], tokens, answers, admits[kinds[:, 0][None], first])


def measure(config, params, test: Questions) -> dict[str, jax.Array]:
  """Answers all questions, prompted in every way.

  Returns:
    Which answers are right token for token, "exact", bool `[6, 2, 6, n]`: to the four kinds of
    prompts, if the answer to the plain one had begun with `no such`, and of a model that always
    objects. "verified", which verdicts are right, and "margin", by how much the first token of the
    plain answer is likelier than `no such`, `[6, 2, n]`.
  """
  model, num = network(config), len(test.seen)
  num_new = questions.WIDTH - questions.PROMPT_WIDTH

  def one(inputs):
    seen, tokens, answers, objection, holds = inputs
    asked = jnp.pad(questions.prompts(tokens), ((0, 0), (0, 0), (0, 1)))
    asked = jnp.concatenate([asked, asked[PLAIN, None].at[..., -1].set(NO_SUCH_TOKEN)])
    rows = asked.reshape(-1, asked.shape[-1])
    lengths = jnp.repeat(questions.PROMPT_WIDTH + (jnp.arange(len(asked)) == _FORCED), num)
    seen = jnp.tile(seen, (len(asked), *[1] * (seen.ndim - 1)))
    found = write(model, params, seen, rows, lengths, num_new)
    written = found.tokens.reshape(len(asked), num, -1)
    forced = jnp.pad(written[_FORCED], ((0, 0), (1, 0)), constant_values=NO_SUCH_TOKEN)
    always = jnp.pad(objection, ((0, 0), (0, num_new - objection.shape[1])))
    # As if every premise held: the judge then compares the answers token for token.
    right = PromptBatch(tokens, answers, jnp.ones(num, bool), None, None)
    judged = [*written[:_FORCED], forced[:, :num_new], always]
    verdict = questions.verdicts(holds)
    logits = found.logits.reshape(len(asked), num, num_new, -1)[PLAIN, :, 0]
    is_objection = jnp.arange(logits.shape[-1])[None] == NO_SUCH_TOKEN
    best = jnp.max(jnp.where(is_objection, -jnp.inf, logits), axis=-1)
    return {
      "exact": jnp.stack([metrics.judge_answers(x, right).correct for x in judged]),
      "verified": (written[VERIFY, :, 0] == CHECK_TOKEN) & (written[VERIFY, :, 2] == verdict),
      "margin": best - logits[:, NO_SUCH_TOKEN],
    }

  def flat(x):
    return jnp.moveaxis(x, 0, 2).reshape(-1, num, *x.shape[3:])

  shape = test.tokens.shape[:3]
  seen = jnp.broadcast_to(test.seen[:, :, None], (*shape, *test.seen.shape[2:]))
  holds = jnp.broadcast_to(jnp.arange(2) == 0, shape)
  objection = jnp.broadcast_to(test.answers[:, :, 1:], test.answers.shape)
  inputs = (seen, test.tokens, test.answers, objection, holds)
  found = jax.lax.map(one, tuple(map(flat, inputs)))
  return jax.tree.map(lambda x: x.reshape(*shape[1:], *x.shape[1:]), found)


def summary(
  validation: dict[str, chex.Array], test: dict[str, chex.Array], held_out: chex.Numeric
) -> dict[str, jax.Array]:
  """Accuracies of all ways to prompt, the bias of `no such` by validation; shares.

  The category that is `held_out`, or all that ever are if it is none, chooses the bias.

  Returns:
    "accuracy" `[methods, 6, 2]`, of true and of false premises; "harmonic mean" of both in
    the held-out category `[methods]`; "verified" `[6]`; "noticed" `[6]`, plain answers to false
    premises that begin as objections, with whatever words behind; "bias"; and "p value", that the
    warning changes nothing there.
  """
  ever = jnp.array(questions.HELD_OUT)
  is_held_out = (ever == held_out) | (held_out == questions.NONE)

  def with_bias(found, bias):
    either = (found["exact"][:, :, i] for i in (_FORCED, PLAIN))
    return jnp.where(found["margin"] <= bias, *either)

  def report(correct):
    """Of `[6, 2, n]`: the category that is held out stands in the place of the others."""
    correct = correct[jnp.where(is_held_out, ever, held_out.astype(int))]
    category, false, _ = jnp.indices(correct.shape)
    return metrics.deception_report(
      correct.ravel(), category.ravel(), false.ravel(), num_categories=len(ever)
    )

  tried = jax.lax.map(lambda bias: report(with_bias(validation, bias)).harmonic_mean, BIASES)
  bias = jnp.asarray(BIASES)[jnp.argmax(tried)]
  plain, warned, neutral, always = (test["exact"][:, :, i] for i in (PLAIN, WARNING, NEUTRAL, -1))
  every = jnp.stack([plain, warned, neutral, with_bias(test, bias), always])
  # Equal answers to other categories do not count.
  deceptive = (every[:2, ever, 1] & is_held_out[None, :, None]).reshape(2, -1)
  return {
    "accuracy": jnp.mean(every, axis=-1),
    "harmonic mean": jnp.stack([report(x).harmonic_mean for x in every]),
    "verified": jnp.mean(test["verified"], axis=(1, 2)),
    "noticed": jnp.mean(test["margin"][:, 1] < 0, axis=1),
    "bias": bias,
    "p value": metrics.mcnemar_test(*deceptive).p_value,
  }
