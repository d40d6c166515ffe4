"""Which inputs a transformers model takes: read from its forward, its config and its processor."""
