"""`python -m moec` is `moec`: a file in the current directory takes no other module's place."""

import sys
from pathlib import Path

if sys.path and not sys.flags.safe_path and Path(sys.path[0] or ".").resolve() == Path.cwd():
    del sys.path[0]  # `-m` puts it there

from moec.cli import main

main()
