"""Pre-training by the votes of neighbors, which keeps what tells a class's examples apart."""
