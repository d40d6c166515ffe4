"""Weights in few bits: grids, rounding, GPTQ, and how many bits each weight gets."""
