"""Notebooks, kept as executed files."""
