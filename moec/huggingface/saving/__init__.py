"""From a program back to a checkpoint that transformers or vLLM load."""
