"""Windows are read off a program's masks, and only off those that are one."""

from __future__ import annotations

import pytest
import torch

from moec.backends.onnxruntime.attention.windows import compact_windows, windows_of
from moec.program.program import Program
from moec.targets.target import Target
from tests.zoo import captured

HALF = Target.parse("onnxruntime:cuda,precision=fp16")


@pytest.mark.parametrize(("name", "windows"), [
    ("llama", [0, 0]), ("mistral", [5, 5]), ("gpt_oss", [5, 0]), ("gemma2", [5, 0]), ("qwen3_moe", [0, 0]),
    ("gpt2", [0, 0]), ("llama4", [None, 0]), ("bert", [None, None]),
])  # fmt: skip
def test_windows_of_models(name: str, windows: list[int | None]) -> None:
    assert windows_of(captured(name)) == windows


def changed(old: int, new: int, target: str) -> Program:
    """Mistral with a number of its mask changed."""
    program = captured("mistral")
    nodes = [n for n in program.graph.nodes if str(n.target) == target and n.args[1] == old]
    for node in nodes:
        node.args = (node.args[0], new)
    assert nodes
    return program


def test_another_mask_is_another_window_or_none() -> None:
    assert windows_of(changed(5, 6, "aten.sub.Tensor")) == [6, 6]
    assert windows_of(changed(5, -1, "aten.sub.Tensor")) == [None, None], "it sees later tokens only"
    program = captured("mistral")
    (padded,) = {node.args[3] for node in program.nodes(torch.ops.moec.attention.default)}
    with program.graph.inserting_after(padded):
        other = program.graph.call_function(torch.ops.aten.bitwise_not.default, (padded,))
    for node in program.nodes(torch.ops.moec.attention.default):
        node.replace_input_with(padded, other)
    assert windows_of(program) == [None, None]


def test_only_half_precision_on_cuda_asks() -> None:
    program = captured("mistral")
    assert compact_windows(program, HALF) == [5, 5]
    for text in ("onnxruntime:cuda", "onnxruntime:precision=fp16"):
        assert compact_windows(program, Target.parse(text)) == []
