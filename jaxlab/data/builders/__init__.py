"""tfds builders of the sets that installed packages hold: one family of sets a package."""
