"""Linear layers and embeddings from packed bytes: each grid against `moec::dequantize`, what is stored, what is
refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.backends.onnxruntime.backend import Onnxruntime
from moec.backends.onnxruntime.export import to_onnx
from moec.backends.onnxruntime.packed.quantized import lower_quantized
from moec.backends.onnxruntime.packed.unpacking import UNPACKED
from moec.backends.onnxruntime.session.engine import MODEL_FILE
from moec.dialect import pack
from moec.frontend.export import capture
from moec.program.program import Program
from moec.targets.target import Target
from moec.weights.lazy import Weight, from_tensor
from tests.backends.onnxruntime.blocks import error
from tests.backends.onnxruntime.rounding import meant, quantize_program, rounded

LIMIT = 1e-5
VOCABULARY, HIDDEN = 160, 128  # a table too large to be folded
GRIDS = list(itertools.product((2, 4, 8), (16, 32, 64, 128), (False, True)))
IDS = torch.randint(0, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A table, layers with and without bias on rows and on a flat batch, a head; the head may be tied to the table."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, HIDDEN)
        self.a, self.b, self.c = (
            nn.Linear(HIDDEN, HIDDEN, bias=False),
            nn.Linear(HIDDEN, 96, bias=False),
            nn.Linear(HIDDEN, HIDDEN),
        )
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = torch.tanh(self.a(x)) + F.pad(self.b(x), (0, 32))
        return self.head(torch.tanh(self.c(x.flatten(0, 1))).unflatten(0, ids.shape))


def captured(tied: bool = False, module: nn.Module | None = None) -> Program:
    return capture(module or Net(tied), {"ids": torch.zeros(3, 7, dtype=torch.int64)}, {"ids": ("batch", "sequence")})


def build(program: Program, folder: Path, target: str = "onnxruntime") -> tuple[Tensor, dict[str, Any]]:
    """What the engine says of IDS, and its facts."""
    folder.mkdir(exist_ok=True)
    facts = Onnxruntime().build(program, Target.parse(target), folder)
    engine = Onnxruntime().load(folder, Target.parse(target))
    return engine(ids=IDS)[program.outputs[0]], facts


class EveryGrid(nn.Module):
    """A table and a layer for each grid; `[grids, …]` of what the layers and the tables say."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(VOCABULARY, HIDDEN) for _ in GRIDS)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in GRIDS)

    def forward(self, ids: Tensor) -> Tensor:
        rows = [table(ids) for table in self.tables]
        return torch.stack([*(layer(torch.tanh(r)) for layer, r in zip(self.layers, rows, strict=True)), *rows])


def test_every_grid(tmp_path: Path) -> None:
    program = captured(module=EveryGrid())
    (plain,) = program.run(ids=IDS).values()
    for n, grid in enumerate(GRIDS):
        assert quantize_program(program, *grid, only=f".{n}.") == 2
    got, facts = build(program, tmp_path)
    (want,) = program.run(ids=IDS).values()
    for n, grid in enumerate(GRIDS * 2):
        assert error(got[n], want[n]) < LIMIT, grid
        assert error(got[n], plain[n]) > 10 * LIMIT, "the weights were rounded"
    assert sorted((f["bits"], f["block"]) for f in facts["packed"] if f["op"] == "GatherBlockQuantized") == sorted(
        grid[:2] for grid in GRIDS
    )
    assert {(f["op"], f["bits"]) for f in facts["packed"]} == {
        *(("GatherBlockQuantized", b) for b in (2, 4, 8)),
        (UNPACKED, 2),
        (UNPACKED, 8),
        ("MatMulNBits", 4),
    }


@pytest.mark.parametrize(("where", "bits"), [("table", 2), ("a", 4)])
def test_numbers_in_another_order_are_seen(where: str, bits: int, tmp_path: Path) -> None:
    program = captured()
    quantize_program(program, bits, 16, False)
    want = program.run(ids=IDS)[program.outputs[0]]
    name = next(n for n in program.weights if n.startswith(where) and n.endswith("packed"))
    table = program.weights[name].load()
    numbers = torch.ops.moec.dequantize(
        table, torch.ones(len(table), 1), torch.zeros(len(table), 1, dtype=torch.uint8), bits=bits
    )
    program.weights[name] = from_tensor(pack(numbers.unflatten(-1, (-1, 8 // bits)).flip(-1).flatten(-2), bits), name)
    assert error(build(program, tmp_path)[0], want) > 0.01


def test_half_precision(tmp_path: Path) -> None:
    program = captured(module=Net().half())
    quantize_program(program, 4, 32, True)
    got, facts = build(program, tmp_path, "onnxruntime:cpu,precision=fp16")
    assert error(got, program.run(ids=IDS)[program.outputs[0]]) < 2e-2 and len(facts["packed"]) == 5


def test_siblings_are_one_product_and_the_bytes_are_those_that_were_meant(tmp_path: Path) -> None:
    program = captured()
    quantize_program(program, 4, 32, True)
    want = {name: program.weights[name].load() for name in program.weights}
    _, facts = build(program, tmp_path)
    graph = ir.load(tmp_path / MODEL_FILE).graph
    products = [n for n in graph if n.op_type == "MatMulNBits"]
    assert [n.attributes.get_int("N") for n in products] == [HIDDEN + 96, HIDDEN, VOCABULARY]
    joined = decoded(products[0])
    assert np.array_equal(joined, np.concatenate([weight_of(want, "a"), weight_of(want, "b")]))
    assert not np.array_equal(joined, np.concatenate([weight_of(want, "b"), weight_of(want, "a")]))
    assert np.array_equal(decoded(products[2]), weight_of(want, "head"))
    said = sum(f["bytes"] for f in facts["packed"])
    assert (
        said
        <= sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        < said + 1024
    ), "biases and sizes"


def decoded(node: ir.Node) -> np.ndarray[Any, Any]:
    """The matrix that a MatMulNBits of 4 bits with zero points stands for, read off its bytes in the file, one number
    at a time."""
    data, scale, zero = (v.const_value.numpy() for v in node.inputs[1:4] if v is not None and v.const_value is not None)
    rows, groups, block = data.shape[0], data.shape[1], node.attributes.get_int("block_size")
    found = np.zeros((rows, groups * block), np.float32)
    for r, k in itertools.product(range(rows), range(groups * block)):
        g = k // block
        q = int(data[r, g, k % block // 2]) >> (4 * (k % 2)) & 15
        found[r, k] = (q - (int(zero[r, g // 2]) >> (4 * (g % 2)) & 15)) * scale[r, g]
    return found


def weight_of(weights: dict[str, Tensor], layer: str) -> np.ndarray[Any, Any]:
    parts = [
        next(t for n, t in weights.items() if n.startswith(f"{layer}.") and n.endswith(kind))
        for kind in ("packed", "scale", "zero")
    ]
    return meant((parts[0], parts[1], parts[2]), 4).numpy()


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    program = captured(tied=True)
    assert quantize_program(program, 4, 32, False) == 4
    got, facts = build(program, tmp_path)
    assert error(got, program.run(ids=IDS)[program.outputs[0]]) < LIMIT
    assert len(facts["packed"]) == 5 and len({f["weight"] for f in facts["packed"]}) == 4
    packed_bytes = [
        v for v in ir.load(tmp_path / MODEL_FILE).graph.initializers.values() if v.dtype == ir.DataType.UINT8
    ]
    assert len(packed_bytes) == 3, "a and b are one product; c; the table"


class Odd(nn.Module):
    """Reads its matrices in ways that no kernel has: a sum of two, a product from the left, a stack."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(VOCABULARY, 64)
        self.one, self.two = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(64, 64))
        self.three = nn.Parameter(torch.randn(2, 64, 64))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return F.linear(x, self.one + self.two) + x @ self.one + (x.unsqueeze(1) @ self.three).sum(1)


@pytest.mark.parametrize(("bits", "zeros"), [(2, True), (4, False), (8, True)])
def test_other_readers_get_the_formula(bits: int, zeros: bool, tmp_path: Path) -> None:
    program = captured(module=Odd())
    quantize_program(program, bits, 32, zeros)
    got, facts = build(program, tmp_path)
    assert error(got, program.run(ids=IDS)[program.outputs[0]]) < LIMIT
    assert {f["op"] for f in facts["packed"]} == {"GatherBlockQuantized", "computed from the packed weight"}


@pytest.mark.parametrize(("block", "why"), [(8, "16"), (24, "16"), (48, "blocks of 48"), (512, "blocks of 512")])
def test_blocks_that_no_kernel_reads_are_refused(block: int, why: str) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(block * 2, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    program = capture(Wide(), {"x": torch.zeros(3, block * 2)}, {"x": ("batch", None)})
    quantize_program(program, 4, block, False)
    (refusal,) = Onnxruntime().supports(program, Target.parse("onnxruntime"))
    assert why in f"{refusal.reason}{refusal.fix}" and "group=16|32" in refusal.fix
    assert Onnxruntime().supports(captured(), Target.parse("onnxruntime")) == []


def test_accuracy_is_an_option(tmp_path: Path) -> None:
    backend, program = Onnxruntime(), captured()
    inexact, wrong = Target.parse("onnxruntime:accuracy=int8"), Target.parse("onnxruntime:accuracy=int7")
    assert backend.options(inexact) == [] and "did you mean int8?" in backend.options(wrong)[0].fix
    assert backend.deviation(program, inexact) is None, "nothing is packed"
    quantize_program(program, 8, 32, False)
    allowed = backend.deviation(program, inexact)
    assert allowed is not None and backend.deviation(program, Target.parse("onnxruntime")) is None
    want = program.run(ids=IDS)[program.outputs[0]]
    near, exact = build(program, tmp_path / "near", str(inexact))[0], build(program, tmp_path / "exact")[0]
    assert error(exact, want) < LIMIT < 10 * LIMIT < error(near, want) < allowed


def test_nothing_is_read_while_a_graph_is_lowered() -> None:
    program = captured()
    quantize_program(program, 4, 32, True)

    def refuse(start: int, stop: int) -> Tensor:
        raise AssertionError("a weight was read")

    for name, w in program.weights.items():
        program.weights[name] = Weight(w.shape, w.dtype, w.origin, refuse)
    model = to_onnx(program)
    assert len(lower_quantized(model)) == 5 and not any(n.domain == "moec" for n in model.graph)


def test_rounding_of_these_tests_is_near() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    errors = [float((meant(rounded(weight, bits, 16, True), bits) - weight).abs().max()) for bits in (8, 4, 2)]
    assert errors[0] < 0.02 < errors[1] < 0.3 < errors[2] < 2


@pytest.mark.parametrize(("bits", "kernel"), [(4, "QMoE"), (8, UNPACKED)])
def test_a_whole_decoder_equals_its_program(bits: int, kernel: str, mixtral: Path, tmp_path: Path) -> None:
    """Through the command's own way: the driver compares the engine with the quantized program, too."""
    import moec

    report = moec.compile(
        str(mixtral),
        out=tmp_path / "engine",
        pipeline=f"quantize(bits={bits}, group=16, embeddings={bits})",
        tolerance=100.0,
    )  # of rounding: untrained
    assert [b["kernel"] for b in report.facts["blocks"]] == [kernel] * 2 and {
        b["bits"] for b in report.facts["blocks"]
    } == {str(bits)}
    assert {f["op"] for f in report.facts["packed"]} == {
        "GatherBlockQuantized",
        UNPACKED,
        *(["MatMulNBits"] if bits == 4 else []),
    }, "the head has 8 bits"
    assert len(report.facts["packed"]) == 2 * 4 + 2
