"""Choose a layout and lay an engine folder out in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moec.errors import MoecError
from moec.layouts import genai, kserve, triton
from moec.layouts.facts import ModelFacts
from moec.program.program import Input
from moec.registry import did_you_mean

LAYOUTS = ("plain", "genai", "triton", "kserve")
# why an engine that Triton runs is not for KServe
ELSEWHERE = "KServe starts Triton in a folder of its own, from where the engine's library of operators is not found"


def choose(layout: str | None, inputs: Sequence[Input], facts: ModelFacts, possible: Sequence[str] = LAYOUTS) -> str:
    """The layout that was asked for; by default `genai` for a decoder that onnxruntime-genai can run, else `plain`.

    Raises:
        MoecError: M202 for a name that is no layout, M208 for one that the target's engines are not `possible` in, and
            for `genai` where its runtime cannot run the model.
    """
    if layout is not None and layout not in LAYOUTS:
        raise MoecError("M202", f"no layout is called {layout!r}", "layout", did_you_mean(layout, list(LAYOUTS)))
    if layout is not None and layout not in possible:
        raise MoecError(
            "M208",
            f"clients of the layout {layout!r} cannot run this engine"
            + (f": {ELSEWHERE}" if layout == "kserve" and "triton" in possible else ""),
            f"layout {layout}",
            f"use --layout {' or '.join(possible)}",
        )
    if "genai" not in possible:
        return layout or "plain"
    return genai_or_plain(layout, genai.refusal(inputs, facts) if layout in (None, "genai") else None)


def genai_or_plain(layout: str | None, reason: str | None) -> str:
    """The layout that was asked for, else `genai`, or `plain` where there is a `reason` that onnxruntime-genai cannot
    run the model. Raises M208 where that was asked for."""
    if layout == "genai" and reason:
        raise MoecError(
            "M208",
            f"onnxruntime-genai cannot run this model: {reason}",
            "layout genai",
            "use --layout plain: ONNX Runtime itself runs it",
        )
    return layout or ("plain" if reason else "genai")


def arrange(
    layout: str, folder: Path, inputs: Sequence[Input], outputs: Sequence[Input], facts: ModelFacts,
    device: str = "cpu", threads: int = 0, shared_cache: bool = False, settings: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write and move files so that `folder`, which holds an engine and the files beside it, is laid out for its
    clients.

    Args:
        layout: one of `LAYOUTS`.
        folder: holds `model.onnx` or `model.plan`.
        inputs, outputs: the engine's signature.
        facts: the model's.
        device: `cpu` or `cuda`, where the engine is to run.
        threads: how many the target asks for; 0 is one for each core.
        shared_cache: whether past and present of the cache may be one buffer.
        settings: of ONNX Runtime, see `Backend.client_settings`.
    """
    if layout == "genai":
        genai.write(folder, inputs, outputs, facts, device, threads, shared_cache, settings or {})
    elif layout in triton.LAYOUTS:
        triton.write(folder, inputs, outputs, facts, device, settings or {})
    if layout == "kserve":
        kserve.write(folder, facts.name, device)


def model_folder(folder: Path) -> Path:
    """Where the engine's own files lie in a folder of any layout; the folder itself where there are none."""
    file = next(_engine_files(folder), None)
    return folder if file is None else file.parent


def holds_engine(folder: Path) -> bool:
    """Whether an engine's own files lie in a folder, in any layout."""
    return next(_engine_files(folder), None) is not None


def _engine_files(folder: Path) -> Iterator[Path]:
    for name in triton.BACKENDS:
        yield from folder.glob(name)
        yield from sorted(folder.glob(f"*/{triton.VERSION}/{name}"))
