"""Folders of wav files, in the layouts in which sets of labeled sounds are published.

- esc10, esc50: `audio/*.wav` and `meta/esc50.csv`, of the archive of ESC-50, which holds ESC-10
- urbansound8k: `audio/fold*/*.wav` and `metadata/UrbanSound8K.csv`
- speech_commands: `<word>/*.wav`, `validation_list.txt` and `testing_list.txt`
- folders: `<class>/*.wav`
"""

import collections
import csv
import math
import operator
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.io.wavfile
import scipy.signal

from jaxlab._checks import check_at_least, check_choice, check_range
from jaxlab.data.sources import Example, Source

_NAMED = 3  # Unreadable files that a message names.


class _File(NamedTuple):
  path: pathlib.Path
  label: str
  part: str


def load_wav_folders(
  directory: str | os.PathLike,
  *,
  layout: str,
  sample_rate: int,
  split: str = "all",
  seconds: float | None = None,
  skip_unreadable: bool = False,
) -> Source:
  """Opens a folder of labeled wav files as a source; a file is decoded when it is read.

  Files of another sample rate are resampled by `scipy.signal.resample_poly`, and a warning says of
  how many files, and of which rates. Channels are averaged.

  Args:
    directory: where the archive was unpacked.
    layout: "esc10" or "esc50" (parts fold1 to fold5), "urbansound8k" (fold1 to fold10),
      "speech_commands" (train, validation, test; folders that begin with "_" hold no words), or
      "folders", one per class (a single part, all).
    sample_rate: of the waveforms, in Hz.
    split: parts joined by "+", such as "fold1+fold2", or "all".
    seconds: longer files are cut, and shorter ones end in zeros; None keeps their lengths, so that
      `as_arrays` may not stack them.
    skip_unreadable: whether to leave out files that are missing, damaged, empty, or encoded in a
      way that scipy does not read, with one warning, in place of raising.

  Returns:
    A source of examples `waveform`, float32 `[T]` in [-1, 1], and `label`, the index of the class
    in the sorted names, `source.features["label"].names`; of all parts, whatever the split. The
    examples are in the order of `source.paths`.

  Raises:
    ValueError: if an argument is out of range, the split has another part (the message lists those
      that there are), a table lacks a column, or files cannot be read: their number, and the first
      of them with the reason.
    FileNotFoundError: if the directory, a table, or every wav file is missing.

  Reference: Piczak, ESC, ACM Multimedia 2015, https://doi.org/10.1145/2733373.2806390; Salamon et
  al., UrbanSound8K, ACM Multimedia 2014, https://doi.org/10.1145/2647868.2655045; Warden, Speech
  Commands, 2018, https://arxiv.org/abs/1804.03209.
  """
  check_choice("layout", layout, tuple(_LAYOUTS))
  check_at_least(1, sample_rate=sample_rate)
  if seconds is not None:
    check_range("seconds", seconds, "(0, inf)")
  directory = pathlib.Path(directory).expanduser()
  if not directory.is_dir():
    raise FileNotFoundError(f"there is no directory {directory}.")
  files = _LAYOUTS[layout](directory)
  if not files:
    raise FileNotFoundError(f"{directory} holds no wav files in the layout {layout!r}.")
  names = sorted({file.label for file in files})
  files, rates = _readable(_part(files, split), directory, skip_unreadable)
  others = {rate: num for rate, num in sorted(collections.Counter(rates).items())}
  same = others.pop(sample_rate, 0)
  if others:
    found = ", ".join(f"{num} of {rate} Hz" for rate, num in others.items())
    warnings.warn(
      f"{directory}: resampled to {sample_rate} Hz: {len(files) - same} of {len(files)} files, "
      f"{found}.",
      stacklevel=2,
    )
  length = None if seconds is None else max(1, round(seconds * sample_rate))
  return _WavFiles(files, names, sample_rate, length)


class _WavFiles:
  """Sounds in files, decoded one by one."""

  def __init__(self, files: list[_File], names: list[str], sample_rate: int, length: int | None):
    import tensorflow_datasets as tfds

    self.paths = [file.path for file in files]
    self.features = tfds.features.FeaturesDict({
      "waveform": tfds.features.Tensor(shape=(length,), dtype=np.float32),
      "label": tfds.features.ClassLabel(names=names),
    })  # fmt: skip
    self._labels = [names.index(file.label) for file in files]
    self._sample_rate, self._length = sample_rate, length

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Example:
    index = operator.index(index)
    path, label = self.paths[index], self._labels[index]
    try:
      rate, samples = _read(path)
    except (OSError, ValueError) as error:
      raise ValueError(f"{path} cannot be read any more: {error}") from error
    waveform = _as_floats(samples)
    if rate != self._sample_rate:
      shared = math.gcd(rate, self._sample_rate)
      waveform = scipy.signal.resample_poly(waveform, self._sample_rate // shared, rate // shared)
    if self._length is not None:
      waveform = waveform[: self._length]
      waveform = np.pad(waveform, (0, self._length - len(waveform)))
    waveform = np.clip(waveform, -1.0, 1.0).astype(np.float32)
    return {"waveform": waveform, "label": np.asarray(label, np.int64)}

  def __repr__(self) -> str:
    return f"<source of {len(self)} sounds of {self.features['label'].num_classes} classes>"


def _as_floats(samples: np.ndarray) -> np.ndarray:
  """Samples `[T]` or `[T, channels]` as one channel, full scale at -1 and 1."""
  if samples.dtype == np.uint8:
    samples = (samples.astype(np.float64) - 128) / 128
  elif np.issubdtype(samples.dtype, np.integer):
    samples = samples / -float(np.iinfo(samples.dtype).min)
  return samples.reshape(len(samples), -1).mean(axis=1, dtype=np.float64)


def _read(path: pathlib.Path, **options: Any) -> tuple[int, np.ndarray]:
  with warnings.catch_warnings():
    # Chunks of notes are skipped; a file that ends before its end is damaged.
    warnings.simplefilter("ignore", scipy.io.wavfile.WavFileWarning)
    warnings.filterwarnings("error", "Reached EOF", scipy.io.wavfile.WavFileWarning)
    try:
      return scipy.io.wavfile.read(path, **options)
    except scipy.io.wavfile.WavFileWarning as warning:
      raise ValueError(str(warning)) from None


def _readable(
  files: list[_File], directory: pathlib.Path, skip_unreadable: bool
) -> tuple[list[_File], list[int]]:
  """The files that can be read, and their sample rates."""
  kept, rates, faults = [], [], []
  for file in files:
    try:
      rates.append(_rate(file.path))
      kept.append(file)
    # What scipy raises for a damaged header is not documented.
    except Exception as error:
      faults.append(f"{file.path.relative_to(directory)} ({error})")
  if faults:
    named = "; ".join(faults[:_NAMED]) + ("; ..." if len(faults) > _NAMED else "")
    message = f"{directory}: {len(faults)} of {len(files)} files cannot be read: {named}."
    if not skip_unreadable or not kept:
      raise ValueError(message)
    warnings.warn(message + " They are left out.", stacklevel=3)
  return kept, rates


def _rate(path: pathlib.Path) -> int:
  try:
    rate, samples = _read(path, mmap=True)
  except ValueError:  # 24 bits have no memory map.
    rate, samples = _read(path)
  if not len(samples) or rate < 1:
    raise ValueError(f"{len(samples)} samples at {rate} Hz")
  return rate


def _part(files: list[_File], split: str) -> list[_File]:
  parts = list(dict.fromkeys(file.part for file in files))
  wanted = [name.strip() for name in split.split("+")]
  unknown = [name for name in wanted if name not in ("all", *parts)]
  if unknown:
    known = ", ".join(sorted(parts, key=lambda name: (len(name), name)))
    raise ValueError(f"split={split!r}: there is no part {unknown[0]!r}, only all and {known}.")
  return [file for file in files if "all" in wanted or file.part in wanted]


def _rows(path: pathlib.Path, *columns: str) -> list[Mapping[str, str]]:
  if not path.is_file():
    raise FileNotFoundError(f"there is no table {path}.")
  with open(path, newline="", encoding="utf-8") as file:
    reader = csv.DictReader(file)
    rows = list(reader)
  missing = [name for name in columns if name not in (reader.fieldnames or ())]
  if missing:
    raise ValueError(f"{path} has no column {missing[0]!r}.")
  return rows


def _esc(directory: pathlib.Path, *, only_ten: bool) -> list[_File]:
  rows = _rows(directory / "meta" / "esc50.csv", "filename", "fold", "category", "esc10")
  return [
    _File(directory / "audio" / row["filename"], row["category"], f"fold{row['fold']}")
    for row in rows
    if not only_ten or row["esc10"].strip().lower() == "true"
  ]


def _urban_sounds(directory: pathlib.Path) -> list[_File]:
  path = directory / "metadata" / "UrbanSound8K.csv"
  folds = ((row, f"fold{row['fold']}") for row in _rows(path, "slice_file_name", "fold", "class"))
  return [
    _File(directory / "audio" / fold / row["slice_file_name"], row["class"], fold)
    for row, fold in folds
  ]


def _speech_commands(directory: pathlib.Path) -> list[_File]:
  parts = {}
  for part, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
    path = directory / name
    if not path.is_file():
      raise FileNotFoundError(f"there is no list {path}.")
    parts |= dict.fromkeys(path.read_text(encoding="utf-8").split(), part)
  files = [file for file in _folders(directory) if not file.label.startswith("_")]
  there = {f"{file.label}/{file.path.name}": file for file in files}
  # A file of a list that is missing is one that cannot be read.
  missing = [_File(directory / name, name.split("/")[0], "train") for name in parts]
  files += [file for name, file in zip(parts, missing) if name not in there]
  return [
    file._replace(part=parts.get(f"{file.label}/{file.path.name}", "train")) for file in files
  ]


def _folders(directory: pathlib.Path) -> list[_File]:
  return [
    _File(path, folder.name, "all")
    for folder in sorted(folder for folder in directory.iterdir() if folder.is_dir())
    for path in sorted(folder.glob("*.wav"))
  ]


_LAYOUTS: dict[str, Callable[[pathlib.Path], list[_File]]] = {
  "esc10": lambda directory: _esc(directory, only_ten=True),
  "esc50": lambda directory: _esc(directory, only_ten=False),
  "urbansound8k": _urban_sounds,
  "speech_commands": _speech_commands,
  "folders": _folders,
}
