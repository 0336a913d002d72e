"""Mixup learns the feature that few examples carry, and may be stopped once it has."""
