"""The tfds builder of scikit-learn's bundled tables and digits."""
