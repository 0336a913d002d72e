"""Decoupled mixup: two labels of a mixture need not take probability from each other."""
