"""The peers' sides of the tables, each written as its users would write it."""
