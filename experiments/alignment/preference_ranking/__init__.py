"""Which pairs preference optimization ranks right."""
