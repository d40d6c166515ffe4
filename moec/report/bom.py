"""What an engine is made of, as a bill of materials: CycloneDX 1.6 for machine learning (ML-BOM)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from moec.files.regular import file_hash
from moec.layouts.facts import CARD, model_name
from moec.report.artefacts import MANIFEST
from moec.report.provenance import BUILD_TYPE, digests, missing, packages, purl, subjects, unsayable
from moec.report.report import Report

FORMAT = "CycloneDX"


def bill_of_materials(report: Report, folder: Path) -> str:
    """The bill of an engine in a folder, as JSON: its files, the model and the texts that it was made from, and the
    packages that made it. Equal engines have equal ones: the optional time is left out.

    Raises:
        MoecError: M301 when CycloneDX's package is missing, M106 for a manifest with values that it does not take.
        OSError: where a file cannot be read.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.lifecycle import LifecyclePhase, PredefinedLifecycle
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    except ImportError as error:
        raise missing(error) from error
    try:
        tools, parts, engine = _tools(report), _parts(report), _engine(report, folder)
    except (ValueError, TypeError) as error:
        raise unsayable(error, folder) from error
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"{BUILD_TYPE}:{file_hash(folder / MANIFEST)}"),
        metadata=BomMetaData(
            component=engine, tools=tools, lifecycles=[PredefinedLifecycle(phase=LifecyclePhase.BUILD)]
        ),
        components=parts,
    )
    bom.register_dependency(engine, parts)
    written = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    del written["metadata"]["timestamp"]
    written["metadata"]["component"]["modelCard"] = _model_card(report)  # the library does not write it yet
    return json.dumps(written, indent=2, sort_keys=True) + "\n"


def _tools(report: Report) -> Any:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository

    version = report.environment.get("moec", "")
    return ToolRepository(components=[Component(name="moec", type=ComponentType.APPLICATION, version=version)])


def _engine(report: Report, folder: Path) -> Any:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, Property, XsUri
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    told = {"target": report.target, "passes": report.pipeline, "layout": report.layout, "verdict": report.verdict}
    files = [_hashed(ComponentType.FILE, name, digest) for name, digest in digests(folder, subjects(report)).items()]
    return Component(
        name=model_name(report.source),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="engine",
        licenses=_licences(report),
        components=files,
        pedigree=Pedigree(ancestors=[_source(report, "ancestor")], notes=report.headline()),
        properties=[Property(name=f"moec:{name}", value=value) for name, value in told.items()],
        external_references=[ExternalReference(type=ExternalReferenceType.MODEL_CARD, url=XsUri(CARD))],
    )


def _parts(report: Report) -> list[Any]:
    """The model and the texts that an engine was made from, and the packages that made it."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    texts = [_hashed(ComponentType.DATA, name, digest) for name, digest in report.text_hashes.items()]
    libraries = [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            purl=PackageURL.from_string(purl(name, version)),
            bom_ref=purl(name, version),
        )
        for name, version in packages(report).items()
    ]
    return [_source(report, "source"), *texts, *libraries]


def _source(report: Report, reference: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=model_name(report.source),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=reference,
        licenses=_licences(report),
        components=[
            _hashed(ComponentType.FILE, name, digest, reference) for name, digest in report.source_hashes.items()
        ],
    )


def _hashed(kind: Any, name: str, digest: str, of: str = "engine") -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
    return Component(name=name, type=kind, hashes=hashes, bom_ref=f"{of}/{name}")


def _licences(report: Report) -> list[Any]:
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.spdx import fixup_id

    stated = report.account.get("stated", {}).get("license") or []
    named = [(name, fixup_id(name)) for name in ([stated] if isinstance(stated, str) else stated) if name]
    return [DisjunctiveLicense(id=known) if known else DisjunctiveLicense(name=name) for name, known in named]


def _model_card(report: Report) -> dict[str, Any]:
    """The part of the form that is for models: task, inputs, outputs, and the figures of the proof."""
    account = report.account
    parameters = {
        "task": account.get("stated", {}).get("pipeline_tag", ""),
        "architectureFamily": "mixture-of-experts" if report.coverage.loads else "",
        "modelArchitecture": account.get("model", ""),
        "inputs": [{"format": name} for name in account.get("inputs", [])],
        "outputs": [{"format": output.name} for output in report.comparison.outputs],
    }
    card: dict[str, Any] = {"modelParameters": {name: value for name, value in parameters.items() if value}}
    card["quantitativeAnalysis"] = {"performanceMetrics": _metrics(report)}
    if report.proof.limits:
        card["considerations"] = {"technicalLimitations": [report.proof.limits]}
    return card


def _metrics(report: Report) -> list[dict[str, str]]:
    figures = [("max |d|/std to the untouched model", o.deviation, o.name) for o in report.comparison.outputs]
    if text := report.quality:
        figures += [("mean KL divergence in nats", text.kl_mean, "text"), ("top-1 agreement", text.top1, "text")]
    if own := report.proof.own_quality:
        figures += [
            ("mean KL divergence in nats", own.kl_mean, "its own text"),
            ("top-1 agreement", own.top1, "its own text"),
        ]
    return [{"type": kind, "value": f"{value:.4g}", "slice": part} for kind, value, part in figures]
