"""What one token's experts cost on CUDA, on the stand-in for its libraries: where nodes go, what is launched and
copied. Of numbers it says nothing: those are tested on the CPU, of the same graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.writing import write_model
from moec.dialect import Activation, Routing
from tests.backends.onnxruntime.blocks import Experts, lowered, moe_model
from tests.backends.onnxruntime.experts.test_chosen import DEEPSEEK, biased
from tests.backends.onnxruntime.rounding import quantize_model
from tests.cuda_stand_in.engines import captured, lower
from tests.cuda_stand_in.observation import Observation
from tests.cuda_stand_in.observe import Job, observe_all

# shapes are computed on the host, which waits for nothing thereby
SHAPES = {"Squeeze", "Concat", "Reshape", "Add", "Sub", "Mul", "Div", "Min", "Max", "Clip", "Neg", "Cast", "Unsqueeze"}
# what reads data there, or takes cuDNN, which is not here: then there is an error
HOST = {"If", "Loop", "NonZero", "ReduceMax"}


@dataclass(frozen=True)
class Block:
    """A block of eight experts, and how many kernels it takes at most: those of the operator are five to nine.

    Attributes:
        copies: from device to device, at most: slices, of integers or of one number a token; a reshape that gives the
            graph's own output is one too, which it is not in a model.
    """

    launches: int
    copies: int = 0
    dtype: torch.dtype = torch.float16
    rule: Routing = field(default_factory=lambda: Routing(2))
    activation: Activation = field(default_factory=Activation)
    bits: int = 0
    bias: bool = False

    def model(self) -> ir.Model:
        e = Experts(experts=8, hidden=64, inner=64, activation=self.activation, dtype=self.dtype)
        model, _ = biased(e, 2, self.rule, True) if self.bias else (moe_model(e, 2, self.rule), None)
        if self.bits:
            quantize_model(model, ["w_in", "w_out"], self.bits, 32, False)
        return lowered(model, "latency", "cuda")[0]


GELU, GROUPED = Activation("gelu", gated=False), "grouped"
BLOCKS = {
    "softmax": Block(8),
    "softmax int4": Block(8, bits=4),
    "softmax of all int4": Block(14, copies=1, bits=4, rule=Routing(2, combine="scores")),
    "sigmoid, bias, groups": Block(28, copies=2, rule=DEEPSEEK, bias=True),
    "int4 in float32": Block(20, copies=3, dtype=torch.float32, bits=4),
    "gelu in float32": Block(20, copies=3, dtype=torch.float32, activation=GELU),
    "gelu int4 in float32": Block(20, copies=3, dtype=torch.float32, activation=GELU, bits=4),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Observation]:
    model, _ = lowered(moe_model(Experts(experts=8, activation=GELU), 2, Routing(2)), "throughput", "cuda")
    models = {name: block.model() for name, block in BLOCKS.items()} | {GROUPED: model}
    jobs = []
    for name, model in models.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        write_model(model, folder / "model.onnx", None)
        jobs.append(Job(str(folder), tokens=1))
    return dict(zip(models, observe_all(jobs), strict=True))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_stays_on_the_device(name: str, seen: dict[str, Observation]) -> None:
    found, block = seen[name], BLOCKS[name]
    assert not found.error and not found.refused
    assert set(found.on_cpu) <= SHAPES and not HOST & {*found.on_cpu, *found.on_cuda} and found.memcpy_nodes == 0
    call = found.prompt
    to_device, back, within = (call.copied(*ends) for ends in (("host", "device"), ("device", "host"), ("device",) * 2))
    assert len(to_device) == len(back) == 1, "the tokens and what becomes of them, in these tests' own runner"
    assert call.launches <= block.launches and len(within) <= block.copies, (call.launches, call.names(), within)


def test_counts_that_go_to_the_host_are_seen(seen: dict[str, Observation]) -> None:
    assert "NonZero" in seen[GROUPED].on_cuda and (seen[GROUPED].memcpy_nodes or seen[GROUPED].error)


@pytest.mark.repeats
@pytest.mark.parametrize(
    ("name", "form", "most"),
    [
        ("mixtral", "fp16", 18),
        ("qwen3_moe", "fp16", 20),
        ("qwen3_moe", "int4", 19),
        ("olmoe", "int4", 24),
        ("llama", "fp16", 14),
    ],
)
def test_a_layer_of_whole_models(name: str, form: str, most: int, tmp_path: Path) -> None:
    jobs = []
    for layers in (2, 3):
        program = captured(name, torch.float16, layers)
        jobs.append(Job(str(tmp_path / str(layers)), lower(program, form, tmp_path / str(layers))))
    fewer, more = observe_all(jobs)
    assert not fewer.error and not more.error
    assert more.memcpy_nodes == fewer.memcpy_nodes and "If" not in more.on_cuda and "If" not in more.on_cpu
    for ends in (("host", "device"), ("device", "host"), ("device", "device")):
        assert len(more.step.copied(*ends)) == len(fewer.step.copied(*ends)), "a layer copies nothing"
    assert more.step.launches - fewer.step.launches <= most
