"""Answers to queries of new tasks: in context, and after adaptation to the task; their pooling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit.datasets import Split
from experiments.kit.train import Trained, nan_unless, train
from experiments.mixing_adaptation.self_ensembled_icl import pretraining
from experiments.mixing_adaptation.self_ensembled_icl.pretraining import NUM_CLASSES, Decoder
from jaxlab import data, metrics, uncertainty
from jaxlab.data.prompt_variants import NUM_TEMPLATES
from jaxlab.experiment import Context

ICL, FT, SUPICL = "ICL", "FT", "SupICL"
# In one prompt all the demonstrations that an ensemble shows in several.
ICL_LONG, SUPICL_LONG = "ICL, all shots at once", "SupICL, all shots at once"
# Single runs as confident, on average, as the mean over all that varies.
SOFTENED = "softened single run"
METHODS = (ICL, FT, SUPICL, ICL_LONG, SUPICL_LONG)

RULES = {
  "mean": uncertainty.mean_probability,
  "maximum": uncertainty.max_probability,
  "vote": uncertainty.vote_probability,
}


def all_answers(config, context: Context, params) -> dict[str, np.ndarray]:
  """Label scores `[seeds, draws, templates, tasks, queries, classes]` of each method."""

  def one_seed(key, member):
    del key
    key, params = member
    task_key, adapt_key = jax.random.split(key)
    sentences, labels, _ = pretraining.sample_tasks(
      config,
      task_key,
      num_tasks=config.num_tasks,
      num_examples=config.num_train + config.num_test,
      label_noise=config.task_noise,
    )
    keys = jax.random.split(adapt_key, config.num_tasks)
    logits = jax.lax.map(
      lambda inputs: _one_task(config, params, *inputs), (keys, sentences, labels)
    )
    logits = {name: jnp.moveaxis(scores, 0, 2) for name, scores in logits.items()}
    return logits | {"labels": labels[:, config.num_train :]}

  keys = jax.random.split(jax.random.fold_in(context.key, 1), context.seeds)
  return context.over_seeds("answers", one_seed, arguments=(keys, params))


def _one_task(config, params, key, sentences, labels) -> dict[str, jax.Array]:
  """Label scores `[draws, templates, queries, classes]` of every method on one task."""
  count, draws = config.num_train, config.num_draws
  shown, queries = Split(sentences[:count], labels[:count]), sentences[count:]
  tune_key, sup_key, icl_key = jax.random.split(key, 3)

  def adapted(key, num_shots):
    return train(
      *(key, Decoder(config), adaptation_loss(config, shown, num_shots)),
      *(optax.adamw(config.adaptation_rate), (jnp.arange(count),)),
      num_steps=config.adaptation_steps,
      batch_size=config.adaptation_batch,
      start=Trained(params, {}),
    ).params

  keys = jax.random.split(icl_key, (draws, config.num_test))
  draw = functools.partial(_demonstrations, shown.labels, config.num_shots)
  rows = jax.vmap(jax.vmap(draw))(keys)
  together = jnp.moveaxis(rows, 0, 1).reshape(1, config.num_test, -1)
  ask = functools.partial(_label_scores, config, shown, queries)
  answers = {FT: ask(adapted(tune_key, 0), rows[:1, :, :0])}
  pairs = (ICL, SUPICL, rows), (ICL_LONG, SUPICL_LONG, together)
  for in_context, supervised, shots in pairs:
    both = jax.tree.map(
      lambda *leaves: jnp.stack(leaves), params, adapted(sup_key, shots.shape[-1])
    )
    scores = jax.lax.map(functools.partial(ask, rows=shots), both)
    answers |= {in_context: scores[0], supervised: scores[1]}
  return answers


def _demonstrations(labels, num_shots: int, key, exclude=None) -> jax.Array:
  return data.draw_demonstrations(key, labels, num_shots=num_shots, exclude=exclude)


def adaptation_loss(config, shown: Split, num_shots: int):
  """The engine's loss on rows of training examples, with demonstrations from the others."""
  on_prompts = pretraining.answer_loss(config)
  draw = jax.vmap(functools.partial(_demonstrations, shown.labels, num_shots))

  def loss(params, model_state, batch, key):
    (rows,) = batch
    template_key, draw_key = jax.random.split(key)
    templates = jax.random.randint(template_key, rows.shape, 0, NUM_TEMPLATES)
    others = draw(jax.random.split(draw_key, len(rows)), rows)
    prompts = jax.vmap(pretraining.render_prompt)(
      shown.inputs[rows], shown.inputs[others], shown.labels[others], templates
    )
    words = jnp.take_along_axis(data.label_words(templates), shown.labels[rows][:, None], axis=1)
    asked = prompts.lengths[:, None] - 1, words, jnp.ones(words.shape)
    return on_prompts(params, model_state, pretraining.Batch(prompts.tokens, *asked), key)

  return loss


def _label_scores(config, shown: Split, queries, params, rows) -> jax.Array:
  """Scores `[draws, templates, queries, classes]`, shown examples `rows [draws, queries, s]`."""

  def one_member(member):
    rows, template = member
    demonstrations = shown.inputs[rows][None], shown.labels[rows][None]
    prompts = data.render_prompts(queries, *demonstrations, template_ids=template[None])
    positions = prompts.lengths[0][:, None] - 1
    logits = Decoder(config).apply({"params": params}, prompts.tokens[0], positions)
    words = data.label_words(template)[:, None]
    return uncertainty.verbalizer_logits(logits, words, np.ones(words.shape, bool))

  draws = len(rows)
  members = jnp.repeat(rows, NUM_TEMPLATES, axis=0), jnp.tile(jnp.arange(NUM_TEMPLATES), draws)
  scores = jax.lax.map(one_member, members)
  return scores.reshape(draws, NUM_TEMPLATES, *scores.shape[1:])


# ------------------------------------------------------------------------------------- measurement


def variants(num_draws: int) -> list[tuple[str, str | None]]:
  """How predictions are pooled, and over what."""
  kinds = ("demonstrations", "templates", "both") if num_draws > 1 else ("templates",)
  pooled = [(rule, over) for over in kinds for rule in RULES]
  return [(name, None) for name in ("single run", SOFTENED, "batch calibration")] + pooled


@jax.jit
@jax.vmap
def measure(logits, labels) -> list[dict[str, jax.Array]]:
  """Scores of every one of the `variants`, for one method; of all seeds.

  Logits are `[draws, templates, tasks, queries, classes]`. Ensembles of demonstrations only are
  averaged over templates, and the other way round; single runs over both.
  """

  def flat(logits):
    return jax.nn.softmax(logits).reshape(*logits.shape[:2], -1, NUM_CLASSES)

  def groups(pooling, over):
    """Members on the second axis: `[groups, members, answers, classes]`."""
    probs = flat(logits)
    if pooling == SOFTENED:
      confidence = probs.mean((0, 1)).max(-1).mean()
      probs = flat(softened(logits, confidence))
    if pooling == "batch calibration":
      calibrate = jax.vmap(jax.vmap(jax.vmap(uncertainty.batch_calibration)))
      probs = flat(calibrate(logits))
    one, every = jnp.concatenate(probs)[:, None], jnp.concatenate(probs)[None]
    kinds = {"demonstrations": jnp.swapaxes(probs, 0, 1), "templates": probs, "both": every}
    return kinds.get(over, one)

  # The mean of a single run is its own probabilities.
  pooled = [
    jax.vmap(RULES.get(pooling, RULES["mean"]))(groups(pooling, over))
    for pooling, over in variants(len(logits))
  ]
  # All groups of all variants at once: their scores are the larger part of the program.
  rows = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *pooled)
  scores = jax.lax.map(lambda row: _scores(row, labels.reshape(-1)), rows)
  ends = np.cumsum([len(group.predictions) for group in pooled])
  means = [[x.mean(0) for x in jnp.split(values, ends[:-1])] for values in scores.values()]
  return [dict(zip(scores, row)) for row in zip(*means)]


def softened(logits, confidence):
  """Logits at the one temperature that makes them, on average, as confident as said."""

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    probs = jax.nn.softmax(logits / jnp.exp(middle))
    above = probs.max(-1).mean() > confidence
    return jnp.where(above, middle, low), jnp.where(above, high, middle)

  low, _ = jax.lax.fori_loop(0, 24, halve, (jnp.float32(-1.0), jnp.float32(3.0)))
  return logits / jnp.exp(low)


def _scores(pooled: uncertainty.EnsemblePrediction, truth):
  """Accuracy and calibration of all tasks' answers together."""
  right = nan_unless(jnp.isfinite(pooled.probs.max(-1)), jnp.float32(pooled.predictions == truth))
  chosen = jnp.take_along_axis(pooled.probs, truth[:, None], axis=-1)
  return {
    "accuracy": right.mean(),
    "ECE": metrics.expected_calibration_error(pooled.probs, truth, num_bins=10),
    "overconfidence": pooled.probs.max(-1).mean() - right.mean(),
    "NLL": -jnp.log(jnp.maximum(chosen, 1e-12)).mean(),
  }
