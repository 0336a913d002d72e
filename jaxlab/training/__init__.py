"""The engine: state, update, mesh, checkpoints, loop, writers, seeds."""
