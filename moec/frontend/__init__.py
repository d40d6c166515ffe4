"""From a PyTorch model to a `Program`: a source says what the model is, torch.export captures it on the meta device."""
