"""Sources and synthetic tasks: one door for data."""
