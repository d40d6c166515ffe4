"""Files of an engine that changed after they were written are noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.report.artefacts import check_artefacts, hash_artefacts, size_bytes


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"123")
    (tmp_path / "report.html").write_text("is not hashed")
    artefacts = hash_artefacts(tmp_path)
    assert [a.name for a in artefacts] == ["model.onnx"]
    check_artefacts(artefacts, tmp_path)
    file.write_bytes(b"124")
    check_artefacts(artefacts, tmp_path, "size")
    for change, says in ((b"124", "changed"), (b"1234", "4 bytes"), (None, "missing")):
        file.unlink() if change is None else file.write_bytes(change)
        with pytest.raises(MoecError, match=says) as error:
            check_artefacts(artefacts, tmp_path)
        assert error.value.code == "M106"


def test_a_card_may_be_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"123")
    card = tmp_path / "README.md"
    card.write_text("# An engine")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "README.md").write_text("another's")
    artefacts = hash_artefacts(tmp_path)
    assert [a.name for a in artefacts] == ["README.md", "deep/README.md", "model.onnx"] and size_bytes(artefacts) == 12
    card.write_text("# An engine, and what I think of it")
    check_artefacts(artefacts, tmp_path)
    card.unlink()
    check_artefacts(artefacts, tmp_path)
    (tmp_path / "deep" / "README.md").write_text("changed")
    with pytest.raises(MoecError, match="README"):
        check_artefacts(artefacts, tmp_path)
