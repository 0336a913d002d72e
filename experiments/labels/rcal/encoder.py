"""Features that never saw a label, and their fine-tuning on wrong ones."""

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.kit import datasets
from experiments.kit.contrastive import contrastive_loss
from experiments.kit.train import Trained, adamw_cosine, predict, train
from experiments.labels.rcal.heads import score
from experiments.labels.rcal.problems import Task
from jaxlab import augment, losses, models, training


def network(config) -> models.ConvEncoder:
  """The encoder with its projection."""
  return models.ConvEncoder(config.widths, config.dense, projection=config.projection)


def principal_axes(features: chex.Array, num: int) -> tuple[jax.Array, jax.Array]:
  """Mean `[d]` and basis `[d, num]` on which the features are uncorrelated, with variance 1."""
  mean = jnp.mean(features, axis=0)
  gaps = features - mean
  values, vectors = jnp.linalg.eigh(gaps.T @ gaps / len(features))
  values = jnp.maximum(values, 1e-6 * values[-1])
  return mean, vectors[:, -num:] / jnp.sqrt(values[-num:])


def pretrain(config, key: chex.PRNGKey, task: Task) -> dict:
  """Trains the encoder of a seed on the training images; its features of all rows."""
  module = network(config)
  loss = contrastive_loss(module, temperature=config.temperature)
  sizes = {"num_steps": config.contrastive_steps, "batch_size": config.contrastive_batch}
  optimizer = optax.adam(config.contrastive_rate)
  trained = train(key, module, loss, optimizer, (task.inputs,), **sizes)
  rows = {"train": task.inputs, "validation": task.validation.inputs, "test": task.test.inputs}
  raw = {name: predict(module, trained.variables, x).features for name, x in rows.items()}
  mean, basis = principal_axes(raw["train"], config.num_components)
  features = {name: (x - mean) @ basis for name, x in raw.items()}
  found = {"params": trained.params, "mean": mean, "basis": basis, "features": features}
  return found | {"bad_step": trained.bad_step}


def of_features(task: Task, features) -> Task:
  """The task with features in place of images."""
  validation = task.validation._replace(inputs=features["validation"])
  test = task.test._replace(inputs=features["test"])
  return task._replace(inputs=features["train"], validation=validation, test=test)


def tune(config, key: chex.PRNGKey, inputs, setting) -> dict[str, jax.Array]:
  """Trains encoder and head with mixup on given labels, near the first features by `beta`.

  The inputs are the `Task` of images, given labels `[n]`, and what `pretrain` gave.
  """
  task, given, start = inputs
  module, num_classes = network(config), datasets.describe(config.dataset).num_classes

  def represent(params, images):
    features = module.apply({"params": params["encoder"]}, images).features
    return (features - start["mean"]) @ start["basis"]

  def logits(params, images):
    return represent(params, images) @ params["kernel"] + params["bias"]

  def loss(params, model_state, batch, key):
    del model_state
    images, labels, reference = batch
    mixed = augment.mixup(key, images, labels)
    labels = mixed.labels_a, mixed.labels_b
    values = losses.mixup_cross_entropy(logits(params, mixed.inputs), *labels, mixed.ratio)
    distances = losses.representation_distance_loss(represent(params, images), reference)
    return training.LossOutput(values + setting["beta"] * distances)

  kernel = jnp.zeros((config.num_components, num_classes))
  params = {"encoder": start["params"], "kernel": kernel, "bias": jnp.zeros(num_classes)}
  optimizer = adamw_cosine(setting["learning_rate"], config.tuning_steps)
  sizes = {"num_steps": config.tuning_steps, "batch_size": config.tuning_batch}
  rows = task.inputs, given, start["features"]["train"]
  trained = train(key, None, loss, optimizer, rows, start=Trained(params, {}), **sizes)
  scores = score(lambda images: logits(trained.params, images), task, num_classes)
  return scores | {"bad_step": trained.bad_step}
