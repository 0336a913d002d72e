"""Nudging: a small aligned model writes the few tokens of which a base model is unsure."""
