"""Which engine is faster: engines beside each other, in turns, on the same inputs."""
