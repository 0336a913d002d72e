"""The tfds builder of KEEL's classification tables."""
