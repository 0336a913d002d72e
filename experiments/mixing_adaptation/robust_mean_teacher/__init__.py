"""Robust mean teacher: test-time adaptation to corruptions that follow each other."""
