"""Papers on what can still be done at inference, and on how its results are evaluated."""
