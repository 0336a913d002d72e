"""The peers' code for the tables, each as its users would write it."""
