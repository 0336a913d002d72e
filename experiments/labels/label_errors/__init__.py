"""Wrong labels: finding them, and what those of a test set do to a comparison of models."""
