"""The model card of an engine: a README.md whose head is metadata, as hubs read it, and whose text is for people.

Hugging Face's documentation of model cards says what the metadata mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moec.layouts.facts import model_name
from moec.report.artefacts import size_bytes
from moec.report.clients import GENAI, KSERVE, RUNTIME, TRITON, client_code
from moec.report.markdown_table import markdown_table
from moec.report.page import proof_note, verdict
from moec.report.report import Report
from moec.shown import one_line, shown, size_of
from moec.targets.target import Target

_VERSIONS = ("moec", "python", "torch", "transformers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx")
_LAID_OUT_FOR = {"genai": GENAI, "triton": TRITON, "kserve": KSERVE}
_LOAD = """\
```python
import moec

engine = moec.load("engine/")  # compares the files with moec.json
print(engine.inputs, engine.outputs)
```"""


def model_card(report: Report) -> str:
    """The content of an engine's README.md. It says nothing of this machine: neither where files lie nor the time."""
    text = shown("\n".join(_text(report)))
    return f"---\n{_yaml(metadata(report))}\n---\n\n{text}\n"


def metadata(report: Report) -> dict[str, Any]:
    """The card's metadata: what the source's card states, and what the engine is."""
    target = Target.parse(report.target)
    stated = dict(report.account.get("stated") or {})
    if hub := report.account.get("hub"):
        stated["base_model"] = hub
        if _is_quantized(report):  # of what the source's own card names it is a quantized fine-tune, say
            stated["base_model_relation"] = "quantized"
    tags = ["moec", target.backend, *(["mixture-of-experts"] if report.coverage.loads else [])]
    tags += ["onnx"] * any(a.name.endswith(".onnx") for a in report.artefacts)
    return {**dict(sorted(stated.items())), "library_name": target.backend, "tags": tags}


def _yaml(values: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    return str(ModelCardData(**values).to_yaml()).strip()


def _is_quantized(report: Report) -> bool:
    return any(str(step["name"]).startswith("quantize") and step["rewrites"] for step in report.steps)


def _text(report: Report) -> Iterator[str]:
    name, notes = model_name(report.source), [note for note in [proof_note(report)] if note]
    yield f"# {one_line(name)} for {one_line(report.target)}\n"
    yield f"An engine that moec compiled from {one_line(report.account.get('model') or name)}, {_mib(report)}.\n"
    yield f"**{verdict(report)}.**\n"
    yield from (f"{note}.\n" for note in notes)
    yield from ["## Error\n", *_error(report)]
    yield from ["## How to run it\n", *_how_to_run(report)]
    yield from ["## How it was made\n", *_how_it_was_made(report)]
    yield "`moec.json` is the manifest: hashes, settings, versions, and the proof in figures. `report.html` shows it."
    yield from _licence(report)


def _mib(report: Report) -> str:
    return size_of(size_bytes(report.artefacts))


def _error(report: Report) -> Iterator[str]:
    yield "Every check was passed before the engine was published; the reference is the untouched model in PyTorch.\n"
    yield from markdown_table(("check", "found"), [(check.title, str(check)) for check in report.proof.checks])


def _how_to_run(report: Report) -> Iterator[str]:
    if not report.built:
        yield "Finish it first, on a machine with the runtime and the hardware that it is for:\n"
        yield "```bash\nmoec build engine/\n```\n"
    if report.account.get("stated", {}).get("pipeline_tag") == "text-generation":
        yield '```bash\nmoec run engine/ "Once upon a time" --max-tokens 32\n```\n'
    yield f"{_LOAD}\n"
    client = _LAID_OUT_FOR.get(report.layout)
    if client is None and any(a.name == "model.onnx" for a in report.artefacts):
        client = RUNTIME
    if client:
        language = "bash" if client in (TRITON, KSERVE) else "python"
        yield f"```{language}\n{client_code(client, report, 'engine/')}\n```\n"


def _how_it_was_made(report: Report) -> Iterator[str]:
    rows = [(str(s["name"]), str(s["contract"]), str(s["rewrites"])) for s in report.steps]
    yield from markdown_table(("pass", "contract", "rewrites"), rows)
    known = {name: one_line(report.environment[name]) for name in _VERSIONS if name in report.environment}
    yield ", ".join(f"{name} {version}" for name, version in known.items()) + "\n"
    yield "The same engine again, where the model lies in the same place:\n"
    yield "```bash\nmoec compile --from engine/moec.json -o again/\n```\n"


def _licence(report: Report) -> Iterator[str]:
    licences = sorted(a.name for a in report.artefacts if Path(a.name).name.startswith("LICENSE"))
    stated = report.account.get("stated", {}).get("license")
    if not licences and not stated:
        yield "\nThe source states no licence: ask those who made it before you share the engine."
    else:
        said = [f"`{one_line(name)}`" for name in licences] + ([one_line(str(stated))] if stated else [])
        yield f"\nThe weights keep their licence: {', '.join(said)}."
