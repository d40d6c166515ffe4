"""The checks that a proof consists of: one file a check, each with its own verdict, figures and error."""
