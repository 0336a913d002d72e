"""Training for the number of samples that a problem will get."""
