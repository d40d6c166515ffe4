"""Where the first day's modules are, and a stage's rows in a test's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def rows_of(folder: Path, **setting: Any) -> Any:
    """The rows of a stage called `stage`."""
    from first_day_rows import Rows

    return Rows("stage", folder, **setting)
