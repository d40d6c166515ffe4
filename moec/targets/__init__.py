"""What an engine is built for: the target's text, the interface of a backend, and what a compile would do."""
