"""The numerical proof: is an engine equal to the untouched model, and where does it depart from it."""
