"""Learning from wrong solutions by the credit of their steps."""
