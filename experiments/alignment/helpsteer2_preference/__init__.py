"""Reward models from ratings and preferences of the same responses."""
