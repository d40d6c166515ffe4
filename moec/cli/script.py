"""A compile command as a Python script that does the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moec.compiler.options import SETTINGS


def script(
    model: str | Path,
    settings: Mapping[str, Any],
    dump: Path | None,
    print_after: Sequence[str] | None = None,
    *,
    rebuild: bool,
    **rest: Any,
) -> str:
    """The script.

    Args:
        model: what is compiled; with `rebuild`, the manifest.
        settings: those that were given, by name.
        dump: the folder of `--dump`.
        print_after: the passes of `--print-after`; empty for all, None for none.
        rest: other keywords of `moec.compile`. What is false is its default, and left out.
    """
    plain = {name: SETTINGS[name].kind.write(SETTINGS[name].read(value)) for name, value in settings.items()}
    said = {name: _literal(value) for name, value in ({k: v for k, v in rest.items() if v} | plain).items()}
    hooks = _hooks(dump, print_after)
    given = said | ({"hooks": f"[{', '.join(hooks.values())}]"} if hooks else {})
    arguments = [repr(str(model)), *(f"{name}={text}" for name, text in given.items())]
    call = "moec.api.rebuild" if rebuild else "moec.compile"
    body = "".join(f"    {argument},\n" for argument in arguments)
    return f"{_imports(rebuild, hooks)}\nreport = {call}(\n{body})\nprint(report.headline())\n"


def _hooks(dump: Path | None, print_after: Sequence[str] | None) -> dict[str, str]:
    """The code that makes each hook, by the name of its class."""
    hooks = {} if dump is None else {"DumpHook": f"DumpHook(Path({str(dump)!r}))"}
    return hooks if print_after is None else hooks | {"PrintHook": f"PrintHook({list(print_after)!r}, sys.stderr)"}


def _imports(rebuild: bool, hooks: Mapping[str, str]) -> str:
    standard = {"PrintHook": "import sys\n", "DumpHook": "from pathlib import Path\n"}
    first = "".join(line for name, line in standard.items() if name in hooks)
    ours = "import moec.api\n" if rebuild else "import moec\n"
    names = ", ".join(hooks)
    return (f"{first}\n" if first else "") + ours + (f"from moec.pipeline.hooks import {names}\n" if names else "")


def _literal(value: Any) -> str:
    return repr(str(value) if isinstance(value, Path) else value)
