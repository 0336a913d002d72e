"""One set-up for every test: eight simulated devices and a compilation cache that persists."""

import os
import pathlib

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
