"""A network with a classifier after every stage, and gates that read its confidence."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least


class EarlyExitOutput(NamedTuple):
  """The output of a network with early exits.

  Attributes:
    logits: scores of the classes at each of the L + 1 exits, each `[b, k]`.
    gate_logits: logits of the gates of the first L exits, `[b, L]`.
  """

  logits: list[chex.Array]
  gate_logits: chex.Array


def gate_features(logits: chex.Array) -> jax.Array:
  """Four measures of a classifier's confidence.

  No gradient flows through them: a gate must not change the classifier that it evaluates.

  Args:
    logits: scores of at least two classes, `[..., k]`.

  Returns:
    Largest probability, entropy, margin of the largest probability over the second, entropy of the
    squared and renormalized probabilities (nats), `[..., 4]`.

  Raises:
    ValueError: if there is only one class.

  Reference: Chataoui et al., Jointly-Learned Exit and Inference for a Dynamic Neural Network,
  ICLR 2024, section 5, https://arxiv.org/abs/2310.09163.
  """
  logits = jax.lax.stop_gradient(as_accumulator(logits))
  check_arrays(logits=(logits, "[..., k]"))
  check_at_least(2, **{"the number of classes in logits": logits.shape[-1]})
  top = jax.lax.top_k(jax.nn.softmax(logits), 2)[0]
  return jnp.stack(
    [top[..., 0], _entropy(logits), top[..., 0] - top[..., 1], _entropy(2 * logits)], axis=-1
  )


def _entropy(logits: jax.Array) -> jax.Array:
  log_probs = jax.nn.log_softmax(logits)
  # Where the logit is -inf, so is the log-probability, and 0 * -inf would be NaN.
  return -jnp.sum(jnp.exp(log_probs) * jnp.maximum(log_probs, -1e30), axis=-1)


class UncertaintyGate(nn.Module):
  """An affine map from a classifier's `gate_features` to the logit of exiting."""

  @nn.compact
  def __call__(self, logits: chex.Array) -> jax.Array:
    """Scores an exit.

    Args:
      logits: the exit's scores of the classes, `[..., k]`.

    Returns:
      Logits of exiting, `[...]`.
    """
    return nn.Dense(1, name="affine")(gate_features(logits))[..., 0]


class EarlyExitNet(nn.Module):
  """Stages in sequence with an exit after each: mean over positions, linear head, and a gate.

  With a frozen backbone `features` can be computed once and `exits` trained on them:
  `net.apply(variables, inputs, method="features")`.

  Attributes:
    stages: modules from hidden to hidden, `[b, ..., c]`; one exit per stage, no gate at the last.
    num_classes: number k of classes.

  Reference: Chataoui et al., ICLR 2024, https://arxiv.org/abs/2310.09163.
  """

  stages: Sequence[nn.Module]
  num_classes: int

  def setup(self):
    """Makes the exits."""
    self.heads = [nn.Dense(self.num_classes) for _ in self.stages]
    self.gates = [UncertaintyGate() for _ in self.stages[1:]]

  def __call__(self, inputs: chex.Array, **kwargs: Any) -> EarlyExitOutput:
    """Runs all stages and exits.

    Args:
      inputs: `[b, ...]`, what the first stage takes.
      **kwargs: handed to every stage, for example `train=True`.

    Returns:
      An `EarlyExitOutput`.
    """
    return self.exits(self.features(inputs, **kwargs))

  def features(
    self, inputs: chex.Array, *, num_stages: int | None = None, **kwargs: Any
  ) -> list[jax.Array]:
    """Computes the inputs of the heads.

    Args:
      inputs: `[b, ...]`.
      num_stages: how many stages to run; None for all.
      **kwargs: handed to every stage.

    Returns:
      The channels of each stage, averaged over positions, each `[b, c]`.
    """
    hidden, pooled = inputs, []
    for stage in self.stages[:num_stages]:
      hidden = stage(hidden, **kwargs)
      pooled.append(jnp.mean(hidden, axis=tuple(range(1, hidden.ndim - 1))))
    return pooled

  def exits(self, features: Sequence[chex.Array]) -> EarlyExitOutput:
    """Applies the exits to their features.

    Args:
      features: as `features` gives them, of the first stages or of all.

    Returns:
      An `EarlyExitOutput` with one exit per given stage.
    """
    logits = [head(feature) for head, feature in zip(self.heads, features)]
    gate_logits = [gate(scores) for gate, scores in zip(self.gates, logits)]
    stacked = jnp.stack(gate_logits, axis=-1) if gate_logits else jnp.zeros((len(logits[0]), 0))
    return EarlyExitOutput(logits, stacked)


def stage_costs(model: EarlyExitNet, input_shape: Sequence[int]) -> jax.Array:
  """Cost of exiting at each exit, relative to running the whole network.

  Counts the operations of all stages, heads and gates that a sample passes up to each exit, from
  shapes alone.

  Args:
    model: the network.
    input_shape: shape of one input, without the batch axis.

  Returns:
    Costs that rise to 1, f32 `[L + 1]`.

  Raises:
    ValueError: if there are no stages, or the compiler counts no operations on this backend.

  Reference: Chataoui et al., ICLR 2024, section 5, https://arxiv.org/abs/2310.09163.
  """
  check_at_least(1, **{"the number of stages": len(model.stages)})
  inputs = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), inputs)

  def prefix(num_stages):
    def run(module, inputs):
      return module.exits(module.features(inputs, num_stages=num_stages))

    program = jax.jit(lambda variables, inputs: model.apply(variables, inputs, method=run))
    return (program.lower(variables, inputs).cost_analysis() or {}).get("flops", 0.0)

  flops = [prefix(num) for num in range(1, len(model.stages) + 1)]
  if not flops[-1] > 0:
    raise ValueError(f"the backend {jax.default_backend()!r} counts no operations: {flops}.")
  return jnp.asarray(flops, jnp.float32) / flops[-1]
