"""Lazy weights: a shape, a dtype, and a way to load each."""
