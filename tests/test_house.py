"""House rules: who may import whom, where third-party runtimes may be named, sizes, mirrors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("moec", "passes", "backends") for p in (ROOT / folder).rglob("*.py"))
# a module may import those of its own layer and of earlier ones
LAYERS = [
    {"errors", "version", "progress", "allocation"},
    {
        "registry",
        "target",
        "weights",
        "shards",
        "dialect",
        "signature",
        "router_fit",
        "divergence",
        "quantization",
        "small_floats",
        "mixture",
        "gptq",
    },
    {"kernels"},
    {"decoder"},
    {"calibration"},
    {"program"},
    {
        "frontend",
        "functional",
        "initialization",
        "linear",
        "probe",
        "matching",
        "rewriting",
        "provenance",
        "router",
        "router_probe",
        "pipeline",
        "roles",
    },
    {"engine", "source", "module_source", "storage"},
    {"memory", "generation"},
    {"streaming", "walk"},
    {
        "trace",
        "undecided",
        "compare",
        "agreement",
        "quality",
        "consistency",
        "coverage",
        "verification",
        "bisection",
        "hooks",
        "inspection",
        "expert_scores",
        "expert_cut",
        "rehearsal",
        "report",
        "charts",
        "page",
        "hessians",
        "sequential",
        "sensitivity",
        "precision",
        "quantization_settings",
        "router_place",
        "router_calibration",
        "expert_shift",
    },
    {"benchmark", "decoder_benchmark"},
    {"layouts", "huggingface", "sources"},
    {"corpus"},
    {"examination"},
    {"backends"},
    {"staging"},
    {"driver"},
    {"again", "text"},
    {"completion", "junit"},
    {"api"},
    {"cli"},
]
RUNTIMES = {
    "onnx": "backends",
    "onnx_ir": "backends",
    "onnxscript": "backends",
    "onnxruntime": "backends",
    "tensorrt": "backends",
    "tensorrt_rtx": "backends",
    "transformers": "moec/huggingface",
    "triton": "moec/kernels",
}


def imports_of(path: Path) -> list[str]:
    """Dotted names of everything that a file imports, inside functions and for type checking too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{a.name}" if node.module == "moec" else node.module for a in node.names]
    return found


def layer(part: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if part in names)


def violations(path: Path, names: list[str]) -> list[str]:
    where = path.relative_to(ROOT)
    found = []
    for name in names:
        top = name.split(".")[0]
        if top in RUNTIMES and not str(where).startswith(RUNTIMES[top]):
            found.append(f"{where} imports {top}")
        if top != "moec" or name in ("moec", "moec.passes"):
            continue
        part = name.split(".")[1]
        if where.parts[0] == "passes" and part in ("backends", "passes", "api", "cli", "driver", "huggingface"):
            found.append(f"{where} imports {name}")
        if where.parts[0] == "backends" and part in ("passes", "api", "cli", "driver", "huggingface"):
            found.append(f"{where} imports {name}")
        own = where.parts[1].removesuffix(".py") if where.parts[0] == "moec" else None
        if (
            own
            and own not in ("__init__", "__main__")
            and part in {n for names in LAYERS for n in names}
            and layer(part) > layer(own)
        ):
            found.append(f"{where} imports {name}, which is above it")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    assert violations(path, imports_of(path)) == []


def test_a_wrong_import_is_seen() -> None:
    assert violations(ROOT / "passes/upcycle.py", ["moec.backends.onnxruntime"]) != []
    assert violations(ROOT / "moec/program/program.py", ["moec.api"]) != []
    assert violations(ROOT / "moec/program/program.py", ["onnxruntime"]) != []


def test_every_module_has_a_layer() -> None:
    known = {n for names in LAYERS for n in names} | {"__init__", "__main__"}
    assert {
        p.relative_to(ROOT / "moec").parts[0].removesuffix(".py") for p in SOURCES if p.is_relative_to(ROOT / "moec")
    } <= known


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 300
    assert not any("TODO" in line or "FIXME" in line for line in lines)
    assert path.stem not in ("utils", "common", "helpers", "base", "misc")


def test_every_source_file_is_mirrored_by_a_test() -> None:
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests").rglob("test_*.py")}
    # thin, or tested through the one command or class that uses them
    through = {
        "__init__",
        "__main__",
        "version",
        "progress",
        "settings",
        "console",
        "build",
        "look",
        "prove",
        "signature",
        "backend",
        "tensors",
        "translate",
    }
    missing = sorted(str(p.relative_to(ROOT)) for p in SOURCES if p.stem not in tests | through)
    assert missing == []


def test_public_names_have_docstrings() -> None:
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        defs = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
        registered = [n for n in defs if any("register_fake" in ast.unparse(d) for d in n.decorator_list)]
        missing += [
            f"{path.relative_to(ROOT)}:{n.name}" for n in defs if n not in registered and not ast.get_docstring(n)
        ]
    assert missing == []


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, moec, moec.cli\ntry: moec.cli.main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', "
        "'onnx', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0
