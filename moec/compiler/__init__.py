"""The compile driver: source, program, passes, engine, proof, folder; and the verbs that take one of these steps
again."""
