"""Names in the documentation's code that must exist: verbs, flags, targets, passes, error codes, modules, files."""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
from itertools import pairwise
from typing import Any

import click

from moec import registry
from moec.cli import VERBS, cli
from moec.errors import CODES, MoecError
from moec.pipeline.pipeline import Pipeline
from moec.targets.target import Target
from tests.pages import ROOT

NO_MODULE = (
    "moec.json",
    "moec.compact_cache",
    "moec.shared_cache",
    "moec.assumptions",
    "moec.checks",
    "moec.sources",
    "moec.formats",
)  # a file, metadata of a model, entry points


def flags_of(verb: str) -> set[str]:
    """The flags of a verb, as click knows them."""
    context = click.Context(cli)
    command = cli.get_command(context, verb)
    assert command is not None
    return {o for p in command.get_params(click.Context(command)) for o in (*p.opts, *p.secondary_opts)}


EVERY_FLAG = {flag for verb in VERBS for flag in flags_of(verb)} | {"--version", "--help"}


def problems_of_code(code: str) -> list[str]:
    """What a piece of code names that does not exist: verbs, flags, targets, passes, codes, modules and files."""
    return (
        problems_of_flags(code) + _problems_of_target(_words(code)) + _problems_of_pass(code) + _problems_of_name(code)
    )


def problems_of_flags(code: str) -> list[str]:
    """Verbs and flags of moec that a command, or a part of one, names and that do not exist."""
    words = _words(code)
    used = [w.split("=")[0] for w in words if re.match(r"--?[a-z]", w)]
    if words[0] == "moec" and len(words) > 1 and words[1] not in EVERY_FLAG:
        verb = words[1]
        return [f"moec {verb} has no {f}" for f in used if f not in flags_of(verb)] if verb in VERBS else [f"no {verb}"]
    return [f"no verb has {f}" for f in used if f not in EVERY_FLAG] if words[0].startswith("--") else []


def _words(code: str) -> list[str]:
    return shlex.split(code, posix=False)


def _problems_of_target(words: list[str]) -> list[str]:
    named = [w for flag, w in pairwise(words) if flag == "--target"]
    known = registry.names("backends")
    targets = named or ([words[0]] if len(words) == 1 and words[0].partition(":")[0] in known else [])
    parsed = [Target.parse(t) for t in targets if "|" not in t and not re.search(r"\bN\b", t)]
    found = [f"no target {t}" for t in parsed if t.backend not in known]
    return found or [f"{t}: {r.reason}" for t in parsed for r in registry.find("backends", t.backend)().options(t)]


def _problems_of_pass(code: str) -> list[str]:
    if (m := re.fullmatch(r"([a-z]+(?:-[a-z]+)*)\(([^…]*)\)", code)) and m[1] in registry.names("passes"):
        try:
            Pipeline.parse(code)
        except MoecError as error:
            return [str(error)]
    return []


def _problems_of_name(code: str) -> list[str]:
    if re.fullmatch(r"M\d\d\d", code):
        return [] if code in CODES else [f"no error has the code {code}"]
    if re.fullmatch(r"(moec|passes|backends|tests|docs|examples|benchmarks|\.ci)/[\w./-]*", code):
        return [] if (ROOT / code).exists() else [f"there is no {code}"]
    dotted = re.match(r"moec(\.\w+)+(?=\(|$)", code)
    if dotted and dotted[0] not in NO_MODULE:
        return [] if _exists(dotted[0]) else [f"there is no {dotted[0]}"]
    return []


def _exists(name: str) -> bool:
    *path, last = name.split(".")
    with contextlib.suppress(ImportError):
        return bool(importlib.import_module(name))
    with contextlib.suppress(ImportError):
        module: Any = importlib.import_module(".".join(path))
        return hasattr(module, last)
    return False
