"""Locality of experience: why think step by step."""
