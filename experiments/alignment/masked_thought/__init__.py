"""Masked tokens of the reasoning as a regularizer of fine-tuning."""
