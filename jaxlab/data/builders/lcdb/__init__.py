"""The tfds builder of LCDB's learning curves."""
