"""What the ONNX parser of each TensorRT takes, as data (`operators.toml`), and the check of a graph against it.

A parser says which operator it lacks, but neither which line of the model that came from nor, before the build, what
the builder behind it refuses. The table knows both, on machines without TensorRT too.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.export import source_line

TYPES = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT32: "i32",
    ir.DataType.INT64: "i64",
    ir.DataType.BOOL: "bool",
    ir.DataType.INT8: "i8",
    ir.DataType.UINT8: "u8",
    ir.DataType.INT4: "i4",
    ir.DataType.FLOAT8E4M3FN: "f8",
    ir.DataType.FLOAT4E2M1: "f4",
    ir.DataType.DOUBLE: "f64",
}


@dataclass(frozen=True)
class Rule:
    """What a parser takes of one operator.

    Attributes:
        types: of its first input, and of the others that share its type.
        same: indices of inputs that must have one dtype; the network is strongly typed.
        constant: indices of inputs that must be constants.
        most: index of a constant input -> its largest value.
        zero: index of a constant input that must be zero everywhere, where it is given.
        double: types of the first input with which a constant input may also be a `DequantizeLinear` of constants.
        attributes: name -> allowed values.
        blocks: allowed sizes of `block_size`, by the first input's type.
        outputs: how many outputs may be used; 0 for any.
    """

    types: tuple[str, ...]
    same: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()
    most: dict[int, int] = field(default_factory=dict)
    zero: tuple[int, ...] = ()
    double: tuple[str, ...] = ()
    attributes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    blocks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: int = 0


@dataclass(frozen=True)
class Table:
    """What one version takes.

    Attributes:
        name: its key. title: for people.
        opsets: oldest and newest version of the standard domain.
        rules: operator -> rule. lacking: operator -> why not, where there is something to say.
    """

    name: str
    title: str
    opsets: tuple[int, int]
    rules: dict[str, Rule]
    lacking: dict[str, str]


@dataclass(frozen=True)
class Violation:
    """One thing that a parser or its builder would refuse.

    Attributes:
        op: the operator. node: its name in the graph.
        reason: one sentence.
        source: the model's line that it came from, empty when unknown.
        fix: what to do.
    """

    op: str
    node: str
    reason: str
    source: str
    fix: str = "compile for --target onnxruntime, or change the model there"

    @property
    def where(self) -> str:
        """The node, and the line of the model."""
        return f"{self.node} ({self.source})" if self.source else self.node


@cache
def tables() -> dict[str, Table]:
    """All tables by name."""
    data = tomllib.loads((Path(__file__).parents[1] / "operators.toml").read_text(encoding="utf-8"))
    sets: dict[str, list[str]] = data["types"]
    return {name: _table(name, entry, data, sets) for name, entry in data["versions"].items()}


def _table(name: str, entry: dict[str, Any], data: dict[str, Any], sets: dict[str, list[str]]) -> Table:
    known = {op: {**raw, **entry.get("operators", {}).get(op, {})} for op, raw in data["operators"].items()}
    lacking = {**data["lacking"], **entry.get("lacking", {})}
    rules = {op: _rule(raw, sets) for op, raw in known.items() if op not in lacking}
    return Table(name, entry["title"], tuple(entry["opsets"]), rules, lacking)


def _rule(raw: dict[str, Any], sets: dict[str, list[str]]) -> Rule:
    types = tuple(t for part in raw["types"] for t in sets.get(part, [part]))
    return Rule(
        types,
        tuple(raw.get("same", ())),
        tuple(raw.get("constant", ())),
        {int(k): v for k, v in raw.get("most", {}).items()},
        tuple(raw.get("zero", ())),
        tuple(raw.get("double", ())),
        {k: tuple(v) for k, v in raw.get("attributes", {}).items()},
        {k: tuple(v) for k, v in raw.get("blocks", {}).items()},
        raw.get("outputs", 0),
    )


def table_of(edition: str, version: str = "") -> Table:
    """The table of a library's version: the newest that is not newer, or the newest of all where the version is not
    said."""
    own = {
        tuple(int(n) for n in name.removeprefix(f"{edition}-").split(".")): t
        for name, t in tables().items()
        if name.rpartition("-")[0] == edition
    }
    asked = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    fitting = [key for key in sorted(own) if not asked or key <= asked]
    return own[fitting[-1] if fitting else min(own)]


def check(model: ir.Model, table: Table) -> list[Violation]:
    """Everything that the parser or its builder would refuse, in graph order. Values must know their dtypes."""
    newest = model.opset_imports.get("", 0)
    found = (
        []
        if table.opsets[0] <= newest <= table.opsets[1]
        else [Violation("", "opset", f"it has no opset {newest}", "", "report this")]
    )
    for node in model.graph.all_nodes():
        found += [
            Violation(node.op_type, str(node.name), reason, source_line(node)) for reason in _problems(node, table)
        ]
    return found


def _problems(node: ir.Node, table: Table) -> list[str]:
    if node.domain != "":
        return [f"it has no operator {node.domain}::{node.op_type}"]
    rule = table.rules.get(node.op_type)
    if rule is None:
        return [
            f"it has no {node.op_type}{': ' + table.lacking[node.op_type] if node.op_type in table.lacking else ''}"
        ]
    unknown = [
        f"the dtype of {v.name}, which {node.op_type} reads, is not known"
        for v in node.inputs
        if v is not None and v.dtype is None
    ]
    return [*unknown, *_of_types(node, rule), *_of_constants(node, rule), *_of_attributes(node, rule)]


def _of_types(node: ir.Node, rule: Rule) -> list[str]:
    first = _type(node.inputs[0]) if node.inputs else None
    found = (
        [f"{node.op_type} takes {', '.join(rule.types)}, not {first}"]
        if first is not None and first not in rule.types
        else []
    )
    alike = node.inputs if -1 in rule.same else [node.inputs[n] for n in rule.same if n < len(node.inputs)]
    known = list(dict.fromkeys(t for v in alike if (t := _type(v)) is not None))
    return found + (
        [f"{node.op_type} has inputs of {' and '.join(known)}, and all must have one type"] if len(known) > 1 else []
    )


def _of_constants(node: ir.Node, rule: Rule) -> list[str]:
    found = []
    for n in (*rule.constant, *rule.most, *rule.zero):
        value = node.inputs[n] if n < len(node.inputs) else None
        if value is None:
            continue
        constant = value.const_value
        if constant is None and _type(node.inputs[0]) in rule.double and _dequantized(value):
            continue
        if constant is None:
            found.append(f"input {n} of {node.op_type} must be a constant, and {value.name} is computed")
        elif n in rule.most and int(constant.numpy().max()) > rule.most[n]:
            found.append(f"input {n} of {node.op_type} is at most {rule.most[n]}, not {int(constant.numpy().max())}")
        elif n in rule.zero and constant.numpy().any():
            found.append(f"input {n} of {node.op_type} must be zero")
    return list(dict.fromkeys(found))


def _dequantized(value: ir.Value) -> bool:
    """Whether a value is a `DequantizeLinear` of constants."""
    node = value.producer()
    return (
        node is not None
        and node.op_type == "DequantizeLinear"
        and all(v is None or v.const_value is not None for v in node.inputs)
    )


def _of_attributes(node: ir.Node, rule: Rule) -> list[str]:
    found = []
    for name, allowed in rule.attributes.items():
        value = node.attributes[name].value if name in node.attributes else None
        if value is not None and value not in allowed:
            found.append(f"{node.op_type} has {name} {' or '.join(map(str, allowed))}, not {value}")
    size = node.attributes.get_int("block_size", 0)
    allowed = rule.blocks.get(str(_type(node.inputs[0])), ()) if rule.blocks and node.inputs else (size,)
    if size and size not in allowed:
        sizes = "blocks of " + " or ".join(map(str, allowed)) if allowed else "no blocks"
        found.append(f"{node.op_type} of {_type(node.inputs[0])} has {sizes}, not of {size}")
    if rule.outputs and len([v for v in node.outputs if v.uses() or v.is_graph_output()]) > rule.outputs:
        found.append(f"{node.op_type} has {rule.outputs} output{'s' if rule.outputs > 1 else ''} only")
    return found


def _type(value: ir.Value | None) -> str | None:
    """A value's type as the table writes it; None where it is not known."""
    return None if value is None or value.dtype is None else TYPES.get(value.dtype, value.dtype.name.lower())
