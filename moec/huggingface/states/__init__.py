"""What transformers' decoders carry from token to token, as flat tensors; and the two parts of an encoder-decoder."""
