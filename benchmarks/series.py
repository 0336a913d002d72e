"""Series: 500 selected features of LightWaveS beside all of Rocket and of MiniRocket.

Kernels are drawn and features are selected before anything is timed. On one core, all threads of
the process are bound to it; Linux can do that. XLA runs a program of one device on about one core,
so on all cores each device transforms its share of the series.
"""

import concurrent.futures
import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import augment, models

PACKAGES = ("aeon", "numba", "scikit-learn")
_TRAIN, _TEST, _CLASSES, _FEATURES = 200, 400, 3, 500
_PART = 100  # Series of a turn of Rocket, whose times are per series.
_SHAPES, _QUICK_SHAPES = ((24, 64), (1, 251)), ((3, 32), (1, 40))
_OURS, _SPREAD = "LightWaveSClassifier.selected_features", "its series spread over devices"
_ROCKET, _MINI = "aeon's Rocket, 10,000 kernels", "aeon's MiniRocket, 9,996 kernels"
_GROUPS = {
  (shape, all_cores): "{} channels x {} steps, {}".format(*shape, where)
  for shape in _SHAPES
  for all_cores, where in ((False, "one core"), (True, "all cores"))
}
ROWS = tuple(
  row
  for (_, all_cores), group in _GROUPS.items()
  for row in (
    Row(group, _SPREAD if all_cores else _OURS, _ROCKET, goal=5.0, unit="series"),
    Row(group, _SPREAD if all_cores else _OURS, _MINI, goal=1.0, unit="series"),
    *([Row(group, _OURS, _MINI, unit="series")] if all_cores else []),
  )
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  cores = measure.num_cores()
  measure.start(divides=cores)
  num_train, num_test, part = (32, 16, 8) if quick else (_TRAIN, _TEST, _PART)
  for shape, used in zip(_SHAPES, _QUICK_SHAPES if quick else _SHAPES):
    series, labels = _draw(num_train + num_test, *used)
    train, test = np.split(series, [num_train])
    model = models.LightWaveSClassifier(50 if quick else _FEATURES)
    model.fit(train, labels[:num_train])
    notes = {"kernels": len(model.kernels_), "channels read": len(model.channels_)}
    ours = {
      _OURS: functools.partial(model.selected_features, test),
      _SPREAD: functools.partial(_spread, model.selected_features, test),
    }
    checks = _checks_of_ours(model, test, ours)
    for all_cores in (False, True):
      peers = _peers(train, test, part, num_jobs=cores if all_cores else 1)
      checks |= _checks_of_peers(peers)
      functions = {name: Timed(call, num_test) for name, call in ours.items()}
      functions |= {name: Timed(call, n) for name, (call, n) in peers.items()}
      if not all_cores:
        del functions[_SPREAD]
      with contextlib.nullcontext() if all_cores else _one_core():
        times = measure.interleave(functions, quick=quick, repetitions=7)
      for row in (row for row in ROWS if row.group == _GROUPS[shape, all_cores]):
        yield measure.result(row, times, checks=checks, notes=notes)


def _draw(count: int, num_channels: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Noise, and in an eighth of the channels a sine whose frequency is the class."""
  rng = np.random.default_rng(0)
  labels = np.arange(count) % _CLASSES
  series = rng.standard_normal((count, num_channels, num_steps), np.float32)
  phases = rng.uniform(0, 2 * np.pi, (count, 1, 1))
  waves = np.sin(0.2 * (labels[:, None, None] + 1) * np.arange(num_steps) + phases)
  series[:, : max(1, num_channels // 8)] += waves.astype(np.float32)
  return series, labels


def _spread(transform: Callable[[np.ndarray], np.ndarray], series: np.ndarray) -> np.ndarray:
  def of_device(device, part):
    with jax.default_device(device):
      return transform(part)

  devices = jax.devices()
  with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
    parts = np.array_split(series, len(devices))
    return np.concatenate(list(pool.map(of_device, devices, parts)))


def _peers(train, test, part: int, *, num_jobs: int) -> dict[str, Timed]:
  from aeon.transformations.collection.convolution_based import MiniRocket, Rocket

  options = {"random_state": 0, "n_jobs": num_jobs}
  rocket, mini = (transformer(**options).fit(train) for transformer in (Rocket, MiniRocket))
  return {
    _ROCKET: Timed(lambda: rocket.transform(test[:part]), part),
    _MINI: Timed(lambda: mini.transform(test), len(test)),
  }


def _checks_of_ours(model, test, functions) -> dict[str, bool]:
  scaled = augment.standardize_channels(test, statistics=model.statistics_)
  everything = np.asarray(models.scatter_all_features(scaled))
  sizes = test.shape[1], 84, model.max_dilation_log2 + 1
  columns = np.ravel_multi_index(model.kernels_.T, sizes)
  expected = everything[:, columns][:, model.feature_mask_]
  # A value at 0 may count as positive in one of them.
  alike = [np.isclose(f(), expected, rtol=1e-3, atol=1e-4).mean() for f in functions.values()]
  return {
    "as many features as were asked for": expected.shape == (len(test), model.num_features),
    "those of the transform by all kernels, 99.9% of them to 1e-3": min(alike) >= 0.999,
  }


def _checks_of_peers(peers: dict[str, Timed]) -> dict[str, bool]:
  widths = {_ROCKET: 20_000, _MINI: 9_996}
  found = {name: (np.asarray(call()), count) for name, (call, count) in peers.items()}
  right = (
    x.shape == (count, widths[name]) and np.isfinite(x).all() for name, (x, count) in found.items()
  )
  return {"finite features of the peers, as many as they have": all(right)}


@contextlib.contextmanager
def _one_core():
  """Binds all threads to one core, and lets them go in the end, new ones too."""
  cores = os.sched_getaffinity(0)

  def bind(cores):
    for task in pathlib.Path("/proc/self/task").iterdir():
      with contextlib.suppress(ProcessLookupError):  # It ended meanwhile.
        os.sched_setaffinity(int(task.name), cores)

  bind({min(cores)})
  try:
    yield
  finally:
    bind(cores)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
