"""Representation calibration: wrong labels in a long tail of classes."""
