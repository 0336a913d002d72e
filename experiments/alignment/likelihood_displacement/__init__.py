"""Preference optimization that lowers what it prefers."""
