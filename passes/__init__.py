"""The passes: one file a pass, named as it is on the command line."""
