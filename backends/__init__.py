"""The runtimes that programs are lowered to: one file, or one folder, each."""
