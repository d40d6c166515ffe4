"""Every verb's happy path: pure JSON on stdout with --json, nothing on stderr with --quiet, the right exit status."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from moec.cli import SUMMARIES, VERBS
from moec.cli.build import with_precision
from moec.targets.target import Target
from tests.byte_tokenizer import write_tokenizer
from tests.command_line import Cli
from tests.spoiling import spoil
from tests.zoo import save


# ---------------------------------------------------------------------- compile
def test_compile_says_what_was_proven(cli: Cli, mixtral: Path, tmp_path: Path) -> None:
    data = cli.json("compile", mixtral, "-o", tmp_path / "engine", "--dump", tmp_path / "dump")
    assert data["ok"] and data["folder"] == str(tmp_path / "engine")
    assert data["report"] == json.loads((tmp_path / "engine" / "moec.json").read_text())
    assert "verify" in cli.err and "experts reached" in cli.err
    dumps = sorted((tmp_path / "dump").iterdir())
    assert any("moec.moe" in p.read_text() for p in dumps) and dumps[0].name == "000_capture.py"
    graphs = [p for p in dumps if p.suffix == ".txt"]
    assert graphs == dumps[-len(graphs) :] and graphs[0].name.endswith("export_to_onnx.txt")
    opaque = ["moec::Moe(" in p.read_text() for p in graphs]
    lowered = next(k for k, p in enumerate(graphs) if p.name.endswith("lower_experts.txt"))
    assert opaque == [k < lowered for k in range(len(graphs))]


def test_a_preset_compiles_and_its_manifest_rebuilds_it_byte_for_byte(cli: Cli, llama: Path, tmp_path: Path) -> None:
    cli("compile", llama, "-o", tmp_path / "first", "--config", "upcycle-8x2", "--seed", 3)
    again = ["compile", "--from", tmp_path / "first" / "moec.json", "-o", tmp_path / "second", "--quiet"]
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: the errors in the manifest depend on the order of sums
    done = subprocess.run(
        [sys.executable, "-m", "moec", *map(str, again)], capture_output=True, text=True, check=True, env=alike
    )
    assert done.stderr == "" and "verified" in done.stdout and len(done.stdout.splitlines()) == 1
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first == second and {
        "model.onnx",
        "model.onnx.data",
        "moec.json",
        "report.html",
        "README.md",
        "genai_config.json",
    } <= set(first)
    report = json.loads(first["moec.json"])
    settings = report["settings"]
    assert (settings["seed"], settings["pipeline"]) == (3, "upcycle") and report["proof"]["checks"]["experts"][
        "coverage"
    ]["loads"][0]["assignments"][7] > 0


def test_a_config_file(cli: Cli, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('seed = 1\n[[pass]]\nname = "upcycle"\nexperts = 2\ntop_k = 1\n')
    report = cli.json("compile", llama, "-o", tmp_path / "engine", "--config", tmp_path / "mine.toml", "--seed", 2)[
        "report"
    ]
    assert (report["settings"]["seed"], report["settings"]["pipeline"]) == (2, "upcycle(experts=2, top_k=1)")


# ---------------------------------------------------------------------- engines
def test_verify(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    junit = tmp_path / "report.xml"
    data = cli.json("verify", mixtral_engine, "--junit", junit)
    assert ElementTree.parse(junit).getroot()[0].attrib["failures"] == "0"
    assert data["ok"] and data["bisect"] is None and data["verification"]["seed"] == 1
    spoiled = spoil(mixtral_engine, tmp_path / "spoiled")
    data = cli.json("verify", spoiled, "--bisect", "--junit", junit, status=1)
    assert {
        c.attrib["classname"] for c in ElementTree.parse(junit).iter("testcase") if c.find("failure") is not None
    } >= {"moec.verify.outputs"}
    assert not data["ok"] and data["bisect"]["experts"] == [5] and "layers.1" in data["bisect"]["layer"]
    assert "DIFFERS" in cli("verify", spoiled, "--against", mixtral_engine, status=1)
    cli("verify", tmp_path / "nothing", "--junit", junit, status=2)
    assert ElementTree.parse(junit).getroot().attrib["errors"] == "1"


def test_run_on_inputs_from_a_file(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    import moec

    ids = np.random.default_rng(0).integers(0, 90, (2, 6))
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    rows = cli.json("run", mixtral_engine, "--inputs", tmp_path / "in.npz", "--output", tmp_path / "out.npz")["outputs"]
    assert rows["logits"]["shape"] == [2, 6, 96] and rows["logits"]["dtype"] == "float32"
    want = moec.load(mixtral_engine)(input_ids=ids, attention_mask=np.ones_like(ids))["logits"]
    assert np.array_equal(np.load(tmp_path / "out.npz")["logits"], want)
    assert cli("run", mixtral_engine, "--seed", 1).startswith("logits: float32[2, 16, 96] mean ")
    np.savez(tmp_path / "bad.npz", attention_mask=np.ones_like(ids))
    cli("run", mixtral_engine, "--inputs", tmp_path / "bad.npz", status=2)
    assert "M211" in cli.err


# ---------------------------------------------------------------------- text
@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and nobody knows why. " * 20)
    return path


def test_verify_on_a_text(cli: Cli, mixtral_engine: Path, prose: Path, tmp_path: Path) -> None:
    engine = write_tokenizer(Path(shutil.copytree(mixtral_engine, tmp_path / "engine")))
    text = ("--text", prose, "--window", 64, "--tokens", 400)
    data = cli.json("verify", engine, *text, "--html", tmp_path / "page.html")
    found = data["verification"]["checks"]["text"]
    quality = found["quality"]
    assert (
        data["ok"]
        and quality["kl_mean"] < 1e-9
        and found["perplexity_ratio"] == pytest.approx(1, abs=1e-6)
        and quality["top1"] == 1
    )
    assert (quality["windows"], quality["tokens"], len(quality["agreement"]["blocks"])) == (7, 393, 2)
    assert "Quality on text" in (tmp_path / "page.html").read_text()
    out = cli("verify", spoil(engine, tmp_path / "spoiled"), *text, "--max-kl", 1e-6, status=1)
    assert "NOT ALLOWED: mean KL divergence" in out and "perplexity" in out and "bytes on disk" in out
    assert "NOT ALLOWED" not in cli(
        "verify", tmp_path / "spoiled", *text, "--max-kl", 10, status=1
    )  # the outputs differ all the same
    same = cli.json("verify", tmp_path / "spoiled", *text, "--max-kl", 1e-6, "--against", tmp_path / "spoiled")
    assert (
        same["ok"] and same["verification"]["checks"]["text"]["quality"]["kl_max"] < 1e-12
    )  # the mutant: against itself


@pytest.mark.repeats  # as in tests/compiler/test_finish.py, through the command line
def test_a_budget_at_compile_is_repeated_by_the_manifest(cli: Cli, prose: Path, tmp_path: Path) -> None:
    model = write_tokenizer(Path(save("llama", tmp_path / "model")))
    options = (
        "compile",
        model,
        "--pass",
        "upcycle(experts=4, top_k=2)",
        "--text",
        prose,
        "--window",
        64,
        "--tokens",
        256,
    )
    cli(*options, "-o", tmp_path / "none", "--max-perplexity-ratio", 0.5, status=1)
    assert "error[M107]" in cli.err and [p.name for p in tmp_path.iterdir()] == ["model"]
    report = cli.json(*options, "-o", tmp_path / "first", "--max-perplexity-ratio", 1.001)["report"]
    assert (quality := report["proof"]["checks"]["text"]["quality"])["kl_mean"] < 1e-6
    assert quality["exam"]["max_perplexity_ratio"] == 1.001
    again = cli.json("compile", "--from", tmp_path / "first" / "moec.json", "-o", tmp_path / "second")["report"]
    assert again["proof"] == report["proof"]
    assert (
        cli.json("verify", tmp_path / "first", "--text", prose)["verification"]["checks"]["text"]["quality"]["exam"][
            "max_perplexity_ratio"
        ]
        == 1.001
    )
    kept = prose.read_text()
    prose.write_text(kept + "No more.")
    cli("compile", "--from", tmp_path / "first" / "moec.json", "-o", tmp_path / "third", status=1)
    prose.write_text(kept)
    assert "error[M106]" in cli.err and not (tmp_path / "third").exists()


def test_text_options_are_refused_where_they_mean_nothing(
    cli: Cli, mixtral_engine: Path, prose: Path, tmp_path: Path
) -> None:
    encoder = save("bert", tmp_path / "bert")
    for arguments, code in (
        (("verify", mixtral_engine, "--max-perplexity-ratio", 1.1), "M201"),
        (("verify", mixtral_engine, "--text", prose), "M204"),  # no tokenizer
        (("compile", encoder, "-o", tmp_path / "engine", "--text", prose), "M211"),
    ):
        cli(*arguments, status=2)
        assert f"error[{code}]" in cli.err and len(cli.err.splitlines()) == 3


# ---------------------------------------------------------------------- what can be known
def test_inspect_a_model_and_an_engine(cli: Cli, mixtral: Path, mixtral_engine: Path) -> None:
    data = cli.json("inspect", mixtral)
    assert [(b["kind"], b["experts"], b["top_k"]) for b in data["blocks"]] == [("moe", 8, 2)] * 2
    assert data["active_parameters"] < data["parameters"]
    text = cli("inspect", mixtral)
    assert "softmax top-2" in text and "model.layers.0-1" in text and "0.00" not in text and "0.0 MiB" not in text
    assert cli.json("inspect", mixtral_engine)["proof"]["checks"]["experts"]["coverage"]["loads"]
    assert cli("inspect", mixtral_engine, "--markdown").startswith("# ")
    text = cli("inspect", mixtral_engine)
    assert "verified: " in text and "node_moe" not in text and "model.layers.0-1.mlp" in text
    assert "a token (" in text and " before" in text and "0.0 MiB" not in text
    cli("inspect", mixtral, "--markdown", status=2)


def test_doctor(cli: Cli) -> None:
    data = cli.json("doctor")
    assert data["targets"]["onnxruntime"]["available"] and data["packages"]["torch"]
    assert "onnxruntime" in cli("doctor")
    lacking = data["targets"]["onnxruntime"]["lacking"]
    assert all(phrase in cli("doctor") for phrase in lacking) and ("libcudnn" in str(lacking)) == (not cudnn())


def test_doctor_says_where_the_kernels_have_one_thread(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from moec.kernels.cpu import library, team

    monkeypatch.setattr(library, "why_not", lambda: "")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert "moec.accelerate on a CPU" not in cli("doctor")
    monkeypatch.setattr(team, "_of_openmp", lambda: None)
    assert "threads for moec.accelerate on a CPU: this PyTorch is not built with OpenMP" in cli("doctor")


def cudnn() -> bool:
    """Whether there is one here."""
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------- the program
def test_help_names_every_verb(cli: Cli) -> None:
    assert set(VERBS) == set(SUMMARIES)
    text = cli("--help")
    for verb in VERBS:
        assert verb in text and "--json" in cli(verb, "--help")
    assert cli() == text


def test_a_verb_that_there_is_not(cli: Cli) -> None:
    cli("complie", status=2)
    assert "did you mean compile" in cli.err


def test_precision_is_the_targets(cli: Cli, tmp_path: Path) -> None:
    cli(
        "compile",
        "nowhere",
        "-o",
        tmp_path / "e",
        "-t",
        "onnxruntime:cuda,precision=fp32",
        "--precision",
        "fp16",
        status=2,
    )
    assert "say it once" in cli.err
    cli(
        "compile", "nowhere", "-o", tmp_path / "e", "--precision", "fp16", status=2
    )  # of the target that is the default
    assert "nowhere" in cli.err and "M2" in cli.err
    half = Target.parse("onnxruntime:cuda,precision=fp16")
    assert with_precision(Target.parse("onnxruntime:cuda"), "fp16") == with_precision(half, "fp16") == half


def test_python_m_moec() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moec", "ls", "passes", "--json"], capture_output=True, text=True, check=True
    )
    assert "upcycle" in json.loads(done.stdout)["passes"] and done.stderr == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the hardware that the target names")
def test_a_required_run(cli: Cli, mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> None:
    assert cli("check", mixtral_engine, "--require-run").endswith("as it was\n")
    engine = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    manifest = json.loads((engine / "moec.json").read_text())
    manifest["settings"]["target"] = manifest["proof"]["target"] = "onnxruntime:cuda"
    (engine / "moec.json").write_text(json.dumps(manifest))
    said = "proven on the CPU, not yet run on onnxruntime:cuda"
    assert cli("check", engine).endswith("as it was\n") and said in cli("ls", tmp_path)
    (row,) = cli.json("ls", tmp_path)["engines"]
    assert (row["verdict"], row["proven_on_target"]) == (said, False)
    assert "error[M113]" in cli("check", engine, "--require-run", status=1)
    options = ("-o", tmp_path / "no", "-t", "onnxruntime:cuda", "--require-run")
    cli("compile", mixtral, *options, status=1)
    assert "error[M113]" in cli.err and said in cli.err and not (tmp_path / "no").exists()


@pytest.mark.repeats  # a whole compile and two proofs; what they say is tested above
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the hardware that the target names")
def test_a_required_run_of_a_later_proof(cli: Cli, mixtral: Path, tmp_path: Path) -> None:
    said, engine = "proven on the CPU, not yet run on onnxruntime:cuda", tmp_path / "engine"
    done = cli.json("compile", mixtral, "-o", engine, "-t", "onnxruntime:cuda")
    assert (done["verdict"], done["proven_on_target"]) == (said, False)
    found = cli.json("verify", engine, "--require-run", "--junit", tmp_path / "report.xml", status=1)
    assert not found["ok"] and found["verification"]["ok"] and found["error"]["code"] == "M113"
    assert "error[M113]" in cli.err and ElementTree.parse(tmp_path / "report.xml").getroot().attrib["failures"] == "1"
    assert cli.json("verify", engine)["verification"]["verdict"] == said
