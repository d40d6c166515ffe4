"""`moec attest`: what it writes, where, and that it can be signed with a key that lies here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import Cli

pytest.importorskip("in_toto_attestation", reason="in-toto-attestation, of the extra attest, is not here")
pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib, of the extra attest, is not here")


@pytest.fixture
def engine(mixtral_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))


def test_both_files_lie_beside_the_engine_and_are_the_same_again(cli: Cli, engine: Path, tmp_path: Path) -> None:
    files = [tmp_path / "engine.intoto.json", tmp_path / "engine.cdx.json"]
    assert cli("attest", engine).splitlines() == [str(file) for file in files]
    before = [file.read_bytes() for file in files]
    assert cli.json("attest", engine) == {"ok": True, "statement": str(files[0]), "bom": str(files[1])}
    assert [file.read_bytes() for file in files] == before
    cli("attest", engine, "-o", tmp_path / "kept", "--builder", "https://ci.example")
    assert json.loads((tmp_path / "kept/engine.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    assert "https://ci.example" in (tmp_path / "kept/engine.intoto.json").read_text()
    cli("check", engine)


def test_a_statement_is_held_against_the_files(cli: Cli, engine: Path, tmp_path: Path) -> None:
    cli("attest", engine)
    given = ("attest", engine, "--check", tmp_path / "engine.intoto.json")
    assert "files are as" in cli(*given) and "moec.json" in cli.json(*given)["files"]
    for name in ("README.md", "bench.json"):
        (engine / name).write_text("people and `moec bench --save` go on writing them")
    cli(*given)
    (engine / "moec.json").write_text((engine / "moec.json").read_text().replace('"seed": 0', '"seed": 7'))
    cli(*given, status=1)
    assert "moec.json was changed" in cli.err
    cli("attest", engine, "--check", engine / "moec.json", status=2)


def test_nothing_is_attested_of_a_changed_engine_nor_over_files_of_others(
    cli: Cli, engine: Path, tmp_path: Path, mixtral: Path
) -> None:
    (tmp_path / "engine.cdx.json").write_text("my notes")
    cli("attest", engine, status=2)
    assert "error[M210]" in cli.err and (tmp_path / "engine.cdx.json").read_text() == "my notes"
    assert not (tmp_path / "engine.intoto.json").exists()
    cli("attest", engine, "-o", engine / "deep", status=2)
    (engine / "model.onnx").write_bytes(b"x")
    cli("attest", engine, "-o", tmp_path / "kept", status=1)
    assert "error[M106]" in cli.err and not (tmp_path / "kept").exists()
    cli("attest", mixtral, status=2)


@pytest.mark.parametrize("kind", ["intoto", "cdx"])
def test_what_other_tools_attest_is_kept(kind: str, cli: Cli, engine: Path, tmp_path: Path) -> None:
    cli("attest", engine)
    file = tmp_path / f"engine.{kind}.json"
    theirs = file.read_text().replace("urn:moec:compile:v1", "https://actions.github.io/buildtypes/workflow/v1")
    theirs = theirs.replace('"name": "moec"', '"name": "syft"')
    file.write_text(theirs)
    cli("attest", engine, status=2)
    assert "error[M210]" in cli.err and file.read_text() == theirs


def test_what_is_missing_is_said(cli: Cli, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("in_toto_attestation.v1.statement", "cyclonedx.model.bom"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)  # an import of it raises, as where it is not installed
            cli("attest", engine, status=3)
        assert "error[M301]" in cli.err and package in cli.err and 'pip install "moec[attest]"' in cli.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine"]


def signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_an_engine_is_signed_with_a_key_of_ones_own(engine: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not here")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, signature = ec.generate_private_key(ec.SECP256R1()), tmp_path / "engine.sig"
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    (tmp_path / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    signed = signing("sign", "key", engine, "--private_key", tmp_path / "key", "--signature", signature)
    assert signed.returncode == 0, signed.stderr
    check = ("verify", "key", engine, "--public_key", tmp_path / "key.pub", "--signature", signature)
    assert signing(*check).returncode == 0
    (engine / "model.onnx").write_bytes(b"x")
    assert signing(*check).returncode != 0


@pytest.mark.parametrize(
    ("place", "value", "status"),
    [
        (("text_hashes",), {"\x1b[2J": "x"}, 0),
        (("environment",), {"a b": "1", "": "2", "torch": "not a version\n"}, 0),
        (("settings", "max_kl"), float("inf"), 1),
        (("source",), "\u202e/\n", 0),
        (("account", "stated"), {"license": ["", "mit\n# x"]}, 0),
        (("source_hashes",), {"": "", "a": "\ud800"}, 1),
    ],
)
def test_an_edited_manifest_ends_in_three_lines_or_in_files_of_the_form(
    place: tuple[str, ...], value: object, status: int, cli: Cli, engine: Path, tmp_path: Path
) -> None:
    manifest = json.loads((engine / "moec.json").read_text())
    inner = manifest
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (engine / "moec.json").write_text(json.dumps(manifest))
    cli("attest", engine, status=status)
    assert "M799" not in cli.err
    if not status:
        assert (tmp_path / "engine.intoto.json").read_text().isascii()
        cli("attest", engine, "--check", tmp_path / "engine.intoto.json")
