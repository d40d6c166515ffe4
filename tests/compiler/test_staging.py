"""An engine's folder appears whole or not at all, in one step, and takes nothing of others' with it."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from moec.compiler import staging as module
from moec.compiler.options import Options
from moec.compiler.publish import handed_over, taken_back
from moec.compiler.staging import check_out, require_apart, staging
from moec.errors import MoecError
from moec.files.workplace import sweep
from moec.progress import Progress


def write(folder: Path, text: str, **more: str) -> Path:
    """What an engine is made of, each file saying `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "deep/weights.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    artefacts = [{"name": name} for name in ("model.onnx", "deep/weights.bin")]
    (folder / "moec.json").write_text(json.dumps({"artefacts": artefacts, "text": text}))
    for name, other in more.items():
        (folder / name).write_text(other)
    return folder


def refusal(out: Path, *keep: Path) -> MoecError:
    with pytest.raises(MoecError) as caught:
        check_out(out, keep)
    assert caught.value.code == "M210"
    return caught.value


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "engine"
    with staging(out) as folder:
        write(folder, "new")
        assert not out.exists()
    assert sorted(p.name for p in out.iterdir()) == ["deep", "model.onnx", "moec.json"]
    assert [p.name for p in out.parent.iterdir()] == ["engine"] and oct(out.stat().st_mode)[-3:] == "755"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error_and_what_was_there_stays(error: type[BaseException], tmp_path: Path) -> None:
    out = write(tmp_path / "engine", "old")
    with pytest.raises(error), staging(out) as folder:
        write(folder, "new")
        raise error
    assert (out / "model.onnx").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize("swaps", [True, False])
def test_an_engine_is_replaced_whole(swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(module, "exchange", lambda one, other: False)
    out = write(tmp_path / "engine", "old")
    with staging(out) as folder:
        write(folder, "new")
    assert (out / "model.onnx").read_text() == (out / "deep" / "weights.bin").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]


def test_without_a_swap_the_old_one_comes_back_when_the_new_one_cannot_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(new: Path, out: Path) -> None:
        raise FileExistsError(17, "File exists", str(out)) if out.exists() else PermissionError(13, "no", str(new))

    monkeypatch.setattr(module, "exchange", lambda one, other: False)
    monkeypatch.setattr(module, "move", refuse)
    out = write(tmp_path / "engine", "old")
    with pytest.raises(MoecError), staging(out) as folder:
        write(folder, "new")
    assert (out / "model.onnx").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["engine"]


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    out, seen, done = write(tmp_path / "engine", "0"), set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                seen.add((out / "model.onnx").read_text())
            except OSError as error:
                seen.add(repr(error))

    reader = threading.Thread(target=look)
    reader.start()
    for k in range(1, 60):
        with staging(out) as folder:
            write(folder, str(k))
    done.set()
    reader.join()
    assert len(seen) > 1 and seen <= {str(k) for k in range(60)}


def test_what_moec_wrote_may_be_replaced_but_nothing_else(tmp_path: Path) -> None:
    empty, other, file = (tmp_path / n for n in ("empty", "other", "file"))
    empty.mkdir()
    engine = write(tmp_path / "engine", "old", **{"report.html": "<p>"})
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    file.write_text("text")
    for free in (tmp_path / "new", empty, engine):
        check_out(free)
    for taken in (other, file):
        refusal(taken)
    (engine / "deep" / "notes.txt").write_text("mine")
    assert "deep/notes.txt" in refusal(engine).what


def test_a_card_that_somebody_went_on_writing_is_theirs(tmp_path: Path) -> None:
    engine = write(tmp_path / "engine", "old", **{"README.md": "# An engine"})
    manifest = json.loads((engine / "moec.json").read_text())
    manifest["artefacts"].append({"name": "README.md", "sha256": sha256(b"# An engine").hexdigest()})
    (engine / "moec.json").write_text(json.dumps(manifest))
    check_out(engine)
    (engine / "README.md").write_text("# An engine, and what I think of it")
    assert "README.md" in refusal(engine).what


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"artefacts": [{"name": "../thesis.tex"}]}', "\0"])
def test_a_manifest_that_lists_nothing_frees_nothing(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    (folder / "moec.json").write_text(content)
    refusal(folder)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_never_the_model_nor_the_current_directory_nor_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = write(tmp_path / "work" / "engine", "old")
    (engine / "here").mkdir()
    model = tmp_path / "models" / "llama"
    model.mkdir(parents=True)
    refusal(model, model)
    assert str(model) in refusal(model.parent, model).what
    check_out(model / "engine", (model,))
    link = tmp_path / "link"
    link.symlink_to(model.parent)
    refusal(link, model)
    monkeypatch.chdir(engine / "here")
    for place in (Path(), Path(".."), engine, engine.parent, Path("/"), Path.home()):
        refusal(place)


def test_what_came_during_the_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write(tmp_path / "engine", "old")
    with pytest.raises(MoecError, match=r"notes.txt"), staging(out) as folder:
        write(folder, "new")
        (out / "notes.txt").write_text("mine")
    assert (out / "notes.txt").read_text() == "mine" and (out / "model.onnx").read_text() == "old"
    monkeypatch.setattr(module, "check_out", lambda out, keep=(): None)  # it comes after the last look
    with pytest.raises(MoecError, match=r"notes.txt"), staging(out) as folder:
        write(folder, "new")
    assert (out / "notes.txt").read_text() == "mine" and (out / "model.onnx").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]


def test_a_folder_that_appears_during_the_work_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "engine"
    with pytest.raises(MoecError) as caught, staging(out) as folder:
        write(folder, "new")
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    assert caught.value.code == "M210" and [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(MoecError) as caught, staging(tmp_path / "file" / "engine"):
        pass
    assert caught.value.code == "M210"


def test_an_error_of_another_file_names_that_file(tmp_path: Path) -> None:
    missing = tmp_path / "out" / "template.j2"
    with pytest.raises(MoecError) as caught, staging(tmp_path / "out" / "engine"):
        missing.read_text()
    assert (caught.value.code, caught.value.where) == ("M218", str(missing))
    with pytest.raises(MoecError) as caught, staging(tmp_path / "out" / "engine") as folder:
        (folder / "no" / "such").write_text("")
    assert caught.value.code == "M210"


class Checkpoints:
    """A source that writes a checkpoint, and a GGUF file."""

    def save_checkpoint(
        self, program: object, folder: Path, hf_format: str, progress: object = None
    ) -> tuple[str, ...]:
        folder.mkdir()
        (folder / "config.json").write_text("new")
        return (hf_format,)

    def save_gguf(self, program: object, file: Path, floats: str) -> tuple[str, ...]:
        file.write_text(floats)
        return ("written",)


def handing_over(published: list[Path], **places: Path) -> contextlib.AbstractContextManager[None]:
    """What a compile writes beside its engine, with nothing in it."""
    return handed_over(None, Checkpoints(), Options(**places), published, Progress())  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", ["well", "ill", "taken"])
def test_a_checkpoint_gets_its_name_at_the_end_and_takes_nobody_elses(ends: str, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    context = contextlib.nullcontext() if ends == "well" else pytest.raises((MoecError, RuntimeError))
    with context, handing_over([], save_hf=out):
        assert not out.exists()
        if ends != "well":
            out.mkdir()
            (out / "thesis.tex").write_text("years of work")
        if ends == "ill":
            raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert [p.name for p in out.iterdir()] == ["config.json" if ends == "well" else "thesis.tex"]


def test_a_checkpoint_goes_again_where_its_engine_is_refused(tmp_path: Path) -> None:
    engine, out, file = tmp_path / "engine", tmp_path / "checkpoint", tmp_path / "m.gguf"
    with pytest.raises(MoecError) as caught, taken_back() as published, staging(engine) as folder:
        with handing_over(published, save_hf=out, save_gguf=file):
            write(folder, "new")
        assert published == [file.resolve(), out.resolve()] and out.exists() and file.read_text() == "f16"
        write(engine, "old", **{"thesis.tex": "years of work"})
    assert caught.value.code == "M210" and [p.name for p in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize(("engine", "checkpoint"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "c/../a/b")])
def test_neither_an_engine_nor_its_checkpoint_is_inside_the_other(engine: str, checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        require_apart({"--out": tmp_path / engine, "--save-hf": tmp_path / checkpoint})
    assert caught.value.code == "M210"
    require_apart({"--out": tmp_path / engine, "--save-hf": tmp_path / "beside"})


PUBLISHING = """
import json, pathlib, signal, sys
from moec.compiler.staging import staging

def end(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, end)
out = pathlib.Path(sys.argv[1])
try:
    for k in range(10**6):
        with staging(out) as folder:
            for name in ("a", "b"):
                (folder / name).write_text(f"{sys.argv[2]} {k}")
            (folder / "moec.json").write_text(json.dumps({"artefacts": [{"name": "a"}, {"name": "b"}]}))
        print(k, flush=True)
except KeyboardInterrupt:
    sys.exit(143)
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_leaves_a_whole_engine(by: signal.Signals, tmp_path: Path) -> None:
    out, chance = tmp_path / "engine", random.Random(0)
    for k in range(8):
        process = subprocess.Popen([sys.executable, "-c", PUBLISHING, str(out), str(k)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(by)
        process.communicate()
        assert process.returncode == (-9 if by == signal.SIGKILL else 143)
        assert (out / "a").read_text() == (out / "b").read_text() and (out / "moec.json").exists()
        if by == signal.SIGKILL:
            sweep(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["engine"]
