"""Low-rank adapters: fine-tuning a few directions of chosen matrices."""

import dataclasses
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range


@dataclasses.dataclass(frozen=True)
class LowRankConfig:
  """Which matrices get adapters, and of what size.

  Attributes:
    rank: inner width r of an adapter.
    alpha: the update is scaled by alpha / rank.
    targets: ends of the paths of layers whose `kernel` is adapted, such as "attention/q" or "up".
    rank_stabilized: scale by alpha / sqrt(rank), so that the update keeps its size as ranks grow.

  Raises:
    ValueError: if `rank` is below 1, `alpha` is not finite or there is no target.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: tuple[str, ...] = ("attention/q", "attention/v")
  rank_stabilized: bool = False

  def __post_init__(self):
    check_at_least(1, rank=self.rank)
    check_range("alpha", self.alpha, "(-inf, inf)")
    if isinstance(self.targets, str) or not self.targets:
      raise ValueError(f"targets must be a non-empty tuple of paths, got {self.targets!r}.")
    object.__setattr__(self, "targets", tuple(self.targets))


def init_low_rank(
  key: chex.PRNGKey, params: chex.ArrayTree, config: LowRankConfig
) -> dict[str, dict[str, jax.Array]]:
  """Makes adapters whose update is 0 at first: A uniform on +-1/sqrt(in), B zero.

  Args:
    key: random key.
    params: nested dict of parameters; kernels are `[..., in, out]`, with one adapter per index of
      the leading axes (layers).
    config: the targets and the rank.

  Returns:
    A dict from the path of each adapted kernel, such as "layers/attention/q/kernel", to its `a`,
    `[..., in, rank]`, and `b`, `[..., rank, out]`, in the type of the kernel.

  Raises:
    ValueError: if a target matches no kernel, or a kernel has less than two axes.
    TypeError: if a kernel is not floating.

  Reference: Hu et al., LoRA, ICLR 2022, section 4.1, https://arxiv.org/abs/2106.09685.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  kernels = sorted(path for path in flat if path.rpartition("/")[2] == "kernel")
  matches = {
    target: [path for path in kernels if f"/{path}".endswith(f"/{target}/kernel")]
    for target in config.targets
  }
  for target, paths in matches.items():
    if not paths:
      raise ValueError(f"target {target!r} matches none of {', '.join(kernels) or 'no kernels'}.")
  chosen = sorted({path for paths in matches.values() for path in paths})

  def adapter(key, kernel):
    *batch, width, features = kernel.shape
    bound = width**-0.5
    shape = (*batch, width, config.rank)
    return {
      "a": jax.random.uniform(key, shape, kernel.dtype, -bound, bound),
      "b": jnp.zeros((*batch, config.rank, features), kernel.dtype),
    }

  for path in chosen:
    check_arrays(**{path: (flat[path], "float [..., in, out]")})
  keys = jax.random.split(key, len(chosen))
  return {path: adapter(key, flat[path]) for key, path in zip(keys, chosen)}


def merge_low_rank(
  params: chex.ArrayTree,
  adapters: Mapping[str, Mapping[str, chex.Array]],
  config: LowRankConfig,
) -> chex.ArrayTree:
  """Adds each adapter's update to its kernel.

  To train the adapters, differentiate through this function with respect to them alone. The base
  parameters then need no gradient, and the code of the model stays the same.

  Args:
    params: nested dict of parameters.
    adapters: adapters from `init_low_rank`.
    config: the scale.

  Returns:
    Parameters of the same structure and types; the sum is taken in float32 or wider.

  Raises:
    ValueError: if no parameter has the path of an adapter, or shapes do not fit.

  Reference: Hu et al., LoRA, ICLR 2022, section 4.1, https://arxiv.org/abs/2106.09685.
  """
  flat = dict(traverse_util.flatten_dict(params, sep="/"))
  for path, adapter in adapters.items():
    if path not in flat:
      raise ValueError(f"adapter {path!r} has no parameter to change.")
    kernel = jnp.asarray(flat[path])
    update = low_rank_update(
      adapter["a"], adapter["b"], alpha=config.alpha, rank_stabilized=config.rank_stabilized
    )
    check_arrays(**{path: (kernel, "[...]"), f"the update of {path}": (update, "[...]")})
    flat[path] = (as_accumulator(kernel) + update).astype(kernel.dtype)
  return traverse_util.unflatten_dict(flat, sep="/")


def low_rank_update(
  a: chex.Array, b: chex.Array, *, alpha: chex.Numeric, rank_stabilized: bool = False
) -> jax.Array:
  """The change of a kernel: alpha / r * A B, or alpha / sqrt(r) * A B.

  Args:
    a: `[..., in, r]`.
    b: `[..., r, out]`.
    alpha: scale.
    rank_stabilized: whether to divide by sqrt(r) instead of r.

  Returns:
    The update `[..., in, out]`, in float32 or wider.

  Raises:
    ValueError: if shapes do not fit.

  Reference: Hu et al., LoRA, ICLR 2022, https://arxiv.org/abs/2106.09685; Kalajdzievski, A Rank
  Stabilization Scaling Factor for Fine-Tuning with LoRA, https://arxiv.org/abs/2312.03732.
  """
  check_arrays(a=(a, "[..., in, r]"), b=(b, "[..., r, out]"))
  a, b = as_accumulator(a, b)
  rank = a.shape[-1]
  return alpha / (rank**0.5 if rank_stabilized else rank) * (a @ b)
