"""The prior-data fitted network and its training in PyTorch, as a PyTorch user would write it."""

import math

import numpy as np
import torch
from torch import nn

_Z75 = 0.6744897501960817


class TorchPFN:
  """A transformer encoder with a bar distribution, and its training on a GP prior."""

  def __init__(
    self,
    *,
    embed_dim,
    num_layers,
    num_heads,
    num_points,
    num_bars,
    batch_size,
    lengthscale,
    noise,
    learning_rate,
    borders,
  ):
    torch.manual_seed(0)
    self._shape = batch_size, num_points
    self._lengthscale, self._noise = lengthscale, noise
    self._borders = torch.tensor(borders)
    self._network = _Network(embed_dim, num_layers, num_heads, num_bars)
    self._optimizer = torch.optim.Adam(self._network.parameters(), learning_rate, fused=True)
    self._rng = np.random.default_rng(0)

  def train(self, num_steps: int, *, num_threads: int) -> float:
    """Makes the next steps of the training run; returns the last loss."""
    torch.set_num_threads(num_threads)
    for _ in range(num_steps):
      num_context = int(self._rng.integers(self._shape[1]))
      x, y = self._draw()
      logits = self._network(x, y, num_context)[:, num_context:]
      loss = _bar_nll(logits, y[:, num_context:], self._borders).mean()
      self._optimizer.zero_grad(set_to_none=True)
      loss.backward()
      nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
      self._optimizer.step()
    return loss.item()

  def _draw(self):
    batch_size, num_points = self._shape
    x = torch.rand(batch_size, num_points, 1)
    squared = ((x - x.mT) / self._lengthscale) ** 2
    covariance = torch.exp(-0.5 * squared) + (self._noise + 1e-6) * torch.eye(num_points)
    factor = torch.linalg.cholesky(covariance)
    return x, (factor @ torch.randn(batch_size, num_points, 1))[..., 0]

  @torch.no_grad()
  def outputs_with(self, params, x, y, num_context: int) -> np.ndarray:
    """Outputs of a copy of the network with the parameters of a `jaxlab.models.PFN`."""
    own = {name: value.clone() for name, value in self._network.state_dict().items()}
    self._network.load_state_dict(_from_flax(params))
    outputs = self._network(torch.tensor(x), torch.tensor(y), num_context).numpy()
    self._network.load_state_dict(own)
    return outputs


class _Network(nn.Module):
  def __init__(self, embed_dim, num_layers, num_heads, num_bars):
    super().__init__()
    self.embed_x, self.embed_y = nn.Linear(1, embed_dim), nn.Linear(1, embed_dim)
    layer = nn.TransformerEncoderLayer(
      embed_dim,
      num_heads,
      2 * embed_dim,
      dropout=0.0,
      activation="gelu",
      batch_first=True,
      norm_first=False,
    )
    self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
    self.head = nn.Sequential(
      nn.Linear(embed_dim, 2 * embed_dim), nn.GELU(), nn.Linear(2 * embed_dim, num_bars)
    )
    for layer in self.encoder.layers:
      for branch in (layer.self_attn.out_proj, layer.linear2):
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)

  def forward(self, x, y, num_context):
    num_points = x.shape[1]
    h = self.embed_x((x - 0.5) * math.sqrt(12))
    pairs = self.embed_y(y[:, :num_context, None])
    h = torch.cat([h[:, :num_context] + pairs, h[:, num_context:]], 1)
    hidden = ~torch.eye(num_points, dtype=torch.bool)
    hidden[:, :num_context] = False
    return self.head(self.encoder(h, mask=hidden))


def _bar_nll(logits, targets, borders):
  """Negative log density under bars whose outer two are half-normals."""
  last = logits.shape[-1] - 1
  index = (torch.searchsorted(borders, targets.contiguous()) - 1).clamp(0, last)
  widths = borders.diff()
  log_density = -widths.log()[index]
  left, right = index == 0, index == last
  distance = torch.where(left, borders[1] - targets, targets - borders[-2]).clamp(min=1e-8)
  scale = torch.where(left, widths[0], widths[-1]) / _Z75
  log_tail = 0.5 * math.log(2 / math.pi) - scale.log() - 0.5 * (distance / scale) ** 2
  log_density = torch.where(left | right, log_tail, log_density)
  log_probs = logits.log_softmax(-1).gather(-1, index[..., None])[..., 0]
  return -log_probs - log_density


def _from_flax(params) -> dict:
  """Our parameters under PyTorch's names."""
  names = {"embed_x": "embed_x", "embed_y": "embed_y", "head_in": "head.0", "head_out": "head.2"}
  inner = {
    "attention_out": "self_attn.out_proj",
    "mlp_in": "linear1",
    "mlp_out": "linear2",
    "norm_attention": "norm1",
    "norm_mlp": "norm2",
  }
  tensors = {}

  def add(name, module):
    weight = module["kernel"].T if "kernel" in module else module["scale"]
    tensors[f"{name}.weight"] = torch.tensor(np.array(weight))
    tensors[f"{name}.bias"] = torch.tensor(np.array(module["bias"]))

  for ours, theirs in names.items():
    add(theirs, params[ours])
  for i in range(sum(name.startswith("layer_") for name in params)):
    layer, prefix = params[f"layer_{i}"], f"encoder.layers.{i}"
    for ours, theirs in inner.items():
      add(f"{prefix}.{theirs}", layer[ours])
    tensors[f"{prefix}.self_attn.in_proj_weight"] = torch.tensor(np.array(layer["qkv"]["kernel"].T))
    tensors[f"{prefix}.self_attn.in_proj_bias"] = torch.tensor(np.array(layer["qkv"]["bias"]))
  return tensors
