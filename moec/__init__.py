"""moec: a compiler for mixture-of-experts. A PyTorch model goes in, a verified engine comes out."""
