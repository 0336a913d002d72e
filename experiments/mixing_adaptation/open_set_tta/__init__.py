"""Open-set test-time adaptation: only rows that gain confidence are learned from."""
