"""From a Hugging Face folder to a captured program: config, skeleton, experts, attention, cache, names of weights."""
