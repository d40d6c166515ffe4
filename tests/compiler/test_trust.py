"""A manifest may come from anywhere: what it names is not run unless that is asked for, nor opened unless it is the
same."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import moec
from moec import api
from moec.compiler.engine_folder import open_recorded
from moec.errors import MoecError

CODE = "import torch\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 2)\n"
EVIL = "open({mark!r}, 'w').write('owned')\n" + CODE


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of a model in a Python file."""
    folder = tmp_path_factory.mktemp("trust")
    (folder / "net.py").write_text(CODE)
    moec.compile(f"{folder / 'net.py'}:build", inputs=["input=batch,4:float32"], out=folder / "engine")
    return folder / "engine"


def with_source(engine: Path, copy: Path, source: str, hashes: dict[str, str]) -> Path:
    """A copy of an engine whose manifest names another model."""
    shutil.copytree(engine, copy)
    data = json.loads((copy / "moec.json").read_text())
    (copy / "moec.json").write_text(json.dumps({**data, "source": source, "source_hashes": hashes}))
    return copy


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


VERBS: dict[str, Any] = {
    "verify": lambda folder, out, **opening: api.verify(folder, **opening),
    "bisect": lambda folder, out, **opening: api.bisect(folder, **opening),
    "run": lambda folder, out, **opening: api.sample(folder, **opening),
    "bench": lambda folder, out, **opening: api.bench([folder], runs=1, eager=True, **opening),
    "build": lambda folder, out, **opening: api.build(folder, **opening),
    "compile --from": lambda folder, out, **opening: api.rebuild(folder, out, **opening),
}


@pytest.mark.parametrize("verb", VERBS)
def test_code_that_a_manifest_names_is_not_run(verb: str, engine: Path, tmp_path: Path) -> None:
    mark, evil = tmp_path / "mark", tmp_path / "evil.py"
    evil.write_text(EVIL.format(mark=str(mark)))
    for hashes in ({"evil.py": digest(evil)}, {"evil.py": "0" * 64}, {}):
        folder = with_source(
            engine, tmp_path / f"engine-{len(hashes)}-{mark.exists()}-{id(hashes)}", f"{evil}:build", hashes
        )
        with pytest.raises(MoecError, match=r"evil\.py would be run") as caught:
            VERBS[verb](folder, tmp_path / "out")
        assert caught.value.code == "M209" and "--trust-remote-code" in caught.value.fix
        assert not mark.exists()


@pytest.mark.parametrize("verb", ["run", "build"])
def test_trusted_code_runs_only_if_it_is_the_same(verb: str, engine: Path, tmp_path: Path) -> None:
    mark, evil = tmp_path / "mark", tmp_path / "evil.py"
    evil.write_text(EVIL.format(mark=str(mark)))
    folder = with_source(engine, tmp_path / "engine", f"{evil}:build", {"evil.py": "0" * 64})
    with pytest.raises(MoecError, match=r"has changed since: evil\.py") as caught:
        VERBS[verb](folder, tmp_path / "out", trust_remote_code=True)
    assert caught.value.code == "M106" and not mark.exists()
    with pytest.raises(MoecError) as caught:  # named by the user: no flag is needed, and it has to be the same
        api.build(folder, model=f"{evil}:build")
    assert caught.value.code == "M106" and not mark.exists()


def test_trusted_code_runs(engine: Path) -> None:
    assert api.sample(engine, trust_remote_code=True)["input"].shape == (2, 4)
    assert api.verify(engine, trust_remote_code=True).ok
    source = json.loads((engine / "moec.json").read_text())["source"]
    with pytest.raises(MoecError, match="is built already"):
        api.build(engine, model=source)


def test_a_graph_that_a_manifest_names_is_not_read(engine: Path, tmp_path: Path) -> None:
    folder = with_source(engine, tmp_path / "engine", str(tmp_path / "net.pt2"), {})
    with pytest.raises(MoecError, match=r"net\.pt2") as caught:
        api.verify(folder)
    assert caught.value.code == "M209"


def test_a_config_that_changed_is_not_opened(mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> None:
    """Before its architecture is built: no code of the folder, and no class of another name."""
    model = Path(shutil.copytree(mixtral, tmp_path / "model"))
    (model / "config.json").write_text('{"model_type": "no-such-model"}')
    hashes = json.loads((mixtral_engine / "moec.json").read_text())["source_hashes"]
    folder = with_source(mixtral_engine, tmp_path / "engine", str(model), hashes)
    with pytest.raises(MoecError, match=r"has changed since: config\.json") as caught:
        api.verify(folder)
    assert caught.value.code == "M106"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a\\b", "..\\x"])
def test_names_of_files_stay_in_the_folder(name: str, engine: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(engine, tmp_path / "engine"))
    (tmp_path / "outside").write_text("x")
    data = json.loads((copy / "moec.json").read_text())
    data["artefacts"].append({"name": name, "sha256": digest(tmp_path / "outside"), "size_bytes": 1})
    (copy / "moec.json").write_text(json.dumps(data))
    for verb in (api.load, api.build):
        with pytest.raises(MoecError, match="outside of the folder") as caught:
            verb(copy)
        assert caught.value.code == "M106"


def test_a_file_beside_the_models_is_compared_before_any_code_is_run(tmp_path: Path) -> None:
    """An engine is of what its file imported too; that is hashed, and looked at before it is run again."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    (folder / "sizes.py").write_text("size = 4\n")
    (folder / "net.py").write_text("from sizes import size\n" + CODE)
    moec.compile(f"{folder / 'net.py'}:build", inputs=["input=batch,4:float32"], out=tmp_path / "engine")
    assert api.read_report(tmp_path / "engine").source_hashes.keys() == {"net.py", "sizes.py"}
    assert moec.verify(tmp_path / "engine", trust_remote_code=True).ok
    (folder / "sizes.py").write_text(EVIL.format(mark=str(mark)) + "\nsize = 4\n")
    with pytest.raises(MoecError) as caught:
        moec.verify(tmp_path / "engine", trust_remote_code=True)
    assert caught.value.code == "M106" and "sizes.py" in caught.value.what and not mark.exists()


def changed(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")


FAST = "fast.cpython-312-x86_64-linux-gnu.so"
CHANGES: dict[str, Any] = {
    "a source file": ("sizes.py", lambda folder: changed(folder, "sizes.py")),
    "a compiled file": (FAST, lambda f: changed(f, FAST)),
    "a file without its source": ("old.pyc", lambda folder: changed(folder, "old.pyc")),
    "one that is gone": ("old.pyc", lambda folder: (folder / "old.pyc").unlink()),
    "one before another package": ("colorsys.py", lambda folder: (folder / "colorsys.py").write_text("{evil}")),
}  # fmt: skip


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_no_file_that_an_engine_was_not_made_with_is_run(
    change: str | None, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the file: changed, compiled, gone, or new and found before what was imported at the compile."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    mark = tmp_path / "mark"
    (tmp_path / "net.py").write_text("import colorsys\nassert colorsys.ONE_THIRD\n" + EVIL.format(mark=str(mark)))
    for name in ("sizes.py", FAST, "old.pyc"):
        (tmp_path / name).write_bytes(b"")
    hashes = {file.name: digest(file) for file in tmp_path.iterdir()}
    report = replace(api.read_report(engine), source=f"{tmp_path}/net.py:build", source_hashes=hashes)
    name, make = CHANGES[change] if change else ("fast.*.so, net.py", lambda folder: None)
    make(tmp_path)
    with pytest.raises(MoecError) as caught:
        open_recorded(report, {"trust_remote_code": True, "inputs": ["input=batch,4:float32"]})
    assert caught.value.code == "M106"
    if change:
        assert name in caught.value.what and not mark.exists()
    else:  # all are as they were, so the file is run; that it does not import them any more is seen then
        assert "fast." in caught.value.what and mark.exists()
