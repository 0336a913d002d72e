"""Distillation in which a learned ratio decides, row by row, between teacher and label."""
