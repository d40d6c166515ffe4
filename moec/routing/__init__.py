"""What routers do: figures of their choices, and losses that steer them, on plain tensors."""
