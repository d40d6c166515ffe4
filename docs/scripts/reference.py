"""The reference as Markdown: the command line, settings, passes, targets, presets, error codes, and Python's names.

Nothing here is written by hand: each page comes from the registries and the docstrings, so none can be out of date.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import click

import moec
from moec import registry
from moec.cli import SUMMARIES, VERBS, cli
from moec.cli.config import preset_text, presets
from moec.compiler.options import SETTINGS
from moec.compiler.setting import Setting
from moec.errors import CODES, EXIT_CODES

ROOT = Path(__file__).parents[2]


def pages() -> dict[str, str]:
    """Address in the site -> Markdown."""
    made = {
        "cli": command_line(),
        "settings": settings(),
        "passes": passes(),
        "targets": targets(),
        "presets": listed_presets(),
        "errors": errors(),
        "python": python(),
    }
    return {f"reference/{name}.md": text for name, text in made.items()}


def command_line() -> str:
    """Every verb: what it does, how it is written, its options."""
    text = "# Command line\n\nEvery verb, as its `--help` says it.\n\n" + _table(
        ("verb", "what it does"), [(f"[`{verb}`](#moec-{verb})", line) for verb, line in SUMMARIES.items()]
    )
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        context = click.Context(command, info_name=f"moec {verb}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        rows = [_option(p, context) for p in command.get_params(context) if isinstance(p, click.Option)]
        text += f"## moec {verb}\n\n```text\n{usage}\n```\n\n{_paragraphs(command.help or '')}\n\n"
        text += _table(("option", "what it says"), rows)
    return text


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    metavar = "" if option.is_flag else f" {option.make_metavar(context)}"
    names = ", ".join(f"`{name}{metavar}`" for name in (*option.opts, *option.secondary_opts))
    return names, option.help or ""


def _paragraphs(help: str) -> str:
    """A verb's help; what it marks as laid out by hand stays so."""
    text = inspect.cleandoc(help)
    return "\n\n".join(
        "```text\n" + p.removeprefix("\b\n") + "\n```" if p.startswith("\b") else p for p in text.split("\n\n")
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def settings() -> str:
    """Every setting of a compilation: its key in a file, its flag, what it takes."""
    rows = [(f"`{s.key}`", f"`{s.flag}`", _takes(s), s.help) for s in SETTINGS.values()]
    intro = "The keys of a TOML file for `--config`, and the flags of `moec compile`. Passes are tables `[[pass]]`."
    return f"# Settings\n\n{intro}\n\n" + _table(("key", "flag", "takes", "what it says"), rows)


def _takes(setting: Setting) -> str:
    default = f"; {setting.shown}" if setting.shown else ""
    return f"{setting.kind.expected}{default}"


def _cell(text: str) -> str:
    """What a cell holds: in code a bar is no border, elsewhere it would be."""
    return re.sub(r"`[^`]*`|\|", lambda m: r"\|" if m[0] == "|" else m[0], text)


def passes() -> str:
    """Every pass: how it is written, its contract, its options."""
    text = '# Passes\n\nWritten `--pass "name(option=value)"`; [settings](settings.md) in a file.\n\n'
    for name in registry.names("passes"):
        kind = _class_of(ROOT / "passes" / f"{name.replace('-', '_')}.py", name)
        text += f"## {name}\n\n::: {kind}\n    options: {{show_root_heading: false, members: false}}\n\n"
    return text


def _class_of(path: Path, name: str) -> str:
    """The class of a pass, by the rule that names it, as a path that is read without being imported."""
    wanted = "".join(part.capitalize() for part in name.split("-"))
    found = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and n.name == wanted]
    return f"passes.{path.stem}.{found[0]}"


def targets() -> str:
    """Every target and its options."""
    text = "# Targets\n\nWritten `--target name:device,option=value`.\n\n"
    for name in registry.names("backends"):
        kind = registry.find("backends", name)
        rows = [(f"`{key}`", _form(form)) for key, form in kind.declared.items()]
        text += f"## {name}\n\n{inspect.getdoc(kind)}\n\n" + _table(("option", "takes"), rows)
    return text


def _form(form: object) -> str:
    return " or ".join(f"`{f}`" for f in form) if isinstance(form, tuple) else f"{form}"


def listed_presets() -> str:
    """Every preset, as the file that it is."""
    text = "# Presets\n\nWritten `--config name`. `moec cp name .` copies one, to be changed.\n\n"
    for name, line in presets().items():
        text += f"## {name}\n\n{line}.\n\n```toml\n{preset_text(name).strip()}\n```\n\n"
    return text


def errors() -> str:
    """Every error code and its exit status."""
    rows = [(code, str(EXIT_CODES[code[:2]]), meaning) for code, meaning in CODES.items()]
    return "# Error codes\n\n" + _table(("code", "exit status", "meaning"), rows)


def python() -> str:
    """Every public name of `moec`, from its docstring."""
    text = "# Python\n\nWhat `import moec` gives. [How do I use it from Python?](../python.md) shows it in use.\n\n"
    homes = {name: f"moec.{home}.{name}" for name, home in moec._HOMES.items()} | {"MoecError": "moec.errors.MoecError"}
    for title, kind in (("Functions", str.islower), ("Classes", lambda first: not first.islower())):
        text += f"## {title}\n\n"
        text += "".join(f"::: {homes[name]}\n\n" for name in sorted(homes) if kind(name[0]))
    return text + _training()


def _training() -> str:
    """The names of `moec.training`, which is imported by name."""
    import moec.training

    homes = [f"{getattr(moec.training, name).__module__}.{name}" for name in moec.training.__all__]
    text = "What `import moec.training` gives. [Are the routers healthy?](../routers.md) shows it in use."
    return f"## Training\n\n{text}\n\n" + "".join(f"::: {home}\n\n" for home in homes)
