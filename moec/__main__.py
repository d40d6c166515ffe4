"""`python -m moec` is `moec`."""

from moec.cli import main

main()
