"""Weak-to-strong deception: where a strong student errs that weak labels supervise."""
