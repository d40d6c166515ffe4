"""Read a `.pt2` file of torch.export without running anything that it says.

`torch.export.load` unpickles parts of an archive, evaluates its sizes as Python, follows names of operators through
`torch`, and loads compiled libraries. Here the archive is read first, by the same reader: what only programs of tensors
and operators hold is let through.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import operator
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError, reason_of
from moec.files.nearby import is_model, nearby
from moec.files.regular import open_regular

_RECORDS = re.compile(
    r"models/[\w.-]+\.json|data/weights/(weight_\d+|[\w.-]+_config\.json)|data/constants/(tensor_\d+|[\w.-]+_config\.json)"
    r"|data/sample_inputs/[\w.-]+\.pt|archive_format|archive_version|version|byteorder|\.data/\w+|extra/.*"
)
_OPERATOR = re.compile(r"torch\.ops\.(?P<space>\w+)\.(?P<name>\w+)(\.\w+)?")
_SIZES = re.compile(  # of integers and their relations; what else `operator` has may call and look up
    r"(_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|le|ge|lt|gt|and_|or_|not_|lshift|rshift)"
    r"|math\.\w+|torch\.(sym_\w+|_sym_\w+))"
)
_FORBIDDEN = ("from_file", "load_library", "import_module")  # these make or open files
_SYMPY = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor", "ceiling"),
    *("Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "Not", "Piecewise", "ExprCondPair", "Tuple"),
    *("Equality", "Unequality", "GreaterThan", "StrictGreaterThan", "LessThan", "StrictLessThan"),
}
_POWERS = ("Pow", "PowByNatural", "FloatPow", "LShift", "RShift")
_MOST = 64  # of an exponent: SymPy computes powers of numbers at once, and digits take memory
_PURE = (ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.Load, ast.UnaryOp, ast.BinOp, ast.Compare,
         ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)  # fmt: skip


def load_exported(path: Path) -> torch.export.ExportedProgram:
    """The program in a `.pt2` file.

    Raises:
        MoecError: M204 when there is no such file or it is none; M209 when it holds more than tensors and operators.
    """
    try:
        with open_regular(path) as file:
            _check(file, path)
            file.seek(0)
            with _weights_only(), _quiet():
                return torch.export.load(file)  # type: ignore[arg-type]
    except MoecError:
        raise
    except Exception as error:  # each part of an archive has exceptions of its own
        what, fix = f"not a readable .pt2: {reason_of(error)}", "write it with torch.export.save"
        if isinstance(error, FileNotFoundError):
            what, fix = "there is no such file", nearby(path, fix, is_model)
        raise MoecError("M204", what, str(path), fix) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """`torch.load` reads tensors and plain containers, whatever it is asked for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own traceback of what is raised anyway."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check(file: Any, path: Path) -> None:
    """Raise M209 or M204 unless every part of an archive is one that holds tensors, or a graph of operators."""
    size_bytes = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size_bytes:
        raise ValueError("its parts are packed, or larger than the file")
    if any(e.filename in ("version", "serialized_exported_program.json") for e in entries):
        raise ValueError("it has the form of PyTorch 2.7 and older; export the model again")
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    names = reader.get_all_records()
    for name in names:
        if _RECORDS.fullmatch(name) is None:
            raise _refusal(f"the part {name}, which is no tensor and no graph", path)
    for name in names:
        if name.endswith("_config.json"):
            _check_tensors(json.loads(reader.get_record(name)), name.rpartition("/")[0], reader, path)
        elif name.startswith("models/"):
            _check_graph(reader.get_record(name).decode(), path)


def _check_tensors(config: Any, folder: str, reader: Any, path: Path) -> None:
    """Raise M209 for a tensor that is stored as a pickle, M204 for one that claims values that the file has not."""
    for name, entry in config["config"].items():
        if entry["use_pickle"] or re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]) is None:
            raise _refusal(f"{name!r} is stored as a pickle", path)
        stored = reader.get_record_size(f"{folder}/{entry['path_name']}")
        meta = entry["tensor_meta"]
        if stored == 0 and meta["device"]["type"] != "meta" and 0 not in [size["as_int"] for size in meta["sizes"]]:
            raise ValueError(f"{name!r} has no values")


def _check_graph(text: str, path: Path) -> None:
    """Raise M209 for an operator that is none, and for a size that is more than arithmetic."""
    if "default_factory" in text:  # of a defaultdict among the inputs: its module would be imported
        raise _refusal("an input that names a function", path)
    for key, value in _entries(json.loads(text)):
        if key == "target" and isinstance(value, str) and not is_operator(value):
            raise _refusal(f"the operator {value!r}", path)
        if key == "expr_str" and not _is_arithmetic(str(value)):
            raise _refusal(f"the size {value!r}", path)


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    """Every entry of nested plain data."""
    waiting = [data]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def is_operator(target: str) -> bool:
    """Whether a name is that of an operator, or of arithmetic on sizes: nothing that opens files or runs code."""
    found = _OPERATOR.fullmatch(target)
    if found is None:
        return _SIZES.fullmatch(target) is not None
    return not any(part in _FORBIDDEN or part.startswith("__init") for part in (found["space"], found["name"]))


def operator_of(target: str) -> Any:
    """The operator of such a name. Raises ValueError for another name, AttributeError where there is none."""
    if not is_operator(target):
        raise ValueError(f"{target} is no operator")
    first, *rest = target.split(".")
    return reduce(getattr, rest, {"torch": torch, "math": math, "_operator": operator}[first])


def _is_arithmetic(text: str) -> bool:
    """Whether evaluating a text can only compute numbers: functions of plain names, numbers, and names of symbols."""
    if len(text) > 10_000:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _PURE) for node in nodes) and all(map(_is_plain, nodes)) and _is_small(nodes)


def _is_small(nodes: list[ast.AST]) -> bool:
    """Whether no power is of a power, or has a large exponent."""
    if any(isinstance(node, ast.Pow | ast.LShift) for node in nodes):
        return False
    powers = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in _POWERS]
    inside = [part for power in powers for argument in power.args for part in ast.walk(argument)]
    exponents = [part for power in powers for argument in power.args[1:] for part in ast.walk(argument)]
    numbers = [
        part.value for part in exponents if isinstance(part, ast.Constant) and isinstance(part.value, int | float)
    ]
    return not any(power in inside for power in powers) and all(abs(number) <= _MOST for number in numbers)


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _functions()
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or re.fullmatch(r"\w{1,64}", node.value) is not None
    return not isinstance(node, ast.Name) or not node.id.startswith("_")


def _functions() -> set[str]:
    """The functions that sizes are written with: torch's own, and some of SymPy's."""
    import sympy
    import torch.utils._sympy.functions as theirs

    own = {name for name, value in vars(theirs).items() if isinstance(value, type) and issubclass(value, sympy.Basic)}
    return own | _SYMPY


def _refusal(what: str, path: Path) -> MoecError:
    fix = "export the model again, with tensors as its only weights and constants: torch.export.save(program, FILE)"
    return MoecError("M209", f"reading the file would run what it says: it holds {what}", str(path), fix)
