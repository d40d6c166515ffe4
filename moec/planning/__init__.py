"""What a model costs before anything is compiled: counted from its config, on paper; no weight is read."""
