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

from moec.errors import MoecError
from moec.pipeline.pipeline import StepReport
from moec.proof.agreement import Agreement, BlockAgreement, LayerError
from moec.proof.cache_consistency import Consistency, Way
from moec.proof.compare import Comparison, OutputError
from moec.proof.coverage import Coverage, ExpertLoad
from moec.proof.damage_by_cause import ExpertShift
from moec.proof.decided_tokens import Decided
from moec.proof.quality import Exam, Quality
from moec.report.artefacts import Artefact

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """What was compiled, how, and what was proven.

    Attributes:
        source: the model as it was named. source_hashes: SHA-256 of the files that it was read from.
        target, pipeline, seed, inputs, optimize_for, verify, tolerance_asked, cache, layout, built: the settings, which
            `moec compile --from` takes again.
        steps: what each pass did: name, contract, rewrites, digest of the program after it, and near misses with their
            reasons.
        facts: what the backend says of the engine; `blocks` has an entry a MoE block.
        comparison, coverage: the proof, and the experts that its inputs reached.
        refused: sizes that the engine cannot run although the model can, each with a reason.
        consistency: of a decoder: one text in one go against chunks and single tokens.
        quality: on a text, when one was given; its `exam` is a setting, too.
        decided: in half precision, how many tokens the proof compared, where not all.
        calibration: the text for passes that need data, and its SHA-256; a setting.
        environment: versions and processor type.
        artefacts: the engine's files.
        schema: version of this form.
    """

    source: str
    target: str
    pipeline: str
    comparison: Comparison
    coverage: Coverage
    seed: int = 0
    inputs: tuple[str, ...] = ()
    optimize_for: str = "latency"
    verify: str = "auto"
    tolerance_asked: float | None = None
    cache: bool = True
    layout: str = "plain"
    built: bool = True
    source_hashes: dict[str, str] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    refused: tuple[dict[str, Any], ...] = ()
    consistency: Consistency | None = None
    quality: Quality | None = None
    decided: Decided | None = None
    calibration: dict[str, Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    artefacts: tuple[Artefact, ...] = ()
    schema: int = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether the engine was proven equal to the untouched model within the tolerance, and keeps its budget on a
        text."""
        return (
            self.comparison.ok
            and (self.quality is None or self.quality.ok)
            and not (self.decided and self.decided.problem)
        )

    @property
    def opening(self) -> dict[str, Any]:
        """How the source was opened, as arguments of `open_source`."""
        return {"inputs": self.inputs or None, "cache": self.cache}

    def headline(self) -> str:
        """The verdict in a line."""
        size = sum(a.size_bytes for a in self.artefacts) / 2**20
        text = (
            f"; KL {self.quality.kl_mean:.2g} nats, perplexity x {self.quality.perplexity_ratio:.4f}"
            if self.quality
            else ""
        )
        part = f"; compared {self.decided}" if self.decided else ""
        return f"{'verified' if self.ok else 'DIFFERS'}: {self.comparison}; {self.coverage}{part}{text}; {size:.1f} MiB"

    # ------------------------------------------------------------------ plain data
    def to_dict(self) -> dict[str, Any]:
        """Plain data; figures rounded to four digits, what is not finite as text."""
        data: dict[str, Any] = _plain(dataclasses.asdict(self))
        return data

    def to_json(self) -> str:
        """The content of `moec.json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "moec.json") -> Report:
        """Read `to_json` back. Raises M201 for a schema newer than this moec's, M106 for anything that is not a
        report."""
        try:
            data = json.loads(text)
            if int(data["schema"]) > SCHEMA:
                fix = "pip install --upgrade moec"
                raise MoecError(
                    "M201", f"the report has schema {data['schema']}, this moec reads up to {SCHEMA}", where, fix
                )
            return cls(**{**data, **_typed(data)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MoecError(
                "M106", f"not a report of moec: {type(error).__name__}: {error}", where, "compile the engine again"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a `moec.json`. Raises M106 when it is missing."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise MoecError(
                "M106",
                f"the report cannot be read: {error.strerror}",
                str(path),
                "give an engine folder, or compile again",
            ) from error


def step_facts(steps: Sequence[StepReport]) -> tuple[dict[str, Any], ...]:
    """What each pass did, without its time."""
    return tuple({k: v for k, v in dataclasses.asdict(s).items() if k != "time_ms"} for s in steps)


def _plain(value: Any) -> Any:
    """JSON's types only. Four digits: more would differ with the number of threads, and say nothing."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _typed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a report's plain data that are dataclasses or tuples."""
    comparison, coverage = data["comparison"], data["coverage"]
    outputs = tuple(
        OutputError(**{**o, "deviation": float(o["deviation"]), "relative": float(o["relative"])})
        for o in comparison["outputs"]
    )
    loads = tuple(ExpertLoad(load["node"], load["module"], tuple(load["assignments"])) for load in coverage["loads"])
    return {
        "comparison": Comparison(**{**comparison, "outputs": outputs}),
        "coverage": Coverage(**{**coverage, "loads": loads}),
        "artefacts": tuple(Artefact(**a) for a in data["artefacts"]),
        "inputs": tuple(data["inputs"]),
        "steps": tuple(data["steps"]),
        "refused": tuple(data["refused"]),
        "consistency": _consistency(data.get("consistency")),
        "quality": _quality(data.get("quality")),
        "decided": _decided(data.get("decided")),
    }


def _consistency(data: Mapping[str, Any] | None) -> Consistency | None:
    if data is None:
        return None
    return Consistency(
        data["tolerance"],
        tuple(Way(w["name"], tuple(w["steps"]), float(w["deviation"])) for w in data["ways"]),
        data.get("by_call", False),
        _decided(data.get("decided")),
    )


def _decided(data: Mapping[str, Any] | None) -> Decided | None:
    return None if data is None else Decided(**data)


def _quality(data: Mapping[str, Any] | None) -> Quality | None:
    if data is None:
        return None
    inside = data["agreement"]
    blocks = (
        tuple(
            BlockAgreement(**{**b, "load": tuple(b["load"]), "load_after": tuple(b["load_after"])})
            for b in inside["blocks"]
        )
        if inside
        else ()
    )
    agreement = (
        Agreement(
            inside["tokens"], blocks, tuple(LayerError(e["module"], float(e["relative"])) for e in inside["layers"])
        )
        if inside
        else None
    )
    given = data.get("shift")
    shift = (
        ExpertShift(given["tokens"], *(float(given[part]) for part in ("weights", "routes", "both"))) if given else None
    )
    return Quality(**{**data, "exam": Exam(**data["exam"]), "agreement": agreement, "shift": shift})
