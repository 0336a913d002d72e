"""One set-up for every test: eight simulated devices and a compilation cache that persists."""

import gc
import os
import pathlib

import pytest

# XLA's pool must have more threads than there are devices, or LAPACK calls in a sharded program
# wait for each other for ever; it is read once, when the backend starts.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
_CACHE = pathlib.Path(
  os.environ.get("JAXLAB_TEST_CACHE", pathlib.Path(__file__).parent.parent / ".cache" / "jax")
)
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

_TESTS = pathlib.Path(__file__).parent
_WHOLE_PROGRAMS = {"test_colabs.py", "experiments"}


def pytest_collection_modifyitems(items):
  """Whole programs first, or one worker ends alone with the longest file."""
  items.sort(key=lambda item: _WHOLE_PROGRAMS.isdisjoint(item.path.relative_to(_TESTS).parts))


# Linux gives a process 65,530 memory maps, and every compiled program holds some: without this a
# worker that has run most of the files aborts in the compiler.
_MAPS = pathlib.Path("/proc/self/maps")
_MANY_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
  """Frees the programs of earlier files once there are many; the cache on disk keeps them."""
  yield
  if _MAPS.exists() and _MAPS.read_text().count("\n") > _MANY_MAPS:
    jax.clear_caches()
    gc.collect()
