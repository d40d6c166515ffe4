"""The `Program`: a small fx graph, its signature, the meaning of its operators, and where each node came from."""
