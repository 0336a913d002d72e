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
from experiments.members import over_members
from experiments.mixing_adaptation import self_ensembled_icl_pretraining as pretraining
from experiments.mixing_adaptation.self_ensembled_icl_pretraining import NUM_CLASSES, NUM_WORDS
from jaxlab import data, metrics, training, uncertainty
from jaxlab.data.prompt_variants import NUM_TEMPLATES

PAPER = "self_ensembled_icl"
RULES = {
  "mean": uncertainty.mean_probability,
  "maximum": uncertainty.max_probability,
  "vote": uncertainty.vote_probability,
}


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder, its pretraining, and the tasks that it is adapted to."""

  embed_dim: int = 64  # Width of the decoder.
  num_layers: int = 3  # Its blocks.
  num_heads: int = 4  # Its attention heads.
  mlp_ratio: int = 2  # Hidden width of the perceptrons over the decoder's.
  rule_dims: int = 1  # Dimensions of the words' vectors, of 16, that rules read.
  pretraining_steps: int = 2000  # AdamW steps on fresh tasks.
  pretraining_batch: int = 128  # Tasks a step.
  max_shots: int = 4  # Most demonstrations in pretraining.
  pretraining_rate: float = 2e-3  # Peak; warm-up over a twentieth, then a cosine to a tenth.
  num_tasks: int = 20  # New tasks.
  num_train: int = 50  # Labelled examples of each.
  num_test: int = 250  # Queries of each.
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
    rule_dims=16,
    pretraining_steps=30_000,
    pretraining_batch=256,
    max_shots=10,
    pretraining_rate=3e-4,
    num_test=500,
    # 200 epochs of 50 examples.
    adaptation_steps=1250,
    adaptation_rate=5e-5,
  ),
}


def run(config: Config, context: common.Context) -> common.Results:
  """Answers of all methods under all variations, then single runs and ensembles of them."""
  params, losses, steps = pretraining.pretrain(config, context)
  answers = context.cached("answers", _answers, config, context, params)
  labels = answers.pop("labels")
  measure = jax.jit(jax.vmap(functools.partial(_measure, config)))
  rows: dict[str, dict] = {}
  for method in ("ICL", "FT", "SupICL"):
    for name, row in measure(answers[method], labels).items():
      rows[f"{method}, {name}"] = {label: np.asarray(values) for label, values in row.items()}
  rows["linear model on word vectors"] = {"accuracy": answers["linear"]}
  rows["chance"] = {"accuracy": 1 / NUM_CLASSES}
  return common.Results(rows, {"loss": losses.mean(0), "step": steps})


# -------------------------------------------------------------------------------------- new tasks


class Task(NamedTuple):
  """Labelled examples and queries."""

  sentences: jax.Array
  labels: jax.Array
  queries: jax.Array
  answers: jax.Array


def _answers(config: Config, context: common.Context, params) -> dict[str, np.ndarray]:
  """Label scores `[seeds, draws, templates, tasks, queries, classes]` of each method."""

  def one_seed(member):
    key, params = member
    task_key, adapt_key = jax.random.split(key)
    count = config.num_train
    drawn = pretraining.sample_tasks(
      config, task_key, num_tasks=config.num_tasks, num_examples=count + config.num_test
    )
    sentences, labels = drawn.sentences, drawn.labels
    tasks = Task(sentences[:, :count], labels[:, :count], sentences[:, count:], labels[:, count:])
    keys = jax.random.split(adapt_key, config.num_tasks)
    found = jax.lax.map(lambda inputs: _one_task(config, params, *inputs), (keys, tasks))
    found = {name: jnp.moveaxis(logits, 0, 2) for name, logits in found.items()}
    return found | {"tasks": tasks, "labels": tasks.answers}

  keys = jax.random.split(jax.random.fold_in(context.key, 1), context.seeds)
  found = over_members(one_seed, (keys, params), context.mesh)
  tasks = Task(*map(np.asarray, found.pop("tasks")))
  return found | {"linear": _linear_accuracy(tasks)}


def _one_task(config: Config, params, key, task: Task) -> dict[str, jax.Array]:
  """Label scores `[draws, templates, queries, classes]` of the three methods on one task."""
  tune_key, sup_key, icl_key = jax.random.split(key, 3)
  optimizer = optax.adamw(config.adaptation_rate)
  update = training.build_update(pretraining.answer_loss(config), optimizer)

  def adapted(key, num_shots):
    state_key, batch_key = jax.random.split(key)

    def step(state, key):
      return update(state, _adaptation_batch(config, task, num_shots, key))[0], None

    state = training.init_state(state_key, params, optimizer)
    return jax.lax.scan(step, state, jax.random.split(batch_key, config.adaptation_steps))[0].params

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


def _adaptation_batch(config: Config, task: Task, num_shots: int, key) -> pretraining.Batch:
  """Training examples, each prompted with demonstrations drawn from the others."""
  row_key, template_key, draw_key = jax.random.split(key, 3)
  size = config.adaptation_batch
  rows = jax.random.permutation(row_key, config.num_train)[:size]
  templates = jax.random.randint(template_key, (size,), 0, NUM_TEMPLATES)
  shown = jax.vmap(
    lambda key, row: data.draw_demonstrations(key, task.labels, num_shots=num_shots, exclude=row)
  )(jax.random.split(draw_key, size), rows)
  prompts = jax.vmap(pretraining.render_prompt)(
    task.sentences[rows], task.sentences[shown], task.labels[shown], templates
  )
  answers = jnp.take_along_axis(data.label_words(templates), task.labels[rows][:, None], axis=1)
  return pretraining.Batch(
    prompts.tokens, prompts.lengths[:, None] - 1, answers, jnp.ones(answers.shape)
  )


def _label_scores(config: Config, task: Task, params, rows) -> jax.Array:
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
  """A logistic regression that is told the words' vectors: mean accuracy over tasks, a seed."""
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
      flat = members.reshape(len(members), -1, NUM_CLASSES)
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
  by_task = pooled.probs.reshape(*labels.shape, NUM_CLASSES)
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
  axes[2].plot(results.extras["step"], results.extras["loss"])
  axes[2].axhline(np.log(NUM_CLASSES), color="gray", linestyle=":", label="chance")
  axes[2].set(xlabel="pretraining step", ylabel="loss (nats)", ylim=(None, 1.6))
  axes[2].legend(fontsize=7)
  return fig


def abstract(config: Config, mesh):
  """The pretraining step, for a dry run."""
  optimizer = pretraining.pretraining_optimizer(config)
  update = training.build_update(pretraining.pretraining_loss(config), optimizer, mesh=mesh)
  state = jax.eval_shape(
    lambda key: training.init_state(key, pretraining.init_params(config, key), optimizer),
    jax.random.key(0),
  )
  size = config.pretraining_batch
  batch = {"key": jax.ShapeDtypeStruct((size, 2), jnp.uint32)}
  return update, state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
