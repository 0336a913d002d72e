"""Contracts that functions are known to break; an entry that no longer fails is an error."""

# (room.function, contract) -> what happens.
KNOWN_FAULTS: dict[tuple[str, str], str] = {}
