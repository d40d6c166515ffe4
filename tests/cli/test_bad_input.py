"""Bad input: three lines (what, where, how to fix), the right exit status, no traceback, and never a half-written
engine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moec.cli import main
from tests.zoo import edit_config, save


def moec(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run the command line in this process; returns exit status and stderr."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0), capsys.readouterr().err


def assert_three_lines(err: str, code: str) -> None:
    lines = [
        line
        for line in err.splitlines()
        if (line and not line.startswith("  ")) or line.startswith(("  where:", "  fix:"))
    ]
    assert lines[-3].startswith(f"error[{code}]: "), err
    assert lines[-2].startswith("  where: ")
    assert lines[-1].startswith("  fix:   ")
    assert "Traceback" not in err


def assert_nothing_published(folder: Path) -> None:
    assert not (folder / "engine").exists()
    assert [p.name for p in folder.iterdir() if p.name.startswith(".engine.")] == []


@pytest.fixture
def model(mixtral: Path, tmp_path: Path) -> Path:
    """A copy of the Mixtral folder that a test may break."""
    return Path(shutil.copytree(mixtral, tmp_path / "model"))


def edit_weights(model: Path, change: str) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    if change == "nan":
        name = next(n for n in sorted(weights) if "experts" in n)
        weights[name].view(-1)[3] = torch.nan
    else:
        del weights[change]
    save_file(weights, path, metadata={"format": "pt"})


def test_missing_safetensors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "model.safetensors").unlink()
    status, err = moec(capsys, "compile", model, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M205")
    assert_nothing_published(tmp_path)


def test_truncated_safetensors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, err = moec(capsys, "compile", model, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M205")
    assert "model.safetensors" in err
    assert_nothing_published(tmp_path)


def test_missing_weight_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_weights(model, "model.norm.weight")
    status, err = moec(capsys, "compile", model, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M205")
    assert "model.norm.weight" in err


def test_nan_weight_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_weights(model, "nan")
    status, err = moec(capsys, "compile", model, "-o", tmp_path / "engine")
    assert status == 1
    assert_three_lines(err, "M105")
    assert "experts" in err
    assert_nothing_published(tmp_path)


def test_unknown_architecture(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(model, model_type="mixtrel", architectures=["MixtrelForCausalLM"])
    status, err = moec(capsys, "compile", model, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M206")


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = moec(capsys, "compile", tmp_path / "nowhere", "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M204")


def test_remote_code_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(model, auto_map={"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}, model_type="evil")
    status, err = moec(capsys, "compile", model, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M209")


@pytest.mark.parametrize(
    ("pipeline", "code", "hint"),
    [
        ("upcyle(experts=8)", "M202", "did you mean upcycle?"),
        ("upcycle(expert=8)", "M201", "did you mean experts?"),
        ("upcycle(experts=2, top_k=4)", "M203", ""),
        ("upcycle(experts=", "M201", ""),
        ("upcycle(experts=__import__('os'))", "M201", ""),
        ("calibrate-router", "M203", "--calibration FILE"),
    ],
)
def test_bad_pipelines(
    pipeline: str, code: str, hint: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = moec(capsys, "compile", llama, "--pass", pipeline, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, code)
    assert hint in err
    assert_nothing_published(tmp_path)


@pytest.mark.parametrize(
    ("pipeline", "tokens", "hint"),
    [
        ("calibrate-router", 1024, "put quantize before it"),
        ("quantize(bits=8, group=16), calibrate-router", 256, "--calibration-tokens"),
    ],
    ids=["nothing quantized", "one window"],
)
def test_what_calibrate_router_needs(
    pipeline: str, tokens: int, hint: str, mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "text.npy", np.arange(tokens) % 90)
    status, err = moec(
        capsys,
        "compile",
        mixtral,
        "--pass",
        pipeline,
        "--calibration",
        tmp_path / "text.npy",
        "-o",
        tmp_path / "engine",
    )
    assert status == 2
    assert_three_lines(err, "M203")
    assert hint in err
    assert_nothing_published(tmp_path)


def test_a_named_pass_that_changes_nothing(mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = moec(capsys, "compile", mixtral, "--pass", "upcycle(experts=4, top_k=2)", "-o", tmp_path / "engine")
    assert status == 1
    assert_three_lines(err, "M103")
    assert_nothing_published(tmp_path)


@pytest.mark.parametrize(
    "target", ["onnxruntme", "onnxruntime:tpu", "onnxruntime:cpu,precison=fp16", "onnxruntime:precision=fp12"]
)
def test_bad_targets_are_refused_before_any_work(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = moec(capsys, "compile", tmp_path / "no-model-is-read", "--target", target, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M202" if "runtme" in target else "M208")


def test_a_folder_that_moec_did_not_write_is_left_alone(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "thesis.tex").write_text("years of work")
    status, err = moec(capsys, "compile", mixtral, "-o", tmp_path / "engine")
    assert status == 2
    assert_three_lines(err, "M210")
    assert (tmp_path / "engine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("out", ["model", ".", "..", "deep", "model/.."])
def test_the_model_and_the_current_directory_are_not_replaced(
    out: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where a manifest makes them look like an engine's folder."""
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    model.rename(work / "model")
    for folder in (tmp_path / "deep", work, work / "model"):
        (folder / "moec.json").write_text('{"artefacts": [{"name": "config.json"}, {"name": "model.safetensors"}]}')
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(work)
    place = tmp_path / "deep" if out == "deep" else out
    status, err = moec(capsys, "compile", "model", "-o", place)
    assert status == 2
    assert_three_lines(err, "M210")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_text_in_the_engines_folder_is_not_lost(
    mixtral: Path, mixtral_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    np.save(engine / "text.npy", np.arange(64) % 90)
    for text in (engine / "text.npy", engine / "config.json"):
        status, err = moec(capsys, "compile", mixtral, "--text", text, "-o", engine)
        assert status == 2 and "error[M210]" in err
        assert text.exists() and (engine / "moec.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "{engine}", "--seed", 2**70),
        ("run", "{engine}", "--seed", -1),
        ("run", "{engine}", "--tokens", "1", "--max-tokens", 2**64),
        ("run", "{engine}", "--tokens", f"1,{2**70}"),
        ("run", "{engine}", "--tokens", "1", "--temperature", "nan"),
        ("bench", "{engine}", "--size", "sequence=²"),
        ("bench", "{engine}", "--size", f"sequence={10**12}"),
        ("compile", "nowhere", "-o", "x", "--target", "onnxruntime:threads=x"),
    ],
    ids=lambda a: " ".join(map(str, a))[:60],
)
def test_numbers_that_are_none_or_too_large(
    arguments: tuple[object, ...],
    mixtral_engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, err = moec(capsys, *(mixtral_engine if a == "{engine}" else a for a in arguments))
    assert status == 2 and "Traceback" not in err


def test_what_is_no_file_does_not_wait(
    mixtral: Path, mixtral_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, engine = tmp_path / "pipe", Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "x.pt2")
    os.mkfifo(tmp_path / "x.toml")
    (engine / "moec.json").unlink()
    os.mkfifo(engine / "moec.json")
    new = ("-o", tmp_path / "new")
    for arguments in (
        ("compile", pipe, *new),
        ("compile", tmp_path / "x.pt2", *new),
        ("compile", f"{pipe}.py:x", *new),
        ("compile", mixtral, *new, "--config", tmp_path / "x.toml"),
        ("compile", mixtral, *new, "--text", pipe),
        ("compile", mixtral, *new, "--text", "/dev/zero"),
        ("compile", "--from", pipe, *new),
        ("run", mixtral_engine, "--inputs", pipe),
        ("inspect", engine),
        ("run", engine),
    ):
        status, err = moec(capsys, *arguments)
        assert status in (1, 2) and "error[M" in err and "M799" not in err, arguments
    assert not (tmp_path / "new").exists()


def test_a_changed_engine_does_not_load(
    mixtral_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(mixtral_engine, tmp_path / "broken"))
    data = bytearray((broken / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (broken / "model.onnx.data").write_bytes(data)
    status, err = moec(capsys, "run", broken)
    assert status == 1
    assert_three_lines(err, "M106")


def other_manifest(engine: Path, copy: Path, **changes: object) -> Path:
    """A copy of an engine whose manifest says something else."""
    shutil.copytree(engine, copy)
    manifest = json.loads((copy / "moec.json").read_text())
    (copy / "moec.json").write_text(json.dumps({**manifest, **changes}))
    return copy


RUNS = (("run", "--tokens", "5,6"), ("run",), ("bench", "--runs", 1), ("verify",))


@pytest.mark.parametrize("verb", RUNS, ids=["write", "run", "bench", "verify"])
def test_an_engine_of_a_newer_moec(
    verb: tuple[object, ...], mixtral_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = other_manifest(mixtral_engine, tmp_path / "newer", schema=99)
    status, err = moec(capsys, verb[0], newer, *verb[1:])
    assert status == 2
    assert_three_lines(err, "M201")
    assert "schema 99" in err and "upgrade" in err


@pytest.mark.parametrize("verb", RUNS, ids=["write", "run", "bench", "verify"])
@pytest.mark.parametrize("missing", ["model.onnx", "model.onnx.data", "config.json", "moec.json"])
def test_an_engine_with_a_file_missing(
    missing: str, verb: tuple[object, ...], mixtral_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(mixtral_engine, tmp_path / "broken"))
    (broken / missing).unlink()
    status, err = moec(capsys, verb[0], broken, *verb[1:])
    assert status == 1
    assert_three_lines(err, "M106")
    assert missing in err


def npz(engine: Path, path: Path, **changes: object) -> Path:
    """Inputs of a decoder in a file: two texts of three tokens after four, and what is to be wrong with them."""
    import moec as package

    specs = package.load(engine).inputs
    right = {
        i.name: np.ones(i.resolve({"batch": 2, "sequence": 3, "past_sequence": 4}), str(i.dtype)[6:]) for i in specs
    }
    np.savez(path, **{**right, **changes})  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"past_key_values.1.key": np.ones((2, 2, 5, 8), np.float32)},
        {"past_key_values.1.key": np.ones((2, 3, 4, 8), np.float32)},
        {"past_key_values.1.key": np.ones((2, 2, 4, 8), np.float16)},
        {"attention_mask": np.ones((2, 3), np.int64)},
        {"input_ids": np.ones((2, 3), np.int32)},
        {"input_ids": np.full((2, 3), 96)},
        {"past_key_values.7.key": np.ones((2, 2, 4, 8), np.float32)},
    ],
    ids=[
        "cache length",
        "cache heads",
        "cache dtype",
        "mask length",
        "ids dtype",
        "ids beyond the vocabulary",
        "no such layer",
    ],
)
def test_wrong_inputs_of_a_decoder(
    changes: dict[str, object], mixtral_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, err = moec(capfd, "run", mixtral_engine, "--inputs", npz(mixtral_engine, tmp_path / "right.npz"))
    assert status == 0, err
    status, err = moec(capfd, "run", mixtral_engine, "--inputs", npz(mixtral_engine, tmp_path / "wrong.npz", **changes))
    assert status == 2
    beyond = np.any(np.asarray(changes.get("input_ids", 0)) >= 96)
    assert_three_lines(err, "M214" if beyond else "M211")


def test_inputs_that_the_runtime_refuses(
    mixtral_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says so itself, and its own log, which would print the engine's names as they are, stays silent."""
    np.savez(tmp_path / "empty.npz", input_ids=np.zeros((0, 3), np.int64))
    status, err = moec(capfd, "run", mixtral_engine, "--inputs", tmp_path / "empty.npz")
    assert status == 2 and "\x1b" not in err
    assert [line[:5] for line in err.splitlines()[:1]] == ["error"]


def test_a_prompt_beyond_the_context(mixtral_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = moec(capsys, "run", mixtral_engine, "--tokens", ",".join(["5"] * 300))
    assert status == 2
    assert_three_lines(err, "M211")
    assert "300 tokens" in err and "a context of 256" in err


def test_json_carries_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compile", str(tmp_path / "nowhere"), "-o", str(tmp_path / "engine"), "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert data["error"]["code"] == "M204"
    assert data["error"]["exit_code"] == 2


def test_usage_errors_are_three_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["compile"],
        ["no-such-verb"],
        ["compile", "m", "-o", "x", "--no-such-flag"],
        ["compile", "m", "-o", "x", "--layout", "nonsense"],
    ):
        status, err = moec(capsys, *arguments)
        assert status == 2
        assert_three_lines(err, "M201")


def test_an_encoder_has_no_layout_for_text_generation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = save("bert", tmp_path / "model")
    status, err = moec(capsys, "compile", encoder, "-o", tmp_path / "engine", "--layout", "genai")
    assert status == 2
    assert_three_lines(err, "M208")
    assert_nothing_published(tmp_path)


# ---------------------------------------------------------------------- a process of its own: limits and signals
def start(*arguments: object, file_limit_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is ignored in a shell's background jobs
        if file_limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))

    command = [sys.executable, "-m", "moec", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)


def test_full_disk(mixtral: Path, tmp_path: Path) -> None:
    """The operating system refuses to write past 64 KiB, as it does on a full disk."""
    process = start("compile", mixtral, "-o", tmp_path / "engine", file_limit_bytes=64 * 1024)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert_three_lines(err, "M210")
    assert_nothing_published(tmp_path)


def test_ctrl_c_leaves_nothing(mixtral: Path, tmp_path: Path) -> None:
    process = start("compile", mixtral, "-o", tmp_path / "engine")
    deadline = time.monotonic() + 120
    while not any(p.name.startswith(".engine.") for p in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-3:][0] == "interrupted"
    assert "Traceback" not in err
    assert_nothing_published(tmp_path)
