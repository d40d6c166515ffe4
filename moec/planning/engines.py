"""Which existing engine serves a model on one or more GPUs, and the command that starts it."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from moec.planning.shape import Shape


@dataclass(frozen=True)
class Server:
    """A serving engine.

    Attributes:
        name, version: of the engine; the version is the one that the list is of.
        command: that starts it with the model.
        listed: whether the list names the model's architecture; where it does not, the engine may take it all the same.
        source: of the list.
    """

    name: str
    version: str
    command: str
    listed: bool
    source: str


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("moec.planning").joinpath("engines.toml").read_text("utf-8"))


def servers(shape: Shape, model: str, ranks: int = 1) -> tuple[Server, ...]:
    """The engines with their commands.

    Args:
        shape: the model; its name is the architecture that the engines know it by.
        model: what to serve, as it goes into the command; of a config.json its folder, which is what engines open.
        ranks: devices. Experts are spread over them where there are any.
    """
    table = _table()
    model = str(Path(model).parent) if Path(model).name == "config.json" else model
    entries = [entry for entry in table.values() if isinstance(entry, dict)]
    return tuple(_server(entry, table["source"], shape, model, ranks) for entry in entries)


def _server(entry: dict[str, Any], source: str, shape: Shape, model: str, ranks: int) -> Server:
    tensor = entry["tensor"].format(ranks=ranks) if ranks > 1 else ""
    expert = entry["expert"].format(ranks=ranks) if ranks > 1 and shape.mixtures else ""
    command = entry["command"].format(model=shlex.quote(model), tensor=tensor, expert=expert)
    return Server(entry["name"], entry["version"], command, shape.name in entry["architectures"], source)
