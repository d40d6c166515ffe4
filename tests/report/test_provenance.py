"""The statement of an engine: in-toto's own classes read it, and it is held against the files."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from moec import api
from moec.errors import MoecError
from moec.report.provenance import check_statement, packages, purl, statement

pytest.importorskip("in_toto_attestation", reason="in-toto-attestation, of the extra attest, is not here")


@pytest.fixture(scope="module")
def said(mixtral_engine: Path) -> dict[str, Any]:
    return json.loads(statement(api.read_report(mixtral_engine), mixtral_engine, "https://ci.example/build"))


def test_the_subjects_are_the_files_with_their_digests(said: dict[str, Any], mixtral_engine: Path) -> None:
    found = {subject["name"]: subject["digest"]["sha256"] for subject in said["subject"]}
    written_later = {"README.md", "report.html", "bench.json"}
    files = [p for p in mixtral_engine.rglob("*") if p.is_file() and p.name not in written_later]
    assert found == {p.relative_to(mixtral_engine).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}
    assert {"moec.json", "model.onnx.data"} <= set(found)


def test_what_is_written_later_is_nothing_that_a_statement_speaks_of(
    said: dict[str, Any], mixtral_engine: Path, tmp_path: Path
) -> None:
    engine = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    (tmp_path / "a.json").write_text(json.dumps(said))
    for name in ("README.md", "report.html", "bench.json"):
        (engine / name).write_text("as people, `moec verify --html` and `moec bench --save` write it")
    assert len(check_statement(tmp_path / "a.json", engine)) == len(said["subject"])


def test_it_says_what_the_engine_was_made_from(said: dict[str, Any], mixtral: Path, mixtral_engine: Path) -> None:
    assert (said["_type"], said["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    built, run = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    assert built["externalParameters"]["model"] == str(mixtral) and built["externalParameters"]["settings"]["seed"] == 0
    read = {item["name"]: item["digest"]["sha256"] for item in built["resolvedDependencies"] if "digest" in item}
    assert read["config.json"] == sha256((mixtral / "config.json").read_bytes()).hexdigest()
    versions = packages(api.read_report(mixtral_engine))
    assert {"torch", "transformers"} <= set(versions) and not {"python", "moec"} & set(versions)
    assert purl("torch", versions["torch"]) in [item.get("uri") for item in built["resolvedDependencies"]]
    assert run["builder"] == {"id": "https://ci.example/build", "version": {"moec": "0.1.0"}}


def test_a_package_url_is_read_back() -> None:
    url = pytest.importorskip("packageurl").PackageURL.from_string(purl("Some_Package", "2.13.0+cpu"))
    assert (url.type, url.name, url.version) == ("pypi", "some-package", "2.13.0+cpu")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda e: (e / "model.onnx").write_bytes(b"x"), "model.onnx was changed"),
        (lambda e: (e / "config.json").unlink(), "config.json is missing"),
        (lambda e: (e / "extra.py").write_text("x"), "extra.py is not in the statement"),
        (lambda e: (e / "moec.json").write_text("{}"), "moec.json was changed"),
    ],
    ids=["changed", "missing", "more", "manifest"],
)
def test_other_files_do_not_fit(
    change: Any, what: str, said: dict[str, Any], mixtral_engine: Path, tmp_path: Path
) -> None:
    engine = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    (tmp_path / "a.json").write_text(json.dumps(said))
    assert len(check_statement(tmp_path / "a.json", engine)) == len(said["subject"])
    change(engine)
    with pytest.raises(MoecError, match=what) as caught:
        check_statement(tmp_path / "a.json", engine)
    assert caught.value.code == "M106"


@pytest.mark.parametrize(
    "change", [{"_type": "x"}, {"predicateType": "x"}, {"subject": []}, {"subject": [{"name": "../a", "digest": {}}]}]
)
def test_what_is_no_statement_of_provenance(change: dict[str, Any], said: dict[str, Any], tmp_path: Path) -> None:
    for text in (json.dumps({**said, **change}), "{", "[]"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(MoecError) as caught:
            check_statement(tmp_path / "a.json", tmp_path)
        assert caught.value.code == "M201"
