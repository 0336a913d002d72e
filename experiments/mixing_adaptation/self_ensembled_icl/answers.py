"""Answers to queries of new tasks: in context, and after adaptation to the task; their pooling."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit.train import Trained, train
from experiments.mixing_adaptation.self_ensembled_icl import pretraining
from experiments.mixing_adaptation.self_ensembled_icl.pretraining import NUM_CLASSES, NUM_WORDS
from jaxlab import data, metrics, training, uncertainty
from jaxlab.data.prompt_variants import NUM_TEMPLATES
from jaxlab.experiment import Context

RULES = {
  "mean": uncertainty.mean_probability,
  "maximum": uncertainty.max_probability,
  "vote": uncertainty.vote_probability,
}


class Task(NamedTuple):
  """Labeled examples and queries."""

  sentences: jax.Array
  labels: jax.Array
  queries: jax.Array
  answers: jax.Array


def all_answers(config, context: Context, params) -> dict[str, np.ndarray]:
  """Label scores `[seeds, draws, templates, tasks, queries, classes]` of each method."""

  def one_seed(key, member):
    del key
    key, params = member
    task_key, adapt_key = jax.random.split(key)
    count = config.num_train
    drawn = pretraining.sample_tasks(
      config, task_key, num_tasks=config.num_tasks, num_examples=count + config.num_test
    )
    sentences, labels = drawn.sentences, drawn.labels
    tasks = Task(sentences[:, :count], labels[:, :count], sentences[:, count:], labels[:, count:])
    keys = jax.random.split(adapt_key, config.num_tasks)
    logits = jax.lax.map(lambda inputs: _one_task(config, params, *inputs), (keys, tasks))
    logits = {name: jnp.moveaxis(scores, 0, 2) for name, scores in logits.items()}
    return logits | {"tasks": tasks, "labels": tasks.answers}

  keys = jax.random.split(jax.random.fold_in(context.key, 1), context.seeds)
  answers = training.over_seeds(
    context.key, one_seed, num_seeds=context.seeds, arguments=(keys, params), mesh=context.mesh
  )
  tasks = Task(*map(np.asarray, answers.pop("tasks")))
  return answers | {"linear": _linear_accuracy(tasks)}


def _one_task(config, params, key, task: Task) -> dict[str, jax.Array]:
  """Label scores `[draws, templates, queries, classes]` of the three methods on one task."""
  tune_key, sup_key, icl_key = jax.random.split(key, 3)

  def adapted(key, num_shots):
    return train(
      key,
      pretraining.make_decoder(config),
      adaptation_loss(config, task, num_shots),
      optax.adamw(config.adaptation_rate),
      (jnp.arange(config.num_train),),
      num_steps=config.adaptation_steps,
      batch_size=config.adaptation_batch,
      start=Trained(params, {}),
    ).params

  tuned, supervised = adapted(tune_key, 0), adapted(sup_key, config.num_shots)
  draw = functools.partial(data.draw_demonstrations, labels=task.labels, num_shots=config.num_shots)
  keys = jax.random.split(icl_key, (config.num_draws, config.num_test))
  rows = jax.vmap(jax.vmap(lambda key: draw(key)))(keys)
  ask = functools.partial(_label_scores, config, task)
  in_context = jax.lax.map(
    lambda weights: ask(weights, rows),
    jax.tree.map(lambda *leaves: jnp.stack(leaves), params, supervised),
  )
  return {"ICL": in_context[0], "FT": ask(tuned, rows[:1, :, :0]), "SupICL": in_context[1]}


def adaptation_loss(config, task: Task, num_shots: int):
  """The engine's loss on rows of training examples, with demonstrations from the others."""
  on_prompts = pretraining.answer_loss(config)

  def loss(params, model_state, batch, key):
    (rows,) = batch
    template_key, draw_key = jax.random.split(key)
    templates = jax.random.randint(template_key, rows.shape, 0, NUM_TEMPLATES)
    shown = jax.vmap(
      lambda key, row: data.draw_demonstrations(key, task.labels, num_shots=num_shots, exclude=row)
    )(jax.random.split(draw_key, len(rows)), rows)
    prompts = jax.vmap(pretraining.render_prompt)(
      task.sentences[rows], task.sentences[shown], task.labels[shown], templates
    )
    words = jnp.take_along_axis(data.label_words(templates), task.labels[rows][:, None], axis=1)
    asked = prompts.lengths[:, None] - 1, words, jnp.ones(words.shape)
    return on_prompts(params, model_state, pretraining.Batch(prompts.tokens, *asked), key)

  return loss


def _label_scores(config, task: Task, params, rows) -> jax.Array:
  """Scores `[draws, templates, queries, classes]`, shown examples `rows [draws, queries, s]`."""
  decoder = pretraining.make_decoder(config)

  def one_member(member):
    rows, template = member
    prompts = data.render_prompts(
      task.queries,
      task.sentences[rows][None],
      task.labels[rows][None],
      template_ids=template[None],
    )
    logits = decoder.apply({"params": params}, prompts.tokens[0], prompts.lengths[0][:, None] - 1)
    words = data.label_words(template)[:, None]
    return uncertainty.verbalizer_logits(logits, words, np.ones(words.shape, bool))

  draws = len(rows)
  members = jnp.repeat(rows, NUM_TEMPLATES, axis=0), jnp.tile(jnp.arange(NUM_TEMPLATES), draws)
  scores = jax.lax.map(one_member, members)
  return scores.reshape(draws, NUM_TEMPLATES, *scores.shape[1:])


def _linear_accuracy(tasks: Task) -> np.ndarray:
  """A logistic regression that is told the words' vectors: mean accuracy over tasks, per seed."""
  from sklearn.linear_model import LogisticRegression

  vectors = np.asarray(data.word_vectors())

  def features(sentences):
    # Of unit variance, so that the default penalty fits.
    return vectors[sentences].mean(-2) * np.sqrt(NUM_WORDS)

  def one_task(sentences, labels, queries, answers):
    model = LogisticRegression(max_iter=1000).fit(features(sentences), labels)
    return np.mean(model.predict(features(queries)) == answers)

  return np.array([np.mean([one_task(*task) for task in zip(*seed)]) for seed in zip(*tasks)])


# ------------------------------------------------------------------------------------- measurement


def variants(num_draws: int) -> list[tuple[str, str | None]]:
  """How predictions are pooled, and over what."""
  kinds = ("demonstrations", "templates", "both") if num_draws > 1 else ("templates",)
  pooled = [(rule, over) for over in kinds for rule in RULES]
  return [("single run", None), ("batch calibration", None), *pooled]


def measure(config, logits, labels) -> list[dict[str, jax.Array]]:
  """Scores of every one of the `variants`, for one method and seed.

  Logits are `[draws, templates, tasks, queries, classes]`. Ensembles of demonstrations only are
  averaged over templates, and the other way round; single runs over both.
  """
  over_batch = jax.vmap(jax.vmap(jax.vmap(uncertainty.batch_calibration)))

  def groups(probs, over):
    """Members on the second axis: `[groups, members, tasks, queries, classes]`."""
    both = probs.reshape(1, -1, *probs.shape[2:])
    demonstrations = jnp.swapaxes(probs, 0, 1)
    kinds = {"demonstrations": demonstrations, "templates": probs, "both": both}
    return kinds.get(over, both[0][:, None])

  def pool(pooling, over):
    scores = over_batch(logits) if pooling == "batch calibration" else logits
    rule = RULES.get(pooling, RULES["mean"])  # Of a single run: its own probabilities.
    members = groups(jax.nn.softmax(scores), over)
    return jax.vmap(rule)(members.reshape(*members.shape[:2], -1, NUM_CLASSES))

  pooled = [pool(*variant) for variant in variants(logits.shape[0])]
  # All groups of all variants at once: their scores are the larger part of the program.
  rows = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *pooled)
  scores = jax.lax.map(lambda row: _scores(config, row, labels), rows)
  ends = np.cumsum([len(group.predictions) for group in pooled])
  means = [[x.mean(0) for x in jnp.split(values, ends[:-1])] for values in scores.values()]
  return [dict(zip(scores, row)) for row in zip(*means)]


def _scores(config, pooled: uncertainty.EnsemblePrediction, labels):
  """Accuracy and calibration; the error is of all tasks' answers together, and of each task's."""
  truth = labels.reshape(-1)
  right = pooled.predictions == truth
  error = functools.partial(metrics.expected_calibration_error, num_bins=config.num_bins)
  by_task = pooled.probs.reshape(*labels.shape, NUM_CLASSES)
  chosen = jnp.take_along_axis(pooled.probs, truth[:, None], axis=-1)
  return {
    "accuracy": right.mean(),
    "ECE": error(pooled.probs, truth),
    "ECE per task": jax.vmap(error)(by_task, labels).mean(),
    "overconfidence": pooled.probs.max(-1).mean() - right.mean(),
    "NLL": -jnp.log(jnp.maximum(chosen, 1e-12)).mean(),
  }
