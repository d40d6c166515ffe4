"""The command line, run in the tests' own process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moec.cli import main


class Cli:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object, status: int = 0) -> str:
        """Run; returns stdout and keeps stderr in `err`."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, self.err = self.capsys.readouterr()
        assert int(stop.value.code or 0) == status, self.err
        return str(out)

    def json(self, *arguments: object, status: int = 0) -> Any:
        """What it prints with `--json`, which is an object with a version, whatever the verb and the status."""
        data = json.loads(self(*arguments, "--json", status=status))
        assert data.pop("schema_version") == 1
        return data
