"""The report of a compilation: plain data with a schema, and its forms for people and for continuous integration."""
