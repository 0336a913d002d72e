"""Whether a model leans on the wording of a benchmark."""
