"""The tfds builder of aeon's bundled time-series classification sets."""
