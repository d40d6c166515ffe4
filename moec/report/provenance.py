"""Where an engine comes from, as an in-toto statement whose predicate is SLSA's provenance.

A statement says of which files (by SHA-256) it speaks, and what they were made from, how, and by whom. It is plain
JSON; cosign signs it. The forms are https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from moec.errors import MoecError
from moec.files.inside import stays_inside
from moec.files.regular import file_hash, read_bytes
from moec.layouts.facts import CARD
from moec.report.artefacts import MANIFEST, names_in, parts
from moec.report.report import Report
from moec.shown import one_line

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:moec:compile:v1"  # docs/ci.md says what its parameters are
BUILDER = "urn:moec:unnamed-builder"
_PACKAGE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_MACHINE = ("python", "system", "cpu_capability", "threads")  # of the environment, what is no package


def statement(report: Report, folder: Path, builder: str = BUILDER) -> str:
    """The statement of an engine in a folder, as JSON. Equal engines have equal ones: nothing in it depends on the
    time.

    Args:
        report: of the engine's manifest. folder: holds its files.
        builder: a URI that names who compiled it: a workflow, a machine.

    Raises:
        MoecError: M301 when in-toto's package is missing, M106 for a manifest with values that it does not take.
        OSError: where a file cannot be read.
    """
    try:
        from google.protobuf.json_format import ParseDict, ParseError
        from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
        from in_toto_attestation.v1.statement import Statement, spb
    except ImportError as error:
        raise missing(error) from error
    files = [{"name": name, "digest": {"sha256": digest}} for name, digest in digests(folder, subjects(report)).items()]
    predicate = {"buildDefinition": _definition(report), "runDetails": _run(report, builder)}
    made = {"_type": STATEMENT, "subject": files, "predicateType": PREDICATE, "predicate": predicate}
    try:
        ParseDict(predicate, Provenance())  # raises for a field that is not of the form
        Statement.copy_from_pb(ParseDict(made, spb.Statement())).validate()
        return json.dumps(made, indent=2, allow_nan=False) + "\n"  # protobuf would make floats of all numbers
    except (ParseError, ValueError, TypeError) as error:
        raise unsayable(error, folder) from error


def missing(error: ImportError) -> MoecError:
    """What to say where a package of the extra `attest` is not here."""
    fix = 'pip install "moec[attest]"'
    return MoecError("M301", f"the package {error.name} is not installed", "moec attest", fix)


def unsayable(error: Exception, folder: Path) -> MoecError:
    """What to say of a manifest that was edited so that nothing can be attested of it."""
    what = f"the manifest says what no statement can: {one_line(str(error))[:200]}"
    return MoecError("M106", what, str(folder / MANIFEST), "compile the engine again")


def subjects(report: Report) -> list[str]:
    """The files that a statement speaks of: the manifest, and what is compared with it whenever an engine is loaded.
    Model card, page and times are not among them: people and later commands go on writing them."""
    return sorted([MANIFEST, *(artefact.name for artefact in parts(report.artefacts))])


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of these files of a folder, by name."""
    return {name: file_hash(folder / name) for name in names}


def packages(report: Report) -> dict[str, str]:
    """Version of each package that made an engine, by name."""
    named = {name: version for name, version in report.environment.items() if _PACKAGE.fullmatch(name)}
    return {name: version for name, version in named.items() if name not in (*_MACHINE, "moec")}


def purl(name: str, version: str) -> str:
    """A Python package as a package URL. The part after `+` names a build, and is escaped as the form asks."""
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"


def _definition(report: Report) -> dict[str, Any]:
    texts = {f"{name}: {report.settings.get(name)}": digest for name, digest in report.text_hashes.items()}
    read = {**report.source_hashes, **texts}
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {"model": report.source, "settings": report.settings},
        "internalParameters": {name: report.environment[name] for name in _MACHINE if name in report.environment},
        "resolvedDependencies": [
            *({"name": name, "digest": {"sha256": digest}} for name, digest in read.items()),
            *({"name": name, "uri": purl(name, version)} for name, version in packages(report).items()),
        ],
    }


def _run(report: Report, builder: str) -> dict[str, Any]:
    return {"builder": {"id": builder, "version": {"moec": report.environment.get("moec", "")}}}


class _Subject(msgspec.Struct):
    name: str
    digest: dict[str, str]


class _Statement(msgspec.Struct):
    type: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    subject: list[_Subject] = msgspec.field()


def check_statement(file: Path, folder: Path) -> Sequence[str]:
    """Hold an engine's files against a statement; returns their names. No signature is checked: cosign does that.

    Raises:
        MoecError: M201 for what is no statement, M106 for a file that is missing, changed, or not spoken of.
    """
    said = _subjects(file)
    there = [name for name in (MANIFEST, *names_in(folder)) if name != CARD and (folder / name).is_file()]
    found = digests(folder, sorted(there))
    wrong = [name for name in {**said, **found} if said.get(name) != found.get(name)]
    if wrong:
        first = wrong[0]
        state = "is missing" if first not in found else "was changed" if first in said else "is not in the statement"
        more = f", and {len(wrong) - 1} more files differ" if wrong[1:] else ""
        raise MoecError("M106", f"{first} {state}{more}", str(folder), "get the engine and its statement again")
    return list(said)


def _subjects(file: Path) -> Mapping[str, str]:
    fix = "give the file that `moec attest` wrote"
    try:
        read = msgspec.json.decode(read_bytes(file), type=_Statement)
    except OSError as error:
        raise MoecError("M201", f"the statement cannot be read: {error.strerror}", str(file), fix) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MoecError("M201", f"this is no statement of in-toto: {error}", str(file), fix) from error
    said = {subject.name: subject.digest.get("sha256", "") for subject in read.subject}
    if (read.type, read.predicate_type) != (STATEMENT, PREDICATE) or not all(map(stays_inside, said)) or not said:
        raise MoecError("M201", "this is no statement of where files come from", str(file), fix)
    return said
