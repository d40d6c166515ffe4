"""Broken models, engines and command lines, each from a kind and a seed: what moec must refuse in three lines or take.

`tests/cli/test_mutations.py` tries some of them, `benchmarks/fuzz.py` thousands.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import re
import struct
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

EVIL = "\x1b]0;owned\x07\x1b[2J"  # a terminal that prints this is steered
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**12, 2**70, -(2**63), 1e308, 0.5, -0.0),
    *("", "x", "1", EVIL, "../../etc/passwd", "/etc/passwd", "\u202egpj", "é" * 300),
    *([], [None], [1, 2], [[]], ["x"] * 3, {}, {"x": 1}, {"rope_type": "x"}),
)
_WORDS = (
    *(
        "",
        "0",
        "1",
        "-1",
        "3",
        str(2**70),
        "2**70",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "0x10",
        "x",
        "x=",
        "=x",
        "x=1",
        "a,b",
    ),
    *("/dev/null", "/dev/zero", "/etc/passwd", ".", "..", "../..", "nowhere", "nowhere.pt2", "nowhere.py:x", "pipe"),
    *(EVIL, "a" * 5000, "\udcff", "onnxruntime:threads=x", "onnxruntime:cpu,threads=99999999999", "quantize(bits=3)"),
    *("quantize(", "upcycle(experts=10000000)", "x=batch,sequence:int64<5", "x=999999999999,999999999:float32"),
    *("--", "-h", "--debug=x", "1,2,3", "1,-5", "1,999999999999999999999"),
)
_PLACES = ("/etc/passwd", "../../../etc/passwd", "..\\x", "C:\\x", "../pipe", ".", "", EVIL, "config.json", "/dev/zero")


@dataclass(frozen=True)
class Bases:
    """Right files to break: a model's folder, one in shards, an engine and its model."""

    model: Path
    sharded: Path
    engine: Path


@dataclass
class Outcome:
    """What one attack led to.

    Attributes:
        status: the exit status. wrong: what must not be, in words.
    """

    status: int
    wrong: list[str] = field(default_factory=list)
    text: str = ""


def attempt(arguments: list[str], mark: Path) -> Outcome:
    """Run the command line in this process. `mark`: a file that only foreign code would write."""
    from moec.cli import main

    out, err = io.StringIO(), io.StringIO()
    status = -1
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
    return judged(status, out.getvalue() + err.getvalue(), mark)


def judged(status: int, text: str, mark: Path) -> Outcome:
    """What is wrong with how a command ended."""
    wrong = [] if status in (0, 1, 2, 3) else [f"exit {status}"]
    wrong += ["traceback"] if "Traceback (most recent" in text else []
    wrong += ["escape"] if _STEERING.search(text) else []
    wrong += ["code was run"] if mark.exists() else []
    return Outcome(status, wrong, text)


def command(kind: str, seed: int, bases: Bases, place: Path, deep: bool = False) -> list[str]:
    """Write the broken files of one attack into an empty folder; returns the command line that meets them.

    Args:
        deep: also verbs that take seconds.
    """
    chance = random.Random(f"{kind} {seed}")
    os.mkfifo(place / "pipe")
    return KINDS[kind](chance, bases, place, deep)


# ---------------------------------------------------------------------- plain data
def broken(data: Any, chance: random.Random, times: int = 0) -> Any:
    """Plain data with some entries gone, of another type, or of an odd value."""
    data = json.loads(json.dumps(data))
    for _ in range(times or chance.choice((1, 1, 2, 4))):
        places = list(_places(data))
        if not places:
            break
        holder, key = chance.choice(places)
        _break(holder, key, chance)
    return data


def _places(data: Any) -> Any:
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield data, key
        yield from _places(value)


def _break(holder: Any, key: Any, chance: random.Random) -> None:
    way, value = chance.random(), holder[key]
    if way < 0.15:
        del holder[key]
    elif way < 0.25 and isinstance(holder, dict):
        holder[chance.choice((EVIL, "", "x" * 500, "__class__"))] = holder.pop(key)
    elif way < 0.4 and isinstance(value, int) and not isinstance(value, bool):
        holder[key] = chance.choice((value * 1000, value + 1, -value, value // 2, float(value)))
    else:
        holder[key] = copy.deepcopy(chance.choice(_ODD))  # one that is broken itself later must not hold itself


def text_of(data: Any, chance: random.Random) -> bytes:
    """JSON, mostly whole."""
    raw = json.dumps(data).encode()
    way = chance.random()
    if way < 0.04:
        return raw[: chance.randrange(len(raw))]
    if way < 0.06:
        return b"[" * 100_000
    if way < 0.08:
        return chance.choice((b"", b"null", b"[]", b"\xff\xfe", b'{"x":NaN}', b'{"x":1e999}'))
    return flipped(raw, chance) if way < 0.14 else raw


def flipped(raw: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, taken out, or put in."""
    data = bytearray(raw)
    for _ in range(chance.choice((1, 2, 8))):
        at = chance.randrange(max(len(data), 1))
        way = chance.randrange(3)
        if way == 0 and data:
            data[at] = chance.randrange(256)
        elif way == 1:
            del data[at : at + chance.choice((1, 7, 64))]
        else:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 8))))
    return bytes(data)


def linked(folder: Path, place: Path, *but: str) -> Path:
    """A copy of a folder whose files are hard links, except for those that the attack writes."""
    for path in sorted(folder.rglob("*")):
        target = place / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.name not in but:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return place


# ---------------------------------------------------------------------- the kinds
def config(chance: random.Random, bases: Bases, place: Path, deep: bool) -> list[str]:
    """A broken config.json."""
    model = linked(bases.model, place / "model", "config.json")
    raw = json.loads((bases.model / "config.json").read_text())
    (model / "config.json").write_bytes(text_of(broken(raw, chance), chance))
    if deep and chance.random() < 0.3:
        return ["compile", str(model), "-o", str(place / "engine"), "--quiet"]
    return ["inspect", str(model)]


def weights(chance: random.Random, bases: Bases, place: Path, deep: bool) -> list[str]:
    """A broken safetensors file: length, header or body."""
    model = linked(bases.model, place / "model", "model.safetensors")
    raw = (bases.model / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    way = chance.randrange(6)
    if way == 0:
        raw = struct.pack("<Q", chance.choice((0, 1, size + 1, 2**40, 2**63, 2**64 - 1))) + raw[8:]
    elif way == 1:
        raw = raw[: chance.randrange(len(raw))]
    elif way == 2:
        raw = flipped(raw[: 8 + size], chance) + body
    else:
        text = text_of(broken(header, chance), chance)
        raw = struct.pack("<Q", len(text)) + text + body
    (model / "model.safetensors").write_bytes(raw)
    return ["inspect", str(model)]


def index(chance: random.Random, bases: Bases, place: Path, deep: bool) -> list[str]:
    """A broken index of shards, or names in it that lead elsewhere."""
    name = "model.safetensors.index.json"
    model = linked(bases.sharded, place / "model", name)
    raw = json.loads((bases.sharded / name).read_text())
    if chance.random() < 0.4:
        key = chance.choice(sorted(raw["weight_map"]))
        raw["weight_map"][key] = chance.choice(_PLACES)
    (model / name).write_bytes(text_of(broken(raw, chance, 1) if chance.random() < 0.7 else raw, chance))
    return ["inspect", str(model)]


def manifest(chance: random.Random, bases: Bases, place: Path, deep: bool) -> list[str]:
    """A broken manifest of an engine, or one that names code."""
    engine = linked(bases.engine, place / "engine", "moec.json")
    raw = json.loads((bases.engine / "moec.json").read_text())
    if chance.random() < 0.1:
        evil = place / "evil.py"
        evil.write_text(f"open({str(place / 'mark')!r}, 'w').write('owned')\ndef build(): raise SystemExit(0)\n")
        digest = hashlib.sha256(evil.read_bytes()).hexdigest()
        raw |= {"source": f"{evil}:build", "source_hashes": {evil.name: digest}}
    else:
        raw = broken(raw, chance)
    (engine / "moec.json").write_bytes(text_of(raw, chance))
    verbs = [["inspect"], ["run", "--tokens", "1,2", "--max-tokens", "2"], ["run"], ["build"]]
    verbs += [["verify"], ["bench", "--runs", "1", "--max-tokens", "2"]] if deep else []
    verb = chance.choice(verbs)
    return [verb[0], str(engine), *verb[1:]]


def engine(chance: random.Random, bases: Bases, place: Path, deep: bool) -> list[str]:
    """A broken file of an engine; where `deep`, its manifest agrees with it."""
    names = [p.relative_to(bases.engine).as_posix() for p in bases.engine.rglob("*") if p.is_file()]
    name = chance.choice(sorted(n for n in names if n not in ("moec.json", "report.html", "README.md")))
    copy = linked(bases.engine, place / "engine", Path(name).name, "moec.json")
    raw = (bases.engine / name).read_bytes()
    raw = raw[: chance.randrange(len(raw))] if chance.random() < 0.2 else flipped(raw, chance)
    (copy / name).write_bytes(raw)
    data = json.loads((bases.engine / "moec.json").read_text())
    if deep:
        for entry in data["artefacts"]:
            if entry["name"] == name:
                entry |= {"sha256": hashlib.sha256(raw).hexdigest(), "size_bytes": len(raw)}
    (copy / "moec.json").write_text(json.dumps(data))
    return chance.choice(
        (["run", str(copy), "--tokens", "1,2", "--max-tokens", "2"], ["run", str(copy)], ["inspect", str(copy)])
    )


def arrays(chance: random.Random, bases: Bases, place: Path, deep: bool) -> list[str]:
    """An odd .npz for `run --inputs`."""
    names = ("input_ids", "attention_mask", "past_key_values.0.key", "position_ids", EVIL, "")
    odd = (
        *(
            np.array(["x"]),
            np.zeros((0, 3), np.int64),
            np.full((1, 3), 2**60),
            np.ones((1, 3), np.int64),
            np.array(1.5),
        ),
        *(np.zeros((1, 3), "V4"), np.array([{"x": 1}], dtype=object), np.zeros((1, 3), np.complex64)),
        *(np.array("2020-01-01", dtype="datetime64[D]"), np.float16([[1, 2]])),
    )
    file = place / "inputs.npz"
    np.savez(file, **{chance.choice(names): chance.choice(odd) for _ in range(chance.choice((0, 1, 2, 5)))})  # type: ignore[arg-type]
    if chance.random() < 0.4:
        file.write_bytes(flipped(file.read_bytes(), chance))
    if chance.random() < 0.1:
        np.save(place / "array.npy", np.ones(3))
        file = place / "array.npy"
    if chance.random() < 0.05:
        file = place / "pipe"
    return ["run", str(bases.engine), "--inputs", str(file)]


def line(chance: random.Random, bases: Bases, place: Path, deep: bool) -> list[str]:
    """An odd command line; it runs in a folder of its own."""
    from moec.cli import VERBS, cli

    (place / "here").mkdir()
    verb = chance.choice([*VERBS, "nonsense"])
    parsed = cli.get_command(click.Context(cli), verb) if verb in VERBS else None
    given = [verb]
    for parameter in parsed.params if parsed else []:
        if parameter.param_type_name == "argument":
            right = [str(bases.engine), "nowhere"] + ([str(bases.model)] if deep or verb == "inspect" else [])
            given.append(chance.choice(right) if chance.random() < 0.6 else chance.choice(_WORDS))
        elif parameter.name in ("out",) or chance.random() < 0.15:
            flag = chance.choice(parameter.opts)
            given += [flag] if getattr(parameter, "is_flag", False) else [flag, chance.choice(_WORDS)]
    if chance.random() < 0.1:
        given.insert(chance.randrange(len(given) + 1), chance.choice(_WORDS))
    return [word for word in given if word != "--debug"]


KINDS: dict[str, Callable[[random.Random, Bases, Path, bool], list[str]]] = {
    "config": config,
    "weights": weights,
    "index": index,
    "manifest": manifest,
    "engine": engine,
    "arrays": arrays,
    "line": line,
}


def make_bases(folder: Path) -> Bases:
    """A tiny Mixtral, the same in shards, and its engine."""
    import moec
    from tests.zoo import build

    model = build("mixtral", num_hidden_layers=1)
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    model.save_pretrained(folder / "sharded", max_shard_size="20KB")  # type: ignore[operator]
    moec.compile(folder / "model", out=folder / "engine")
    return Bases(folder / "model", folder / "sharded", folder / "engine")
