"""Packages that only some rooms need, and that an extra of the distribution brings."""

import importlib
from types import ModuleType


def import_extra(module: str, *, extra: str) -> ModuleType:
  """Imports a module of a package that is not among the dependencies of the core.

  Args:
    module: its name, "grain" or "matplotlib.pyplot".
    extra: the extra that brings its package.

  Returns:
    The module.

  Raises:
    ImportError: if the package is not installed, or fails to be imported; names the package and
      the command that installs it.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    package = module.partition(".")[0]
    raise ImportError(
      f"{package} is needed here, but cannot be imported ({error}): pip install 'jaxlab[{extra}]'",
      name=error.name,
    ) from error
