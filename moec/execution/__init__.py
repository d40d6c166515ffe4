"""Run programs and engines: a whole program, one weight at a time, many inputs side by side, a text token by token."""
