"""GGUF files, which llama.cpp and what is built on it load: a program written as one, and one read as a model."""
