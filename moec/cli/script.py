"""A compile command as a Python script that does the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moec.compiler.options import SETTINGS


def script(model: str | Path, settings: Mapping[str, Any], dump: Path | None, *, rebuild: bool, **rest: Any) -> str:
    """The script.

    Args:
        model: what is compiled; with `rebuild`, the manifest.
        settings: those that were given, by name.
        dump: the folder of `--dump`.
        rest: other keywords of `moec.compile`. What is false is its default, and left out.
    """
    plain = {name: SETTINGS[name].kind.write(SETTINGS[name].read(value)) for name, value in settings.items()}
    said = {name: _literal(value) for name, value in ({k: v for k, v in rest.items() if v} | plain).items()}
    hooks = {"hooks": f"[DumpHook(Path({str(dump)!r}))]"} if dump else {}
    arguments = [repr(str(model)), *(f"{name}={text}" for name, text in (said | hooks).items())]
    call = "moec.api.rebuild" if rebuild else "moec.compile"
    body = "".join(f"    {argument},\n" for argument in arguments)
    return f"{_imports(rebuild, bool(dump))}\nreport = {call}(\n{body})\nprint(report.headline())\n"


def _imports(rebuild: bool, dump: bool) -> str:
    first, ours = ("from pathlib import Path\n\n" if dump else ""), "import moec.api\n" if rebuild else "import moec\n"
    return first + ours + ("from moec.pipeline.hooks import DumpHook\n" if dump else "")


def _literal(value: Any) -> str:
    return repr(str(value) if isinstance(value, Path) else value)
