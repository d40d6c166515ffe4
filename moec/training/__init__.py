"""Training mixtures: a monitor of routers, losses, and their parameters apart."""
