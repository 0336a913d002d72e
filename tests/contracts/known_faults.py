"""Contracts that functions are known to break; an entry that no longer fails is an error."""

# (room.function, contract) -> what happens.
KNOWN_FAULTS = {
  ("uncertainty.fit_gp", "shard_map"): "optax's line search has branches of different types",
}
