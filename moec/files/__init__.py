"""Files of others and of the user: opened only where they are files and lie where they should, and replaced in one
step."""
