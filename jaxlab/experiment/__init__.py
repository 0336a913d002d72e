"""Makes a module with `Config` and `run` a program: flags, stages, records, verdicts, report."""

from jaxlab.experiment.claims import (
  Claim,
  Precondition,
  check_claims,
  claim_from_stored,
  claim_to_stored,
  compare,
  precondition,
  t_interval,
)
from jaxlab.experiment.context import Context
from jaxlab.experiment.dry_run import Cost, count_flops, step_cost
from jaxlab.experiment.flags import UsageError
from jaxlab.experiment.program import About, execute, main
from jaxlab.experiment.records import Quantity, Record, Results, quantity
from jaxlab.experiment.wall import Stopped, stop_signals
from jaxlab.experiment.workdir import DamagedFileError

__all__ = [
  "About",
  "check_claims",
  "Claim",
  "claim_from_stored",
  "claim_to_stored",
  "compare",
  "Context",
  "Cost",
  "count_flops",
  "DamagedFileError",
  "execute",
  "main",
  "precondition",
  "Precondition",
  "quantity",
  "Quantity",
  "Record",
  "Results",
  "step_cost",
  "stop_signals",
  "Stopped",
  "t_interval",
  "UsageError",
]


def __dir__():
  return __all__
