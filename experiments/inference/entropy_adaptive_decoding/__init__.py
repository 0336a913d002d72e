"""Entropy adaptive decoding: a large model takes over where predictions are uncertain."""
