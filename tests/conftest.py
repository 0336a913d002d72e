"""One set-up for every test: eight simulated devices, quick compiling, a cache that persists."""

import os
import pathlib

import pytest

# XLA's pool must have more threads than there are devices, or LAPACK calls in a sharded program
# wait for each other for ever; it is read once, when the backend starts.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of a test is compiling, and this compiles 2 to 7 times faster. Subprocesses inherit it. The
# cache on disk keeps the programs apart, since flags are part of its keys.
SHIPPING = os.environ.get("JAXLAB_XLA") == "shipping"
_FAST = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_use_fusion_emitters=false",
)
if not SHIPPING:
  given = os.environ.get("XLA_FLAGS", "").split()
  os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys((*given, *_FAST)))

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
_CACHE = pathlib.Path(
  os.environ.get("JAXLAB_TEST_CACHE", pathlib.Path(__file__).parent.parent / ".cache" / "jax")
)
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

pytest_plugins = ["tests.budget"]


def pytest_runtest_setup(item):
  if item.get_closest_marker("shipping") and not SHIPPING:
    pytest.fail("needs XLA as it ships: make test-shipping", pytrace=False)
