"""Passes, their order, their notation, and those who watch them."""
