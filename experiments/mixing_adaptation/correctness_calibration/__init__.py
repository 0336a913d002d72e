"""A temperature per sample, fitted to whether predictions are right."""
