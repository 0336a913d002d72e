"""A second head that is trained beside the classifier and thrown away."""

import chex
import flax.linen as nn
import jax

from jaxlab.models.norm import GhostBatchNorm

_SLOPE = 0.1


class AuxiliaryHead(nn.Module):
  """Two narrow hidden layers and a linear layer, over a network's features.

  It takes the loss of rows that the main head should not learn from, so that these shape the
  features alone. Its normalization always uses the batch, since it is not used at test time.

  Attributes:
    num_classes: number k of classes.
    width: units of the hidden layers; None for a quarter of the features, at least 1.
    batch_norm: whether hidden layers are normalized by the batch.

  Reference: Yang et al., Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning,
  ICCV 2023, https://arxiv.org/abs/2308.06777.
  """

  num_classes: int
  width: int | None = None
  batch_norm: bool = True

  @nn.compact
  def __call__(self, features: chex.Array) -> jax.Array:
    """Classifies strong views.

    Args:
      features: `[..., d]`.

    Returns:
      Logits, `[..., k]`.
    """
    width = max(features.shape[-1] // 4, 1) if self.width is None else self.width
    for _ in range(2):
      features = nn.Dense(width)(features)
      if self.batch_norm:
        features = GhostBatchNorm()(features, use_running_average=False)
      features = nn.leaky_relu(features, _SLOPE)
    return nn.Dense(self.num_classes)(features)
