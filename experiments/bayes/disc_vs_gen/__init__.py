"""Linear classifiers fitted generatively and discriminatively: how many examples each needs."""
