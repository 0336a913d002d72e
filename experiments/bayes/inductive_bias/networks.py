"""Network spaces: many networks, each trained from its own initialization."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.bayes.inductive_bias.kernels import Task
from jaxlab import metrics, models, samplers

MLP, WIDE, CNN, PERMUTED = "MLP", "wide MLP", "CNN", "CNN, pixels permuted"
SPACES = MLP, WIDE, CNN, PERMUTED


class SmallCNN(nn.Module):
  """Convolution, mean of 2 x 2 pixels, convolution, and a dense layer."""

  num_outputs: int
  channels: tuple[int, int]

  @nn.compact
  def __call__(self, images: chex.Array) -> models.ModelOutput:
    """Outputs `[b, k]` of images `[b, h, w, c]` of even sides."""
    first, second = self.channels
    hidden = nn.relu(models.Conv(first, (3, 3))(images))
    rows, height, width, _ = hidden.shape
    hidden = hidden.reshape(rows, height // 2, 2, width // 2, 2, first).mean((2, 4))
    hidden = nn.relu(models.Conv(second, (3, 3))(hidden)).reshape(rows, -1)
    return models.ModelOutput(hidden, nn.Dense(self.num_outputs)(hidden))


def network(config, space: str, num_outputs: int) -> nn.Module:
  """A network of a space."""
  if space == CNN:
    return SmallCNN(num_outputs, config.channels)
  return models.MLP(num_outputs, {MLP: config.widths, WIDE: (config.wide,)}[space])


def permuted(task: Task, seed: int) -> Task:
  """The same images with the places of their pixels exchanged, alike in all of them."""
  places = int(np.prod(task.inputs.shape[1:3]))
  order = np.random.default_rng(seed).permutation(places)

  def permute(images):
    return images.reshape(len(images), places, -1)[:, order].reshape(images.shape)

  return task._replace(inputs=permute(task.inputs), test_inputs=permute(task.test_inputs))


def train_errors(config, space: str, key, task: Task) -> dict[str, jax.Array]:
  """Test and training errors `[s]` of networks, a few of which train side by side."""
  module = network(config, space, task.targets.shape[-1])

  def apply(params, inputs):
    return module.apply({"params": params}, inputs).logits

  def loss(params, rows):
    return jnp.mean(jnp.square(apply(params, task.inputs[rows]) - task.targets[rows]))

  def some(key):
    params = samplers.trained_hypotheses(
      key,
      lambda key: module.init(key, task.inputs[:1])["params"],
      loss,
      optax.adam(config.learning_rate),
      num_samples=config.networks_at_once,
      num_steps=config.num_steps,
      num_examples=len(task.inputs),
    )
    predict = jax.vmap(apply, (0, None), -1)
    sides = (task.test_inputs, task.test_targets), (task.inputs, task.targets)
    return [metrics.hypothesis_errors(predict(params, x), y) for x, y in sides]

  keys = jax.random.split(key, config.num_networks // config.networks_at_once)
  errors, fitted = (x.ravel() for x in jax.lax.map(some, keys))
  return {"errors": errors, "training": fitted}
