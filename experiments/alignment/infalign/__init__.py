"""Alignment for the procedure that decodes."""
