"""Pooling one model's predictions over demonstrations and wordings calibrates few-shot answers."""
