"""`moec bench`: rows are named by folder, what was measured can be exported, and kept with the engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from moec.cli.bench import FORMS
from tests.command_line import Cli


def test_bench_of_texts(cli: Cli, mixtral_engine: Path) -> None:
    data = cli.json(
        "bench", mixtral_engine, mixtral_engine, "--eager", "--runs", 1, "--size", "sequence=8", "--max-tokens", 3
    )
    assert [t["engine"] for t in data["timings"]] == [str(mixtral_engine), f"{mixtral_engine} (2)", "eager PyTorch"]
    assert data["sizes"] == {"batch": 1, "sequence": 8, "new": 3}
    assert all(t["decode_tokens_per_s"] > 0 and t["memory"]["loaded_bytes"] >= 0 for t in data["timings"])
    assert "onnx" in data["where"]["versions"] and data["kind"] == "text"
    cli("bench", mixtral_engine, "--size", "height=8", status=2)


def test_bench_of_forward_passes(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"times{form}" for form in (".csv", ".json", ".svg", ".html")]
    exports = [word for file in files for word in ("--export", file)]
    said = cli("bench", mixtral_engine, "--forward", "--runs", 2, "--warmup", 1, "--size", "sequence=8", *exports)
    assert "tokens/s" in said and str(mixtral_engine)[-30:] in said and "torch" in said and "after 1 to warm up" in said
    assert "peak of the process" in said and cli.err == ""
    assert all(FORMS[file.suffix].is_ours(file.read_text()) for file in files)  # the next benchmark may replace them
    data = json.loads(files[1].read_text())
    assert data["sizes"] == {"batch": 1, "sequence": 8, "past_sequence": 0} and len(data["moments"]) == 2
    assert files[0].read_text().startswith("engine,round,phase") and all(f.stat().st_size for f in files)


def test_wrong_exports_cost_no_benchmark(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    for file, code in (("times.xlsx", "M201"), ("no/such/times.csv", "M210"), ("times", "M201")):
        cli("bench", mixtral_engine, "--export", tmp_path / file, status=2)
        assert code in cli.err and "fix:" in cli.err


def test_times_are_kept_on_request_only(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    engine = shutil.copytree(mixtral_engine, tmp_path / "engine")
    run = ("bench", engine, "--runs", 1, "--max-tokens", 2, "--size", "batch=2", "--size", "sequence=8")
    assert "batch 2, 8 + 2 tokens" in cli(*run)
    assert not (engine / "bench.json").exists()
    cli(*run, "--save")
    assert "How fast it is" in (engine / "report.html").read_text()
    assert "Speed" in (engine / "report.html").read_text()
    cli("run", engine, "--seed", 1)  # it is still the engine of its manifest
