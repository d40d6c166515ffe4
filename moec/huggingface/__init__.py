"""Reading models of the transformers library: the one place where it is imported."""
