"""A network that weighs two targets of an example."""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax

from jaxlab._checks import as_accumulator, check_arrays


class FusionRatioNet(nn.Module):
  """Dense layers with leaky ReLU, and a sigmoid: the share of one target against another.

  Attributes:
    hidden: sizes of the hidden layers.

  Reference: Hu et al., Less or More From Teacher, ICLR 2024, section 3,
  https://arxiv.org/abs/2312.15112.
  """

  hidden: Sequence[int] = (32, 16)

  @nn.compact
  def __call__(self, features: chex.Array) -> jax.Array:
    """Weighs.

    Args:
      features: what is known of each example, such as `losses.trilateral_features`, `[n, f]`.

    Returns:
      Ratios between 0 and 1, `[n]`, in float32 or wider.
    """
    check_arrays(features=(features, "[n, f]"))
    values = as_accumulator(features)
    for i, width in enumerate(self.hidden):
      values = nn.leaky_relu(nn.Dense(width, name=f"dense_{i}")(values), 0.01)
    return nn.sigmoid(nn.Dense(1, name="ratio")(values)[:, 0])
