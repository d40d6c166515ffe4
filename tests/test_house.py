"""House rules: who may import whom, where third-party runtimes may be named, sizes, mirrors."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.many import none

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("moec", "passes", "backends") for p in (ROOT / folder).rglob("*.py"))
NATIVE = sorted(p for end in ("h", "cpp") for p in (ROOT / "moec").rglob(f"*.{end}"))
# as a compile flows: a room imports itself and those before it
ROOMS = [
    "when_imported",
    "shown",
    "errors",
    "version",
    "progress",
    "registry",
    "startup",
    "files",
    "dialect",
    "routing",
    "kernels",
    "weights",
    "program",
    "execution",
    "workers",
    "pipeline",
    "layouts",
    "planning",
    "recognition",
    "frontend",
    "targets",
    "huggingface",
    "experts",
    "quantization",
    "backends",
    "passes",
    "text",
    "training",
    "proof",
    "report",
    "timing",
    "compiler",
    "api",
    "cli",
    "__main__",
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
    "ray": "moec/workers",
}
# files without a test of their own, and the test through which they run
THROUGH = {
    "backends/onnxruntime/options.py": "tests/targets/test_declared.py",
    "backends/tensorrt/options.py": "tests/targets/test_declared.py",
    "moec/cli/build.py": "tests/cli/test_cli.py",
    "moec/cli/console.py": "tests/cli/test_bad_input.py",
    "moec/cli/look.py": "tests/cli/test_cli.py",
    "moec/cli/prove.py": "tests/cli/test_cli.py",
    "moec/compiler/contest.py": "tests/cli/test_bench.py",
    "moec/compiler/engine_folder.py": "tests/compiler/test_prove_again.py",
    "moec/compiler/publish.py": "tests/compiler/test_compile.py",
    "moec/huggingface/inputs/image_size.py": "tests/huggingface/inputs/test_signature.py",
    "moec/huggingface/retried.py": "tests/huggingface/test_source.py",
    "moec/huggingface/operators/capturable.py": "tests/huggingface/test_source.py",
    "moec/huggingface/saving/modeling_carved.py": "tests/huggingface/saving/test_carved.py",
    "moec/huggingface/parts.py": "tests/huggingface/test_shape.py",
    "moec/huggingface/reading/returned.py": "tests/compiler/test_programs.py",
    "moec/frontend/from_exported.py": "tests/frontend/test_export.py",
    "moec/frontend/seen_routing.py": "tests/frontend/test_loops_over_experts.py",
    "moec/recognition/hand_written_experts.py": "tests/recognition/test_hand_written_mixtures.py",
    "moec/recognition/hand_written_groups.py": "tests/recognition/test_hand_written.py",
    "moec/recognition/hand_written_region.py": "tests/recognition/test_hand_written_mixtures.py",
    "moec/recognition/hand_written_rule.py": "tests/recognition/test_hand_written_mixtures.py",
    "moec/recognition/trials.py": "tests/recognition/test_hand_written_mixtures.py",
    "moec/recognition/interpret.py": "tests/recognition/test_routing_rule.py",
    "moec/execution/eager_anew.py": "tests/execution/test_anew.py",
    "moec/experts/merged_place.py": "tests/passes/test_merge.py",
    "moec/experts/merged_sources.py": "tests/passes/test_merge.py",
    "moec/huggingface/saving/loaded_again.py": "tests/compiler/test_new_model.py",
    "moec/huggingface/saving/planned.py": "tests/huggingface/saving/test_save.py",
    "moec/huggingface/origin.py": "tests/huggingface/test_source.py",
    "moec/huggingface/untouched.py": "tests/huggingface/test_source.py",
    "moec/proof/feeding.py": "tests/proof/test_cache_consistency.py",
    "moec/quantization/expert_step.py": "tests/quantization/test_sequential.py",
    "moec/version.py": "tests/cli/test_cli.py",
    "moec/kernels/cpu/structures.py": "tests/kernels/cpu/test_experts.py",
    "moec/kernels/cpu/team.py": "tests/kernels/cpu/test_pytorch.py",
    "backends/onnxruntime/backend.py": "tests/backends/test_conformance.py",
}


def module_of(path: Path) -> str:
    """The dotted name by which a source file is imported: `passes/` and `backends/` belong to `moec`."""
    parts = [p for p in path.relative_to(ROOT).with_suffix("").parts if p != "__init__"]
    return ".".join(parts if parts[0] == "moec" else ["moec", *parts])


MODULES = {module_of(p): p for p in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax of a file; nobody changes it."""
    return ast.parse(path.read_text())


@cache
def imports_of(path: Path) -> list[str]:
    """Dotted names of everything that a file imports, inside functions and for type checking too."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute, so that these rules see them"
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [n if n in MODULES else node.module for n in names]
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def violations(module: str, names: list[str]) -> list[str]:
    """What a module imports and may not."""
    own, found = room_of(module), []
    for name in names:
        top = name.split(".")[0]
        if top in RUNTIMES and not module.replace(".", "/").removeprefix("moec/").startswith(
            RUNTIMES[top].removeprefix("moec/")
        ):
            found.append(f"{module} imports {top}")
        if top != "moec" or name == "moec" or not own:
            continue
        if ROOMS.index(room_of(name)) > ROOMS.index(own):
            found.append(f"{module} imports {name}, which is above it")
        if own == "passes" and room_of(name) in ("passes", "backends"):
            found.append(f"{module} imports {name}")
    return found


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """The names of one circle of imports, none when there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def arrows(depth: int | None = None) -> dict[str, set[str]]:
    """Who imports whom: between modules, or between the packages that hold them down to a depth."""
    edges: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for name in imports_of(path):
            ends = [".".join(m.split(".")[:depth]) for m in (module, name)]
            if name in MODULES and ends[0] != ends[1] and ends[1] != "moec" != ends[0]:
                edges.setdefault(ends[0], set()).add(ends[1])
    return edges


def test_imports_run_one_way() -> None:
    none([found for module, path in MODULES.items() for found in violations(module, imports_of(path))])


@pytest.mark.parametrize("depth", [None, 2, 3, 4])
def test_no_circle_of_modules_or_rooms(depth: int | None) -> None:
    assert circle(arrows(depth)) == []


def test_a_wrong_import_is_seen() -> None:
    assert violations("moec.passes.upcycle", ["moec.backends.onnxruntime"]) != []
    assert violations("moec.passes.upcycle", ["moec.passes.quantize"]) != []
    assert violations("moec.program.program", ["moec.api"]) != []
    assert violations("moec.program.program", ["onnxruntime"]) != []
    assert violations("moec.kernels.launch", ["moec.weights.lazy"]) != []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


# who may name `moec.huggingface`: itself, the registry that lists it as a source, and the package for `accelerate`
NAMES_HUGGINGFACE = ("moec/huggingface/", "moec/registry.py", "moec/__init__.py")


def names_huggingface(path: Path) -> bool:
    """Whether a file's code names the room, in an import or in a text that could become one; docstrings may."""
    tree = tree_of(path)
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [n.body[0].value for n in documented if ast.get_docstring(n) and isinstance(n.body[0], ast.Expr)]
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n not in docstrings]
    return any("huggingface." in str(t) for t in texts) or any("moec.huggingface" in n for n in imports_of(path))


def test_models_come_through_sources_not_from_one_library() -> None:
    others = [p for p in SOURCES if not str(p.relative_to(ROOT)).startswith(NAMES_HUGGINGFACE)]
    none([str(p.relative_to(ROOT)) for p in others if names_huggingface(p)])


def test_a_file_that_names_the_library_is_seen(tmp_path: Path) -> None:
    for i, code in enumerate(("from moec.huggingface.source import x", "import_module('moec.huggingface.source')")):
        (tmp_path / f"file{i}.py").write_text(code + "\n")
        assert names_huggingface(tmp_path / f"file{i}.py")
    (tmp_path / "file.py").write_text('"""See `moec.huggingface.source`."""\n')
    assert not names_huggingface(tmp_path / "file.py")


def test_every_module_has_a_room() -> None:
    assert {room_of(m) for m in MODULES} - {""} <= set(ROOMS)
    assert len(list((ROOT / "moec").glob("*.py"))) <= 10


def test_no_room_hides_a_public_name() -> None:
    import moec

    assert set(moec.__all__) & {room_of(m) for m in MODULES} == set()  # the import of a room would set the name


def test_every_room_says_what_it_is_for() -> None:
    rooms = [p for p in SOURCES if p.name == "__init__.py"]
    assert [str(p) for p in rooms if not ast.get_docstring(tree_of(p))] == []


def test_the_wheel_holds_every_room() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted(
        {m if p.name == "__init__.py" else m.rpartition(".")[0] for m, p in MODULES.items()}
    )


def unread_in_one_sitting(path: Path) -> Iterator[str]:
    """What keeps a file from being read in one sitting."""
    lines = path.read_text().splitlines()
    if len(lines) > 300:
        yield f"{path}: {len(lines)} lines"
    if path.suffix != ".py" and max(map(len, lines)) > 120:  # ruff looks at the others
        yield f"{path}: a line of {max(map(len, lines))} columns"
    yield from (f"{path}: {line.strip()}" for line in lines if "TODO" in line or "FIXME" in line)
    if path.stem in ("utils", "common", "helpers", "base", "misc"):
        yield f"{path}: a name that says nothing"


def test_a_file_can_be_read_in_one_sitting() -> None:
    none([found for path in (*SOURCES, *NATIVE) for found in unread_in_one_sitting(path)])


def test_a_file_that_is_too_much_is_seen(tmp_path: Path) -> None:
    (tmp_path / "utils.cpp").write_text("/" * 121 + "\n" * 300 + "// TODO\n")
    assert len(list(unread_in_one_sitting(tmp_path / "utils.cpp"))) == 4


def test_tests_mirror_the_tree() -> None:
    for source in (p.relative_to(ROOT) for p in SOURCES if p.stem not in ("__init__", "__main__")):
        own = Path(*source.parts[source.parts[0] == "moec" :])
        mirror = Path("tests", own.with_name(f"test_{own.name}"))
        name = THROUGH.get(str(source), str(mirror))
        assert (ROOT / name).is_file(), f"{source} has no {name}"
        assert str(source) not in THROUGH or not (ROOT / mirror).exists(), f"{source} has a test of its own"
    assert [name for name in THROUGH if not (ROOT / name).exists()] == []


def test_public_names_have_docstrings() -> None:
    missing = []
    for path in SOURCES:
        tree = tree_of(path)
        defs = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
        registered = [n for n in defs if any("register_fake" in ast.unparse(d) for d in n.decorator_list)]
        missing += [
            f"{path.relative_to(ROOT)}:{n.name}" for n in defs if n not in registered and not ast.get_docstring(n)
        ]
    assert missing == []


@pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["compile", "m", "-o", "x", "--seed", "-1"]])
def test_help_and_wrong_settings_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys, moec, moec.cli\n"
        f"try: moec.cli.main({arguments})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0
