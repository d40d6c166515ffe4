"""Checkpoint formats, one file each: which tensors of a file make up a weight."""
