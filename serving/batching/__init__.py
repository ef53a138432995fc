"""Continuous batching on unmodified causal models of `transformers`: requests join and leave between steps."""
