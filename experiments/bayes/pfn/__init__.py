"""Transformers Can Do Bayesian Inference."""
