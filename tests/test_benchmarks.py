"""The benchmarks are run by hand, and months apart: what they take from moec has to be there all the same."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(p for folder in ("benchmarks", "examples", "docs/scripts") for p in (ROOT / folder).glob("*.py"))


def missing(text: str) -> Iterator[str]:
    """What a script takes from moec or from the tests that is not there, as it writes it."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(("moec", "tests")):
            continue
        module = import_module(str(node.module))
        for alias in node.names:
            inside = hasattr(module, "__path__") and find_spec(f"{node.module}.{alias.name}") is not None
            if not inside and not hasattr(module, alias.name):
                yield f"line {node.lineno}: from {node.module} import {alias.name}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_it_takes_only_what_moec_has(script: Path) -> None:
    assert list(missing(script.read_text(encoding="utf-8"))) == []


def test_a_name_that_moved_is_found() -> None:
    assert list(missing("from moec.execution import parts\nfrom moec.execution.parts import responds")) == [
        "line 2: from moec.execution.parts import responds"
    ]


def printed_elsewhere(text: str) -> Iterator[str]:
    """Where a script prints JSON by itself: a benchmark's report goes through `benchmarks/reporting.py`, so that each
    has a machine, versions and rows."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write"):
            text = ", ".join(ast.unparse(part) for part in (*node.args, *(k.value for k in node.keywords)))
            if "json.dumps" in text and "file=" not in ast.unparse(node):
                yield f"line {node.lineno}: {text}"


# the one that prints for all, one whose rows come from the files of its stages, one that answers itself in a process
THEIRS = ("reporting.py", "first_day.py", "huge_model.py")
BENCHMARKS = [p for p in SCRIPTS if p.parent.name == "benchmarks"]


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda p: p.name)
def test_its_json_is_a_report(script: Path) -> None:
    assert script.name in THEIRS or list(printed_elsewhere(script.read_text(encoding="utf-8"))) == []


def test_json_of_ones_own_is_found() -> None:
    assert list(printed_elsewhere("print(json.dumps(1) if options.json else 2)")) != []
    assert list(printed_elsewhere("if options.json:\n    print(json.dumps(report))")) != []
    assert list(printed_elsewhere("print(json.dumps(1), file=answers)")) == []
