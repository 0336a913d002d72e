"""The names under which the iterators of `jaxlab.data` stood here."""

from jaxlab.data import SeededBatches, draw_key_data

key_data = draw_key_data

__all__ = ["key_data", "SeededBatches"]
