"""Resampling until an imperfect verifier accepts."""
