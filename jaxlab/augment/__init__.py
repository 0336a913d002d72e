"""Inputs and labels in, perturbed inputs and labels out."""
