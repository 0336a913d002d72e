import pickle
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxlab.models.classifiers import MLP
from jaxlab.models.norm import GroupNorm
from jaxlab.models.resnet import ResNet, WideResNet, resnet18, resnext50
from jaxlab.models.vision_checkpoint import load_vision_checkpoint, save_vision_checkpoint

SMALL = {
  "basic": ResNet(5, (1, 2), width=4, stem="cifar"),
  "bottleneck": ResNet(5, (2, 1), "bottleneck", 8, groups=2, group_width=32),
  "groups": ResNet(5, (1,), width=4, norm=partial(GroupNorm, num_groups=2)),
  "wide": WideResNet(5, depth=10, widen_factor=1),
}


def random_variables(module, num_channels=3):
  images = jax.ShapeDtypeStruct((1, 8, 8, num_channels), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.uniform(0.1, 1.0, x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_is_exact(tmp_path, name):
  module, path = SMALL[name], tmp_path / "model.safetensors"
  for num_channels in (3, 1):
    variables = random_variables(module, num_channels)
    save_vision_checkpoint(path, module, variables)
    loaded = load_vision_checkpoint(path, module, num_channels=num_channels)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_names_and_layouts(tmp_path):
  path = tmp_path / "model.safetensors"
  variables = random_variables(SMALL["basic"])
  save_vision_checkpoint(path, SMALL["basic"], variables)
  tensors = safetensors.numpy.load_file(path)
  params, stats = variables["params"], variables["batch_stats"]
  for name, expected in {
    "conv1.weight": params["stem_conv"]["kernel"].transpose(3, 2, 0, 1),
    "bn1.running_var": stats["stem_norm"]["var"],
    "layer2.0.downsample.0.weight": params["stage_1_block_0"]["shortcut_conv"]["kernel"].transpose(
      3, 2, 0, 1
    ),
    "layer2.0.downsample.1.running_mean": stats["stage_1_block_0"]["shortcut_norm"]["mean"],
    "layer2.1.bn2.weight": params["stage_1_block_1"]["norm_2"]["scale"],
    "fc.weight": params["head"]["kernel"].T,
    "fc.bias": params["head"]["bias"],
  }.items():
    np.testing.assert_array_equal(tensors[name], expected, err_msg=name)
  save_vision_checkpoint(path, SMALL["wide"], random_variables(SMALL["wide"]))
  names = set(safetensors.numpy.load_file(path))
  assert {"conv1.weight", "bn1.bias", "block2.layer.0.convShortcut.weight"} < names
  assert {"fc.weight", "block1.layer.0.bn2.running_var"} < names


def test_half_precision_and_counters(tmp_path):
  module, path = SMALL["basic"], tmp_path / "model.safetensors"
  save_vision_checkpoint(path, module, random_variables(module))
  tensors = safetensors.numpy.load_file(path)
  half = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
  half["bn1.num_batches_tracked"] = np.array(7, np.int32)
  safetensors.numpy.save_file(half, path)
  loaded = load_vision_checkpoint(path, module)
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
  np.testing.assert_array_equal(
    loaded["params"]["head"]["bias"], half["fc.bias"].astype(np.float32)
  )


def test_the_wrong_tensor_is_named(tmp_path):
  module, path = SMALL["basic"], tmp_path / "model.safetensors"
  save_vision_checkpoint(path, module, random_variables(module))
  tensors = safetensors.numpy.load_file(path)

  def refuses(words, changed, module=module):
    safetensors.numpy.save_file({n: x for n, x in changed.items() if x is not None}, path)
    with pytest.raises(ValueError, match=words):
      load_vision_checkpoint(path, module)

  refuses(r"lacks tensors: bn1.running_mean \(4,\)", tensors | {"bn1.running_mean": None})
  refuses(r"superfluous tensors: more \(2,\)", tensors | {"more": np.zeros(2, np.float32)})
  refuses(
    r"conv1.weight has shape \(4, 3, 7, 7\), expected \(4, 3, 3, 3\)",
    tensors | {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)},
  )
  refuses(r"fc.weight has shape \(5, 8\), expected \(9, 8\)", tensors, module.clone(num_classes=9))


def test_weights_that_cannot_be_used_are_named(tmp_path):
  module, path = SMALL["basic"], tmp_path / "model.safetensors"
  save_vision_checkpoint(path, module, random_variables(module))
  tensors = safetensors.numpy.load_file(path)
  for bad, words in ((np.zeros(5, np.uint8), "got uint8"), (np.full(5, np.inf), "infinite")):
    safetensors.numpy.save_file(tensors | {"fc.bias": bad}, path)
    with pytest.raises(ValueError, match=f"{path}: fc.bias .*{words}"):
      load_vision_checkpoint(path, module)


def test_nothing_but_safetensors_is_read(tmp_path):
  path = tmp_path / "model.pt"
  path.write_bytes(pickle.dumps({"conv1.weight": [0.0]}))
  with pytest.raises(ValueError, match="model.pt is not a safetensors file"):
    load_vision_checkpoint(path, SMALL["basic"])
  with pytest.raises(FileNotFoundError):
    load_vision_checkpoint(tmp_path / "none.safetensors", SMALL["basic"])
  with pytest.raises(TypeError, match="got MLP"):
    load_vision_checkpoint(path, MLP(2))


def test_saving_names_the_wrong_array(tmp_path):
  module, path = SMALL["basic"], tmp_path / "model.safetensors"
  variables = random_variables(module)
  head = variables["params"]["head"]
  for params, words in (
    ({"head": {"kernel": head["kernel"]}}, "lacks tensors: fc.bias"),
    ({"head": head | {"kernel": head["kernel"][:, :4]}}, r"fc.weight has shape \(4, 8\), exp"),
    ({"tail": head}, "superfluous tensors: params/tail/bias"),
  ):
    with pytest.raises(ValueError, match=words):
      save_vision_checkpoint(path, module, variables | {"params": variables["params"] | params})
  assert not path.exists()


def randomized(torch, network):
  generator = torch.Generator().manual_seed(0)
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      for tensor, low in (
        (module.weight, 0.5),
        (module.bias, -0.5),
        (module.running_mean, -0.5),
        (module.running_var, 0.5),
      ):
        tensor.data.uniform_(low, low + 1, generator=generator)
  return network.eval()


def assert_same_logits(torch, network, module, path, images):
  from safetensors.torch import load_file, save_file

  save_file(network.state_dict(), path)
  variables = load_vision_checkpoint(path, module)
  with torch.no_grad():
    expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  logits = jax.jit(module.apply)(variables, images).logits
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  # PyTorch reads what we save.
  save_vision_checkpoint(path, module, variables)
  network.load_state_dict(load_file(path), strict=True)
  with torch.no_grad():
    again = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  np.testing.assert_allclose(again, expected, rtol=1e-6, atol=1e-6)


IMAGES = np.random.default_rng(0).normal(size=(2, 40, 48, 3)).astype(np.float32)


@pytest.mark.parametrize(("name", "make"), [("resnet18", resnet18), ("resnext50_32x4d", resnext50)])
def test_logits_are_those_of_torchvision(tmp_path, name, make):
  torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
  torch.manual_seed(0)
  network = randomized(torch, getattr(torchvision.models, name)(num_classes=7))
  assert_same_logits(torch, network, make(7), tmp_path / "model.safetensors", IMAGES)


def test_logits_are_those_of_a_wide_resnet_in_pytorch(tmp_path):
  torch = pytest.importorskip("torch")
  nn = torch.nn

  class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      self.bn1 = nn.BatchNorm2d(inputs)
      self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
      self.bn2 = nn.BatchNorm2d(outputs)
      self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
      if inputs != outputs:
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
      active = self.bn1(x).relu()
      hidden = self.conv2(self.bn2(self.conv1(active)).relu())
      return hidden + (self.convShortcut(active) if hasattr(self, "convShortcut") else x)

  class Stage(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      self.layer = nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1))

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
      self.block1, self.block2, self.block3 = Stage(16, 32, 1), Stage(32, 64, 2), Stage(64, 128, 2)
      self.bn1, self.fc = nn.BatchNorm2d(128), nn.Linear(128, 7)

    def forward(self, x):
      x = self.conv1(x)
      for stage in (self.block1, self.block2, self.block3):
        x = stage.layer(x)
      return self.fc(self.bn1(x).relu().mean((2, 3)))

  torch.manual_seed(0)
  network = randomized(torch, Network())
  module = WideResNet(7, depth=16, widen_factor=2)
  assert_same_logits(torch, network, module, tmp_path / "model.safetensors", IMAGES[:, :16, :12])
