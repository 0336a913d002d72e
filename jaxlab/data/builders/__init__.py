"""tfds builders of the data sets in installed packages: one family of sets per package."""
