"""Test-time adaptation in eager PyTorch, as a PyTorch user would write it."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

_BLUR_RADIUS = 6


class TorchAdapters:
  """A signal network, and one step of each adapter on it; every adapter keeps its own copy."""

  def __init__(self, params, prototypes, projector, *, learning_rate, decay, num_augmentations):
    network = _Network(params)
    self._decay, self._num_augmentations = decay, num_augmentations
    self._source = network
    self._prototypes = torch.tensor(np.array(prototypes))
    self._projector = _Projector(projector)
    self._models = {name: copy.deepcopy(network) for name in ("tent", "filtered", "student")}
    self._models |= {name: copy.deepcopy(network) for name in ("teacher", "cotta", "anchor")}
    # Each teacher's parameters are an average and get no gradient.
    self._models["cotta teacher"] = copy.deepcopy(network)
    trained = {
      "tent": self._models["tent"].affine(),
      "filtered": self._models["filtered"].affine(),
      "robust": [*self._models["student"].parameters(), *self._projector.parameters()],
      "cotta": self._models["cotta"].parameters(),
    }
    self._optimizers = {n: torch.optim.Adam(list(p), learning_rate) for n, p in trained.items()}

  @torch.no_grad()
  def norm(self, x):
    """Predicts with the batch's statistics."""
    return self._source(x)[1]

  def tent(self, x):
    """Entropy minimization."""
    logits = self._models["tent"](x)[1]
    self._step("tent", _entropy(logits).mean())
    return logits

  def filtered(self, x):
    """Entropy minimization of the rows that gained confidence, with the marginal entropy."""
    with torch.no_grad():
      source = self._source(x)[1].log_softmax(1)
    logits = self._models["filtered"](x)[1]
    log_probs = logits.log_softmax(1)
    chosen = source.argmax(1, keepdim=True)
    kept = (log_probs.detach().gather(1, chosen) >= source.gather(1, chosen))[:, 0].float()
    mean = log_probs.exp().mean(0)
    loss = (kept * _entropy(logits)).sum() / kept.sum().clamp(min=1)
    self._step("filtered", loss + 0.5 * (mean * mean.clamp(min=1e-30).log()).sum())
    return logits

  def robust(self, x):
    """Robust mean teacher without source data."""
    student = self._models["student"]
    with torch.no_grad():
      teacher = self._models["teacher"](x)[1]
    features, logits = student(x)
    other, augmented = student(_jitter(x))
    loss = (_symmetric(logits, teacher) + _symmetric(augmented, teacher)).mean() / 2
    similar = F.normalize(features.detach(), dim=1) @ F.normalize(self._prototypes, dim=1).T
    nearest = self._prototypes[similar.argmax(1)]
    self._step("robust", loss + _contrast(self._projector, nearest, features, other))
    self._average("teacher", student)
    return logits.detach() + teacher

  def cotta(self, x):
    """Continual mean teacher, uncertain about every batch."""
    student, teacher = self._models["cotta"], self._models["cotta teacher"]
    with torch.no_grad():
      confidence = self._models["anchor"](x)[1].softmax(1).amax(1).mean()
      if confidence < 1.0:
        target = sum(teacher(_jitter(x))[1] for _ in range(self._num_augmentations))
        target = target / self._num_augmentations
      else:
        target = teacher(x)[1]
    logits = student(x)[1]
    self._step("cotta", -(target.softmax(1) * logits.log_softmax(1)).sum(1).mean())
    self._average("cotta teacher", student)
    with torch.no_grad():
      for weight, source in zip(student.parameters(), self._source.parameters()):
        weight.copy_(torch.where(torch.rand_like(weight) < 0.01, source, weight))
    return target

  def _step(self, name, loss):
    optimizer = self._optimizers[name]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

  @torch.no_grad()
  def _average(self, name, student):
    for average, weight in zip(self._models[name].parameters(), student.parameters()):
      average.lerp_(weight, 1 - self._decay)


class _Network(nn.Module):
  """The signal network of `jaxlab.models.ConvNet`, always with the batch's statistics."""

  def __init__(self, params):
    super().__init__()
    self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
    for i in range(sum(name.startswith("conv_") for name in params)):
      kernel = np.array(params[f"conv_{i}"]["kernel"])
      conv = nn.Conv1d(kernel.shape[1], kernel.shape[2], kernel.shape[0], stride=2)
      conv.weight = _parameter(kernel.transpose(2, 1, 0))
      conv.bias = _parameter(params[f"conv_{i}"]["bias"])
      norm = nn.BatchNorm1d(kernel.shape[2], track_running_stats=False)
      norm.weight = _parameter(params[f"norm_{i}"]["scale"])
      norm.bias = _parameter(params[f"norm_{i}"]["bias"])
      self.convs.append(conv)
      self.norms.append(norm)
    self.head = _linear(params["head"])

  def affine(self):
    """Scales and biases of the normalization layers; the rest gets no gradient."""
    self.requires_grad_(False)
    return list(self.norms.requires_grad_(True).parameters())

  def forward(self, x):
    h = x.mT
    for conv, norm in zip(self.convs, self.norms):
      length = h.shape[-1]
      missing = max((-(-length // 2) - 1) * 2 + conv.kernel_size[0] - length, 0)
      h = F.relu(norm(conv(F.pad(h, (missing // 2, missing - missing // 2)))))
    features = h.mean(2)
    return features, self.head(features)


class _Projector(nn.Module):
  """Two layers."""

  def __init__(self, params):
    super().__init__()
    self.layers = nn.Sequential(_linear(params["in"]), nn.ReLU(), _linear(params["out"]))

  def forward(self, x):
    return self.layers(x)


def _parameter(array):
  return nn.Parameter(torch.tensor(np.array(array)))


def _linear(params):
  kernel = np.array(params["kernel"])
  layer = nn.Linear(*kernel.shape)
  layer.weight, layer.bias = _parameter(kernel.T), _parameter(params["bias"])
  return layer


def _entropy(logits):
  log_probs = logits.log_softmax(1)
  return -(log_probs.exp() * log_probs).sum(1)


def _symmetric(logits, teacher):
  student, teacher = logits.log_softmax(1), teacher.log_softmax(1)
  return -(teacher.exp() * student + student.exp() * teacher).sum(1) / 2


def _contrast(projector, *views, temperature=0.1):
  vectors = F.normalize(projector(torch.stack(views, 1).flatten(0, 1)), dim=1)
  similar = vectors @ vectors.T / temperature
  row = torch.arange(len(vectors)) // len(views)
  itself = torch.eye(len(vectors), dtype=torch.bool)
  positive = (row[:, None] == row) & ~itself
  total = similar.masked_fill(itself, -torch.inf).logsumexp(1)
  return (total - (similar * positive).sum(1) / (len(views) - 1)).mean()


def _jitter(x):
  """Gain, shift, offset, noise and, for half of the rows, blur."""
  rows, length, _ = x.shape
  shift = torch.randint(-2, 3, (rows, 1, 1))
  index = (torch.arange(length)[:, None] - shift).clamp(0, length - 1)
  gain, offset = torch.empty(rows, 1, 1).uniform_(0.7, 1.3), torch.empty(rows, 1, 1)
  moved = gain * x.gather(1, index.expand_as(x)) + offset.uniform_(-0.2, 0.2)
  noisy = moved + 0.05 * torch.randn_like(x)
  offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
  kernel = torch.exp(-((offsets / torch.empty(rows, 1).uniform_(0.001, 0.5)) ** 2) / 2)
  kernel = kernel / kernel.sum(1, keepdim=True)
  padded = F.pad(noisy.mT, (_BLUR_RADIUS, _BLUR_RADIUS), mode="replicate").mT
  blurred = torch.einsum("btck,bk->btc", padded.unfold(1, len(offsets), 1), kernel)
  return torch.where(torch.rand(rows, 1, 1) < 0.5, blurred, noisy)
