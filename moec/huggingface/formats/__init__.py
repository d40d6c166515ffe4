"""Checkpoint formats: which tensors of a file make up a weight."""
