"""Find dense FFNs, experts and routers in a captured graph, by structure and by value."""
