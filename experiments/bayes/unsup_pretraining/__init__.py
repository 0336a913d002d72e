"""Unsupervised pretraining: what unlabeled inputs spare in labels."""
