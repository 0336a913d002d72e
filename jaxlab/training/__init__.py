"""The engine: state, update, mesh, checkpoints, loop, writers, seeds."""

from jaxlab.training.checkpoint import Checkpointer, CorruptCheckpointError, Restored
from jaxlab.training.foreign import restore_params
from jaxlab.training.loop import FitResult, Interrupted, NonFiniteLossError, fit, resume
from jaxlab.training.mesh import (
  data_parallel,
  initialize_multihost,
  make_mesh,
  replicate,
  shard_batch,
  shard_params,
)
from jaxlab.training.provenance import MismatchError, fingerprint
from jaxlab.training.seeds import over_seeds
from jaxlab.training.state import TrainState, init_state, num_params
from jaxlab.training.update import LossOutput, build_evaluate, build_update
from jaxlab.training.writers import (
  ConsoleWriter,
  JsonlWriter,
  TensorBoardWriter,
  Writer,
  read_jsonl,
  write_all,
)

__all__ = [
  "build_evaluate",
  "build_update",
  "Checkpointer",
  "ConsoleWriter",
  "CorruptCheckpointError",
  "data_parallel",
  "fingerprint",
  "fit",
  "FitResult",
  "init_state",
  "initialize_multihost",
  "Interrupted",
  "JsonlWriter",
  "LossOutput",
  "make_mesh",
  "MismatchError",
  "NonFiniteLossError",
  "num_params",
  "over_seeds",
  "read_jsonl",
  "replicate",
  "restore_params",
  "Restored",
  "resume",
  "shard_batch",
  "shard_params",
  "TensorBoardWriter",
  "TrainState",
  "write_all",
  "Writer",
]


def __dir__():
  return __all__
