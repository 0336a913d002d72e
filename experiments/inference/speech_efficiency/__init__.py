"""Batches of utterances by duration and tokens, and decoders with fewer layers."""
