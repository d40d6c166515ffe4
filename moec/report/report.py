"""The report of a compilation: plain data with a versioned schema. An engine folder's `moec.json` is one.

Equal inputs give a byte-identical report, so nothing here depends on the time, the machine's load or its name; how long
a compilation took and what it used goes to the terminal and to `--json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from moec.errors import MoecError
from moec.files.nearby import nearby
from moec.files.regular import read_bytes
from moec.frontend.account import Account
from moec.layouts import holds_engine
from moec.pipeline.pipeline import StepReport
from moec.program.conditions import Assumptions
from moec.proof.agreement import Agreement
from moec.proof.checks.assumed import Assumed
from moec.proof.checks.decided import DecidedTokens
from moec.proof.compare import Comparison
from moec.proof.coverage import Coverage
from moec.proof.digits import four_digits
from moec.proof.quality import Quality
from moec.proof.verification import Verification
from moec.report.artefacts import MANIFEST, Artefact, size_bytes
from moec.report.size import Sizes
from moec.shown import size_of

SCHEMA = 2


@dataclass(frozen=True)
class Report:
    """What was compiled, how, and what was proven.

    Attributes:
        source: the model as it was named. source_hashes: SHA-256 of the files that it was read from.
        settings: every setting of the compilation by name, as `moec.compiler.options.Options.to_plain` writes them;
            `moec compile --from` takes them again.
        account: what the model is, and what the engine is without, see `moec.frontend.account.Account`.
        text_hashes: SHA-256 of the files that the settings `text` and `calibration` name.
        steps: what each pass did: name, contract, rewrites, digest of the program after it, and near misses with their
            reasons.
        facts: what the backend says of the engine; `blocks` has an entry a MoE block.
        size: parameters and bytes before and after; None where nothing counted them.
        layers: errors and choices inside on a few of the proof's inputs; None where they were not looked at.
        proof: every check that was made, see `moec.proof.verification`.
        environment: versions and processor type.
        artefacts: the engine's files.
        schema: version of this form.
    """

    source: str
    settings: dict[str, Any]
    proof: Verification
    text_hashes: dict[str, str] = field(default_factory=dict)
    source_hashes: dict[str, str] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    artefacts: tuple[Artefact, ...] = ()
    size: Sizes | None = None
    layers: Agreement | None = None
    schema: int = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether every check of the proof is passed."""
        return self.proof.ok

    @property
    def comparison(self) -> Comparison:
        """The proof's errors of each output."""
        return self.proof.comparison

    @property
    def coverage(self) -> Coverage:
        """The experts that the proof's inputs reached."""
        return self.proof.coverage

    @property
    def quality(self) -> Quality | None:
        """The engine's quality on a text, when one was given."""
        return self.proof.quality

    @property
    def inside(self) -> Agreement | None:
        """Errors of the layers and choices of the routers: on the text where one was given, else on inputs of the
        proof."""
        on_text = self.quality.agreement if self.quality else None
        return on_text or self.layers

    @property
    def assumptions(self) -> Assumptions:
        """What the engine was made for, as its proof found it. Raises M106 where an edit made it unreadable."""
        found = self.proof.find(Assumed)
        try:
            return found.assumptions if found else Assumptions()
        except ValueError as error:
            fix = "compile the engine again"
            raise MoecError("M106", f"a condition cannot be read: {error}", self.source, fix) from error

    # ------------------------------------------------------------------ settings that others read
    @property
    def target(self) -> str:
        """Where the engine is to run."""
        return str(self.settings["target"])

    @property
    def pipeline(self) -> str:
        """The passes that the user named."""
        return str(self.settings["pipeline"])

    @property
    def layout(self) -> str:
        """Of the folder."""
        return str(self.settings["layout"])

    @property
    def built(self) -> bool:
        """Whether the part that needs the target's runtime was done."""
        return bool(self.settings["build"])

    @property
    def opening(self) -> dict[str, Any]:
        """How the source was opened, as arguments of `open_source`."""
        return {
            "inputs": tuple(self.settings["inputs"]) or None,
            "cache": bool(self.settings["cache"]),
            "leave_out": tuple(self.settings.get("leave_out", ())),
            "part": str(self.settings.get("part") or ""),
        }

    @property
    def cautions(self) -> tuple[str, ...]:
        """What passes say against what they did themselves; it stands in the first line of everything."""
        return tuple(str(f["caution"]) for f in (step.get("facts") or {} for step in self.steps) if "caution" in f)

    def headline(self) -> str:
        """The verdict in a line."""
        if not self.ok:
            return f"{self.verdict}: {self.proof.error.what if self.proof.error else 'nothing was checked'}"
        decided, size = self.proof.find(DecidedTokens), size_of(size_bytes(self.artefacts))
        parts = [*self.cautions, *self.proof.short, str(decided or ""), self.proof.limits, size]
        return f"{self.verdict}: {'; '.join(filter(None, parts))}"

    @property
    def verdict(self) -> str:
        """`verified` only of an engine that ran on what it is for, see `moec.proof.where_run`."""
        return self.proof.verdict

    # ------------------------------------------------------------------ plain data
    def to_dict(self) -> dict[str, Any]:
        """Plain data; figures rounded to four digits, what is not finite as text. Settings stay as they were given."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "proof"}
        return {**plain({**fields, "proof": self.proof.to_dict()}), "settings": self.settings}

    def to_json(self) -> str:
        """The content of `moec.json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "moec.json") -> Report:
        """Read `to_json` back. Raises M201 for the schema of a newer moec, M106 for that of an older one and for
        anything that is not a report."""
        try:
            data = json.loads(text)
            _require_schema(int(data["schema"]), where)
            report = cls(**{**data, **_typed(data)})
            _ = report.target, report.pipeline, report.layout, report.built, report.opening  # they are there
            _ = report.assumptions
            return report
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise MoecError(
                "M106", f"not a report of moec: {type(error).__name__}: {error}", where, "compile the engine again"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a `moec.json`. Raises M201 where there is none because no engine lies there, M106 where an engine has
        lost it, or it cannot be read."""
        try:
            return cls.from_json(read_bytes(path).decode("utf-8", "replace"), str(path))
        except OSError as error:
            if not path.exists() and not holds_engine(path.parent):
                raise _no_engine(path) from error
            raise MoecError(
                "M106",
                f"the report cannot be read: {error.strerror}",
                str(path),
                "give an engine folder, or compile again",
            ) from error


def _no_engine(path: Path) -> MoecError:
    """The error for a manifest that is not there, in a folder that holds no engine, or is not there either."""
    place = path.parent if path.name == MANIFEST else path
    is_there = place.is_dir()
    what = f"this is no engine: there is no {MANIFEST}" if is_there else "this is no engine: there is no such folder"
    fix = "give an engine's folder: what `moec compile MODEL -o FOLDER` wrote"
    return MoecError("M201", what, str(place), fix if is_there else nearby(place, fix, holds_engine))


def _require_schema(schema: int, where: str) -> None:
    if schema != SCHEMA:
        older = schema < SCHEMA
        what = f"the report has schema {schema}, of {'an older' if older else 'a newer'} moec; this one reads {SCHEMA}"
        code, fix = ("M106", "compile the model again") if older else ("M201", "pip install --upgrade moec")
        raise MoecError(code, what, where, fix)


def step_facts(steps: Sequence[StepReport]) -> tuple[dict[str, Any], ...]:
    """What each pass did, without its time."""
    return tuple({k: v for k, v in dataclasses.asdict(s).items() if k != "time_ms"} for s in steps)


def plain(value: Any) -> Any:
    """JSON's types only. Four digits: more would differ with the number of threads, and say nothing."""
    if isinstance(value, float):
        return four_digits(value) if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


# entries of plain data that readers rely on, and what they are where they are missing
_PLAIN: dict[str, tuple[Any, Any]] = {
    "source": (str, None),
    "settings": (dict[str, Any], None),
    "steps": (tuple[dict[str, Any], ...], ()),
    "facts": (dict[str, Any], {}),
    "account": (dict[str, Any], {}),
    **dict.fromkeys(("source_hashes", "text_hashes", "environment"), (dict[str, str], {})),
}


class _Miss(msgspec.Struct):
    node: str
    reason: str


class _Step(msgspec.Struct):
    """What pages read of a step; the rest is its pass's own."""

    name: str
    contract: str
    rewrites: int
    misses: list[_Miss]
    facts: dict[str, Any] | None = None


class _Facts(msgspec.Struct):
    """What pages read of a backend's facts."""

    verified_by: str = ""
    unproven: list[str] = []


def _typed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a report's plain data that are dataclasses or tuples. Raises `msgspec.ValidationError` where one
    that is read has another form."""
    msgspec.convert(data.get("steps", []), list[_Step])
    msgspec.convert(data.get("facts", {}), _Facts)
    msgspec.convert(data.get("account") or {"model": ""}, Account)
    return {
        "proof": Verification.from_dict(data["proof"]),
        "artefacts": msgspec.convert(data["artefacts"], tuple[Artefact, ...]),
        "size": msgspec.convert(data.get("size"), Sizes | None),
        "layers": msgspec.convert(data.get("layers"), Agreement | None, strict=False),  # infinity comes as text
        **{name: msgspec.convert(data.get(name, default), kind) for name, (kind, default) in _PLAIN.items()},
    }
