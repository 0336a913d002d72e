"""Calibrated language models state falsehoods as often as facts occurred but once in training."""
