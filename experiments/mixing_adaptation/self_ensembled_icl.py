"""Pooling one model's predictions over demonstrations and wordings calibrates few-shot answers.

A decoder is pretrained to label sentences by hidden rules from demonstrations. With 50 labelled
examples of a new task it then answers in context (ICL), after fine-tuning without demonstrations
(FT), or after fine-tuning on prompts that hold some (SupICL). Every training prompt draws its
wording and its demonstrations anew, so every variation is one that the model has met. The paper
does this with Flan-T5 on text; here the language is synthetic, at every size.
"""

import dataclasses
import functools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.mixing_adaptation.icl_decoder import Decoder
from jaxlab import data, metrics, training, uncertainty
from jaxlab.data.prompt_variants import PROMPT_VOCAB_SIZE

PAPER = "self_ensembled_icl"
RULES = {
  "mean": uncertainty.mean_probability,
  "maximum": uncertainty.max_probability,
  "vote": uncertainty.vote_probability,
}
_TEMPLATES = 4
_WORDS = 8
_CLASSES = 4


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, its pretraining, and the tasks that it is adapted to."""

  embed_dim: int = 64  # Width of the decoder.
  num_layers: int = 3  # Its blocks.
  num_heads: int = 4  # Its attention heads.
  mlp_ratio: int = 2  # Hidden width of the perceptrons over the decoder's.
  pretraining_steps: int = 500  # AdamW steps on fresh tasks.
  pretraining_batch: int = 128  # Tasks a step.
  max_shots: int = 4  # Most demonstrations in pretraining.
  pretraining_rate: float = 3e-3  # Peak; warm-up over a tenth, then a cosine to a tenth.
  repeat_pool: int = 3  # Different sentences of a prompt that repeats them.
  repeat_until: float = 0.5  # Share of pretraining by which such prompts have faded out.
  num_tasks: int = 10  # New tasks.
  num_train: int = 50  # Labelled examples of each.
  num_test: int = 200  # Queries of each.
  num_shots: int = 3  # Demonstrations in a prompt of ICL and SupICL.
  num_draws: int = 5  # Draws of demonstrations that are pooled.
  adaptation_steps: int = 150  # AdamW steps of FT and SupICL.
  adaptation_batch: int = 8  # Examples a step.
  adaptation_rate: float = 1e-3  # Of FT and SupICL, constant.
  num_bins: int = 10  # Bins of the calibration error.


PRESETS = {
  "smoke": Config(
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    pretraining_steps=2,
    pretraining_batch=8,
    max_shots=2,
    num_tasks=2,
    num_train=8,
    num_test=6,
    num_shots=2,
    num_draws=2,
    adaptation_steps=2,
    adaptation_batch=4,
  ),
  "laptop": Config(),
  "paper": Config(
    embed_dim=512,
    num_layers=12,
    num_heads=8,
    mlp_ratio=4,
    pretraining_steps=30_000,
    pretraining_batch=256,
    max_shots=10,
    pretraining_rate=3e-4,
    num_tasks=20,
    num_test=500,
    # 200 epochs of 50 examples.
    adaptation_steps=1250,
    adaptation_rate=5e-5,
  ),
}


def run(config: Config, context: common.Context) -> common.Results:
  """Answers of all methods under all variations, then single runs and ensembles of them."""
  answers = context.cached("answers", _answers, config, context)
  labels = answers.pop("labels")
  measure = jax.jit(jax.vmap(functools.partial(_measure, config)))
  rows: dict[str, dict] = {}
  for method in ("ICL", "FT", "SupICL"):
    for name, row in measure(answers[method], labels).items():
      rows[f"{method}, {name}"] = {label: np.asarray(values) for label, values in row.items()}
  rows["linear model on word vectors"] = {"accuracy": answers["linear"]}
  rows["chance"] = {"accuracy": 1 / _CLASSES}
  return common.Results(rows, {"pretraining": answers["pretraining"].mean(0)})


# ------------------------------------------------------------------------------------ pretraining


class Batch(NamedTuple):
  """Prompts and the answers asked for.

  Attributes:
    tokens: `[b, L]`.
    positions: where answers are read, `[b, a]`.
    answers: label words, `[b, a]`.
    weights: how much each counts, `[b, a]`.
  """

  tokens: jax.Array
  positions: jax.Array
  answers: jax.Array
  weights: jax.Array


def _decoder(config: Config) -> Decoder:
  shots = max(config.max_shots, config.num_shots)
  return Decoder(
    PROMPT_VOCAB_SIZE,
    shots * (_WORDS + 5) + _WORDS + 2,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    mlp_ratio=config.mlp_ratio,
  )


def _render(sentences, shots, labels, templates) -> data.Prompts:
  """Prompts of b queries, a wording each: tokens `[b, L]`, lengths `[b]`."""
  prompts = jax.vmap(
    lambda words, shown, classes, template: data.render_prompts(
      words[None], shown[None, None], classes[None, None], template_ids=template[None]
    )
  )(sentences, shots, labels, templates)
  return jax.tree.map(lambda x: x[:, 0, 0], prompts)


def _pretraining_batch(config: Config, key, progress) -> Batch:
  """Fresh tasks, of which every label in the prompt is an answer, given those before it.

  Early prompts repeat their sentences: copying the label of an equal sentence is soon learned, and
  comparing similar ones grows from it. `progress` is the share of pretraining done.

  Where labels stand before their sentences only the query has an answer, so there a random number
  of demonstrations is cut off the front. Every prompt counts the same.
  """
  task_key, template_key, cut_key, repeat_key, pool_key = jax.random.split(key, 5)
  shots, size = config.max_shots, config.pretraining_batch
  tasks = data.sample_rule_tasks(task_key, num_tasks=size, num_examples=shots + 1)
  templates = jax.random.randint(template_key, (size,), 0, _TEMPLATES)
  share = jnp.clip(1 - progress / config.repeat_until, 0, 1)
  repeats = jax.random.bernoulli(repeat_key, share, (size, 1))
  pooled = jax.random.randint(pool_key, (size, shots + 1), 0, config.repeat_pool)
  rows = jnp.where(repeats, pooled, jnp.arange(shots + 1))
  sentences = jnp.take_along_axis(tasks.sentences, rows[..., None], axis=1)
  labels = jnp.take_along_axis(tasks.labels, rows, axis=1)
  prompts = _render(sentences[:, -1], sentences[:, :-1], labels[:, :-1], templates)
  label_first, longer = (templates == 1)[:, None], 2 * (templates == 2)
  stride, order = _WORDS + 3 + longer, jnp.arange(shots + 1)
  cut = jnp.where(templates == 1, jax.random.randint(cut_key, (size,), 0, shots + 1), 0) * stride
  # What is cut off lands behind the answer, which does not see it.
  tokens = jax.vmap(jnp.roll)(prompts.tokens, -cut)
  last = (prompts.lengths - 1 - cut)[:, None]
  dense = stride[:, None] * order + _WORDS + longer[:, None] // 2
  return Batch(
    tokens,
    jnp.where(label_first, last, dense),
    jnp.take_along_axis(data.label_words(templates), labels, axis=1),
    jnp.where(label_first, order == shots, 1 / (shots + 1)),
  )


def _loss(config: Config):
  """Cross-entropy of the label words over the whole vocabulary."""

  def loss(params, model_state, batch, key):
    del model_state, key
    logits = _decoder(config).apply({"params": params}, batch.tokens, batch.positions)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.answers)
    return training.LossOutput(values, batch.weights)

  return loss


def _pretraining_optimizer(config: Config) -> optax.GradientTransformation:
  steps, peak = config.pretraining_steps, config.pretraining_rate
  schedule = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps, peak / 10)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))


def _init(config: Config, key):
  tokens = jnp.zeros((1, _WORDS + 2), jnp.int32)
  return _decoder(config).init(key, tokens, tokens[:, :1])["params"]


def _train(config: Config, key, params, optimizer, make_batch, num_steps):
  """Parameters after training, and the losses `[num_steps]`.

  Batches are made from a key and the share of training done.
  """
  state_key, batch_key = jax.random.split(key)
  update = training.build_update(_loss(config), optimizer)

  def step(state, inputs):
    state, measured = update(state, make_batch(*inputs))
    return state, measured["loss"]

  state = training.init_state(state_key, params, optimizer)
  inputs = jax.random.split(batch_key, num_steps), jnp.arange(num_steps) / num_steps
  state, values = jax.lax.scan(step, state, inputs)
  return state.params, values


# -------------------------------------------------------------------------------------- new tasks


class Task(NamedTuple):
  """Labelled examples and queries."""

  sentences: jax.Array
  labels: jax.Array
  queries: jax.Array
  answers: jax.Array


def _answers(config: Config, context: common.Context) -> dict[str, np.ndarray]:
  """Label scores `[seeds, draws, templates, tasks, queries, classes]` of each method."""

  def one_seed(key):
    init_key, train_key, task_key, adapt_key = jax.random.split(key, 4)
    params, values = _train(
      config,
      train_key,
      _init(config, init_key),
      _pretraining_optimizer(config),
      functools.partial(_pretraining_batch, config),
      config.pretraining_steps,
    )
    count = config.num_train
    drawn = data.sample_rule_tasks(
      task_key, num_tasks=config.num_tasks, num_examples=count + config.num_test
    )
    sentences, labels = drawn.sentences, drawn.labels
    tasks = Task(sentences[:, :count], labels[:, :count], sentences[:, count:], labels[:, count:])
    keys = jax.random.split(adapt_key, config.num_tasks)
    found = jax.lax.map(lambda inputs: _one_task(config, params, *inputs), (keys, tasks))
    found = {name: jnp.moveaxis(logits, 0, 2) for name, logits in found.items()}
    return found | {"pretraining": values, "tasks": tasks, "labels": tasks.answers}

  found = training.over_seeds(context.key, one_seed, num_seeds=context.seeds, mesh=context.mesh)
  tasks = Task(*map(np.asarray, found.pop("tasks")))
  return found | {"linear": _linear_accuracy(tasks)}


def _one_task(config: Config, params, key, task: Task) -> dict[str, jax.Array]:
  """Label scores `[draws, templates, queries, classes]` of the three methods on one task."""
  tune_key, sup_key, icl_key = jax.random.split(key, 3)
  optimizer = optax.adamw(config.adaptation_rate)

  def adapted(key, num_shots):
    make = functools.partial(_adaptation_batch, config, task, num_shots)
    return _train(config, key, params, optimizer, make, config.adaptation_steps)[0]

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


def _adaptation_batch(config: Config, task: Task, num_shots: int, key, progress) -> Batch:
  """Training examples, each prompted with demonstrations drawn from the others."""
  del progress
  row_key, template_key, draw_key = jax.random.split(key, 3)
  size = config.adaptation_batch
  rows = jax.random.permutation(row_key, config.num_train)[:size]
  templates = jax.random.randint(template_key, (size,), 0, _TEMPLATES)
  shown = jax.vmap(
    lambda key, row: data.draw_demonstrations(key, task.labels, num_shots=num_shots, exclude=row)
  )(jax.random.split(draw_key, size), rows)
  prompts = _render(task.sentences[rows], task.sentences[shown], task.labels[shown], templates)
  answers = jnp.take_along_axis(data.label_words(templates), task.labels[rows][:, None], axis=1)
  return Batch(prompts.tokens, prompts.lengths[:, None] - 1, answers, jnp.ones(answers.shape))


def _label_scores(config: Config, task: Task, params, rows) -> jax.Array:
  """Scores `[draws, templates, queries, classes]`, shown examples `rows [draws, queries, s]`."""
  decoder = _decoder(config)

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
  members = jnp.repeat(rows, _TEMPLATES, axis=0), jnp.tile(jnp.arange(_TEMPLATES), draws)
  scores = jax.lax.map(one_member, members)
  return scores.reshape(draws, _TEMPLATES, *scores.shape[1:])


def _linear_accuracy(tasks: Task) -> np.ndarray:
  """A logistic regression that is told the words' vectors: mean accuracy over tasks, a seed."""
  from sklearn.linear_model import LogisticRegression

  vectors = np.asarray(data.word_vectors())

  def features(sentences):
    # Of unit variance, so that the default penalty fits.
    return vectors[sentences].mean(-2) * np.sqrt(_WORDS)

  def one_task(sentences, labels, queries, answers):
    model = LogisticRegression(max_iter=1000).fit(features(sentences), labels)
    return np.mean(model.predict(features(queries)) == answers)

  return np.array([np.mean([one_task(*task) for task in zip(*seed)]) for seed in zip(*tasks)])


# ------------------------------------------------------------------------------------- measurement


def _measure(config: Config, logits, labels) -> dict[str, dict[str, jax.Array]]:
  """Single runs and ensembles of one method and seed.

  Logits are `[draws, templates, tasks, queries, classes]`. Ensembles of demonstrations only are
  averaged over templates, and the other way round; single runs over both.
  """
  draws = logits.shape[0]
  over_batch = jax.vmap(jax.vmap(jax.vmap(uncertainty.batch_calibration)))

  def groups(logits, kind):
    """Members on the second axis: `[groups, members, tasks, queries, classes]`."""
    probs = jax.nn.softmax(logits)
    both = probs.reshape(1, -1, *probs.shape[2:])
    return {
      "single run": both[0][:, None],
      "demonstrations": jnp.swapaxes(probs, 0, 1),
      "templates": probs,
      "both": both,
    }[kind]

  def scores(rule, probs):
    def one_group(members):
      flat = members.reshape(len(members), -1, _CLASSES)
      return _scores(config, rule(flat), labels)

    return jax.tree.map(lambda values: values.mean(0), jax.vmap(one_group)(probs))

  mean = RULES["mean"]
  found = {
    "single run": scores(mean, groups(logits, "single run")),
    "single run, batch calibration": scores(mean, groups(over_batch(logits), "single run")),
  }
  for kind in ("demonstrations", "templates", "both") if draws > 1 else ("templates",):
    for name, rule in RULES.items():
      found[f"{name} over {kind}"] = scores(rule, groups(logits, kind))
  return found


def _scores(config: Config, pooled: uncertainty.EnsemblePrediction, labels):
  """Accuracy and calibration; the error is of all tasks' answers together, and of each task's."""
  truth = labels.reshape(-1)
  right = pooled.predictions == truth
  error = functools.partial(metrics.expected_calibration_error, num_bins=config.num_bins)
  by_task = pooled.probs.reshape(*labels.shape, _CLASSES)
  chosen = jnp.take_along_axis(pooled.probs, truth[:, None], axis=-1)
  return {
    "accuracy": right.mean(),
    "ECE": error(pooled.probs, truth),
    "ECE a task": jax.vmap(error)(by_task, labels).mean(),
    "over-confidence": pooled.probs.max(-1).mean() - right.mean(),
    "NLL": -jnp.log(jnp.maximum(chosen, 1e-12)).mean(),
  }


# ------------------------------------------------------------------------------- claims and figure


def _ensemble(method: str) -> str:
  return f"{method}, mean over {'templates' if method == 'FT' else 'both'}"


def claims(results: common.Results) -> list[common.Claim]:
  """What pooling does to either way in context, and how the methods trade accuracy off."""

  def lower(text, method, baseline, **more):
    return common.compare(text, method, baseline, better="lower", **more)

  def single(method, name):
    return results[f"{method}, single run", name]

  found = []
  for method in ("ICL", "SupICL"):
    pooled, vote = _ensemble(method), f"{method}, vote over both"
    error, runs = results[pooled, "ECE"], single(method, "ECE")
    calibrated = results[f"{method}, single run, batch calibration", "ECE"]
    accuracy = results[pooled, "accuracy"]
    found += [
      lower(f"{method}: the mean over both lowers the ECE of single runs", error, runs),
      lower(
        f"{method}: the mean over both lowers it by a fifth",
        error,
        0.8 * runs,
        paper="43% lower on average",
      ),
      common.compare(
        f"{method}: the mean over both is as accurate", accuracy, single(method, "accuracy")
      ),
      lower(f"{method}: the mean's ECE is below the vote's", error, results[vote, "ECE"]),
      lower(f"{method}: the mean's ECE is below batch calibration's", error, calibrated),
    ]
  for method in ("FT", "SupICL"):
    for name, text in (("accuracy", "accurate"), ("over-confidence", "over-confident")):
      found.append(
        common.compare(
          f"single runs: {method} more {text} than ICL", single(method, name), single("ICL", name)
        )
      )
  methods = ("ICL", "FT", "SupICL")
  accuracy = np.stack([single(method, "accuracy") for method in methods])
  error = np.stack([single(method, "ECE") for method in methods])
  of_best = np.take_along_axis(error, accuracy.argmax(0)[None], axis=0)[0]
  found.append(
    common.compare(
      "single runs: the most accurate method is not the best calibrated", of_best, error.min(0)
    )
  )
  # Accuracy lost to the best single run, and ECE above the best one's.
  lost = [(accuracy.max(0) - a) + (e - error.min(0)) for a, e in zip(accuracy, error)]
  nearest = np.min(
    [
      (accuracy.max(0) - results[name, "accuracy"]) + (results[name, "ECE"] - error.min(0))
      for name in map(_ensemble, methods)
    ],
    axis=0,
  )
  found.append(
    lower(
      "an ensemble comes nearer to the best of both than all single runs", nearest, np.min(lost, 0)
    )
  )
  return found


def figure(results: common.Results):
  """Accuracy against calibration, single runs and ensembles; the pretraining's loss."""
  import matplotlib.pyplot as plt

  fig, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
  colors = {"ICL": "tab:blue", "FT": "tab:green", "SupICL": "tab:red"}
  marks = {"single run": "o", "mean over": "*", "vote over": "^", "maximum over": "s"}
  for ax, label in zip(axes, ("ECE", "NLL")):
    for name, row in results.quantities.items():
      method, _, variant = name.partition(", ")
      if method not in colors:
        continue
      mark = "x" if "batch" in variant else marks[" ".join(variant.split()[:2])]
      ax.plot(row["accuracy"].mean(), row[label].mean(), mark, color=colors[method], alpha=0.8)
    ax.set(xlabel="accuracy", ylabel=label)
  names = {"o": "single run", "x": "batch calibration", "*": "mean", "^": "vote", "s": "maximum"}
  for mark, name in names.items():
    axes[0].plot([], [], mark, color="gray", label=name)
  for method, color in colors.items():
    axes[0].plot([], [], "-", color=color, label=method)
  axes[0].legend(fontsize=7)
  losses = results.extras["pretraining"]
  width = max(len(losses) // 50, 1)
  smooth = losses[: len(losses) // width * width].reshape(-1, width).mean(1)
  axes[2].plot(width * np.arange(1, len(smooth) + 1), smooth)
  axes[2].axhline(np.log(_CLASSES), color="gray", linestyle=":", label="chance")
  axes[2].set(xlabel="pretraining step", ylabel="loss (nats)", ylim=(None, 1.6))
  axes[2].legend(fontsize=7)
  return fig


def abstract(config: Config, mesh):
  """The pretraining step, for a dry run."""
  optimizer = _pretraining_optimizer(config)
  update = training.build_update(_loss(config), optimizer, mesh=mesh)
  state = jax.eval_shape(
    lambda key: training.init_state(key, _init(config, key), optimizer), jax.random.key(0)
  )
  batch = jax.eval_shape(functools.partial(_pretraining_batch, config), jax.random.key(0), 0.0)
  return update, state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
