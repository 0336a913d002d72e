"""Unpacked published sets of corrupted images: CIFAR-10-C, CIFAR-100-C, ImageNet-C."""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab._extras import import_extra
from jaxlab.data.sources import Example, Source

_SEVERITIES = 5
_ADDRESSES = (
  "CIFAR-10-C: https://zenodo.org/records/2535967, CIFAR-100-C: "
  "https://zenodo.org/records/3555552, ImageNet-C: https://zenodo.org/records/2235448"
)


class CorruptedImages(NamedTuple):
  """Labeled images under one corruption.

  Attributes:
    images: u8 `[n, h, w, c]`, read from disk on access.
    labels: i32 `[n]`.
  """

  images: np.ndarray
  labels: np.ndarray


def load_corrupted_images(
  directory: str | os.PathLike, *, kind: str, severity: int
) -> CorruptedImages:
  """Opens one corruption of CIFAR-10-C or CIFAR-100-C, without reading it into memory.

  A directory holds `labels.npy` and one `<kind>.npy` per corruption: five severities of the test
  set stacked, u8 `[5 n, h, w, c]`, n = 10,000 as published. Files are never unpickled.

  Args:
    directory: where the archive was unpacked.
    kind: name of a file, such as "gaussian_noise" or "fog".
    severity: 1 to 5.

  Returns:
    `CorruptedImages`, whose images are a view of the file.

  Raises:
    ValueError: if `severity` lies outside 1..5 or a file does not hold what it should; the message
      names the file, what is expected and what it holds.
    FileNotFoundError: if the directory or a file is missing; the message lists what is there.

  Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions
  and Perturbations, ICLR 2019, https://arxiv.org/abs/1903.12261.
  """
  _check_severity(severity)
  directory = _existing(directory)
  path = directory / f"{kind}.npy"
  if kind == "labels" or not path.is_file():
    there = sorted(file.stem for file in directory.glob("*.npy") if file.stem != "labels")
    raise FileNotFoundError(
      f"kind={kind!r}: there is no corruption {path}; in {directory} are {_listed(there)}."
    )
  images = _open(path, ndim=4)
  if len(images) % _SEVERITIES or not len(images):
    raise ValueError(f"{path} must stack five severities, but holds shape {images.shape}.")
  labels_path = directory / "labels.npy"
  if not labels_path.is_file():
    raise FileNotFoundError(f"{labels_path} is missing: it belongs to {path}.")
  labels = _open(labels_path, ndim=1)
  if len(labels) != len(images):
    raise ValueError(
      f"{labels_path} must hold {len(images)} labels as {path} holds images, but holds "
      f"{len(labels)}."
    )
  num = len(images) // _SEVERITIES
  rows = slice((severity - 1) * num, severity * num)
  return CorruptedImages(images[rows], labels[rows].astype(np.int32))


def _open(path: pathlib.Path, ndim: int) -> np.ndarray:
  """Maps a file of unsigned bytes into memory."""
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(f"{path} is not a plain array: {error}") from error
  integers = ndim == 1 and np.issubdtype(array.dtype, np.integer)
  if array.ndim != ndim or not (array.dtype == np.uint8 or integers):
    raise ValueError(
      f"{path} must hold uint8 values with {ndim} axes, but holds {array.dtype} of shape "
      f"{array.shape}."
    )
  return array


def load_corrupted_folders(directory: str | os.PathLike, *, kind: str, severity: int) -> Source:
  """Opens one corruption of ImageNet-C: folders `<kind>/<severity>/<class>/<name>.JPEG`.

  Args:
    directory: where the archives were unpacked, all into one directory.
    kind: name of a folder, such as "gaussian_noise" or "fog".
    severity: 1 to 5.

  Returns:
    A source of examples `image` u8 `[h, w, 3]` and `label`, the index of the class in the sorted
    folder names, which for all 1,000 classes is the usual label. Files are decoded when they are
    read.

  Raises:
    ValueError: if `severity` lies outside 1..5.
    FileNotFoundError: if a folder is missing or holds no images; the message lists what is there.

  Reference: Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261.
  """
  _check_severity(severity)
  root = _existing(directory) / kind / str(severity)
  if not root.is_dir():
    there = sorted(f"{p.parent.name}/{p.name}" for p in root.parents[1].glob("*/[1-5]"))
    raise FileNotFoundError(
      f"kind={kind!r}, severity={severity}: there is no folder {root}; in {root.parents[1]} are "
      f"{_listed(there)}."
    )
  classes = sorted(folder for folder in root.iterdir() if folder.is_dir())
  files = [
    (path, label) for label, folder in enumerate(classes) for path in sorted(folder.glob("*.JPEG"))
  ]
  if not files:
    raise FileNotFoundError(
      f"{root} holds no <class>/<name>.JPEG, only {_listed(os.listdir(root))}."
    )
  return _Folders(files)


class _Folders:
  """Images in files, decoded one by one."""

  def __init__(self, files: list[tuple[pathlib.Path, int]]):
    self._files = files

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Example:
    path, label = self._files[index]
    image_files = import_extra("PIL.Image", extra="data")
    with image_files.open(path) as image:
      return {"image": np.asarray(image.convert("RGB")), "label": np.asarray(label, np.int64)}


def _check_severity(severity: int) -> None:
  if severity not in range(1, _SEVERITIES + 1):
    raise ValueError(f"severity must be an integer in 1..{_SEVERITIES}, got {severity}.")


def _existing(directory: str | os.PathLike) -> pathlib.Path:
  directory = pathlib.Path(directory).expanduser()
  if not directory.is_dir():
    raise FileNotFoundError(f"there is no directory {directory}; available from {_ADDRESSES}.")
  return directory


def _listed(names: list[str]) -> str:
  return ", ".join(sorted(names)) or "none"
