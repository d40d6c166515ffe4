"""moec's operators in the place of transformers' experts, attention and scans, each proven by value."""
