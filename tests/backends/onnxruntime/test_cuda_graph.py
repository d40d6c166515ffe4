"""Engines for CUDA, on the stand-in for its libraries: where their nodes run, what a prompt and a step launch and copy.

The real CUDA provider decides all of this; numbers are proven on the CPU. `benchmarks/cuda_graph.py` prints the figures
that are bounded here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_stand_in.build import library
from tests.cuda_stand_in.engines import FORMS, captured, lower
from tests.cuda_stand_in.observation import Observation
from tests.cuda_stand_in.observe import Job, observe_all

LAYERS = 2
# what may stay on the CPU, where shapes are: a few int64 of which nothing large is made
ON_CPU = {
    "Shape": "reads a shape, no data",
    "Gather": "takes one dimension out of a shape",
    "Slice": "takes some dimensions out of a shape",
    "Squeeze": "a dimension as a scalar, for Range",
    "Unsqueeze": "a dimension as a vector, for Concat",
    "Concat": "puts a shape together, for Reshape and Expand",
    "Reshape": "a scalar that the exporter had reshaped",
    "Cast": "the type of a length: GroupQueryAttention takes int32 on the host",
    "Add": "past length + new length",
    "Sub": "total length - new length",
    "Mul": "rows = batch * sequence",
    "Neg": "the start of the last rows, counted from the end",
    "Max": "a length that is not below zero",
}
MEMCPY_NODES = 0  # with one the provider refuses to capture a CUDA graph
AIM = 14  # launches a layer in a step
LAUNCHES_BESIDE = 25  # the mask, where tokens stand, the rotary's angles, embedding, norm and head
# today's, bounds to lower with every fusion; on SM 9.0 ten of them, nine with packed weights, are inside of the
# provider's own GroupQueryAttention and MoE, and the zoo's olmoe asks three experts, which takes two more in MoE
LAUNCHES_A_LAYER = {
    "* fp32": 21,
    "gpt_oss *": 18,  # one of it is beside: its angles are scaled
    "qwen3_moe int4": 15,
    "qwen3_moe *": 16,
    "mixtral fp16": 15,
    "olmoe *": 21,
    "llama *": 12,
    "deepseek_v3 *": 58,
}
TO_DEVICE = 2  # ids and mask
ON_DEVICE = 3  # of mask, ids and the last row: none a layer
TO_HOST = 1  # the logits
FUSED = re.compile(r"flash|kernel_mha|xqa", re.IGNORECASE)  # flash attention's and XQA's kernels
NO_FUSED_ATTENTION = {
    "deepseek_v3": "keys and values have heads of different sizes",
    "bert": "MatMul and Softmax: the fusion for encoders would need a model of theirs",
}

ALWAYS = ["qwen3_moe fp16", "qwen3_moe int4", "gpt_oss fp16", "llama fp16"]
REPEATS = ["qwen3_moe fp32", "mixtral fp16", "olmoe int8", "deepseek_v3 fp16", "bert fp16"]
ALL = [*ALWAYS, *REPEATS]
DECODERS = [case for case in ALL if not case.startswith("bert")]
PARTS = {
    "qwen3_moe *": "norms of heads are in the attention's kernel, which takes no packed product then: it is cut",
    "mixtral *": "nothing but the two operators, four products and two norms: MoE has seven kernels on SM 9.0",
    "gpt_oss *": "two biases are sums of their own, of the packed product and of the router",
    "olmoe *": "norms over all heads, which no operator has, and a router's softmax beside QMoE",
    "deepseek_v3 *": "attention in parts and a router of seventeen kernels",
}
GROWING = "its cache is no buffer: each layer's past is copied into its present"
# check -> cases that fail today, and why; who mends one takes it out
KNOWN: dict[str, dict[str, str]] = {
    "aim": PARTS,
    "copies": {"* fp32": GROWING, "deepseek_v3 *": GROWING},
}


def cases(check: str, those: list[str]) -> list[Any]:
    """All cases of a check: some always, the others where repeats are asked for; those known to fail have to fail."""
    found = []
    for case in those:
        why = next((why for pattern, why in KNOWN.get(check, {}).items() if fnmatch(case, pattern)), "")
        marks = [] if case in ALWAYS else [pytest.mark.repeats]
        found.append(pytest.param(case, marks=[*marks, *([pytest.mark.xfail(strict=True, reason=why)] if why else [])]))
    return found


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Observation]:
    """A case on the stand-in, with 16 tokens or without any; what shares a model shares a capture and a process."""
    library()
    seen: dict[tuple[str, int], Observation] = {}

    def find(case: str, tokens: int = 16) -> Observation:
        if (case, tokens) not in seen:
            name = case.split()[0]
            wanted = [c for c in ALL if c.split()[0] == name and (c in ALWAYS) == (case in ALWAYS)]
            seen.update(observed(name, wanted, tmp_path_factory.mktemp(name)))
        return seen[case, tokens]

    return find


def observed(name: str, wanted: list[str], folder: Path) -> dict[tuple[str, int], Observation]:
    jobs = {}
    for dtype in {FORMS[case.split()[1]].dtype for case in wanted}:
        program = captured(name, dtype, LAYERS)
        for case in (c for c in wanted if FORMS[c.split()[1]].dtype == dtype):
            target = lower(program, case.split()[1], folder / case)
            jobs[case, 16], jobs[case, 0] = (Job(str(folder / case), target, tokens=n) for n in (16, 0))
    return dict(zip(jobs, observe_all(list(jobs.values())), strict=True))


@pytest.mark.parametrize("case", cases("refused", ALL))
def test_nothing_is_refused(case: str, look: Callable[..., Observation]) -> None:
    seen = look(case)
    assert seen.error == ""
    assert seen.refused == []
    assert seen.on_cuda.total() > 10


@pytest.mark.parametrize("case", cases("no tokens", ALL))
def test_no_tokens_launch_nothing_empty(case: str, look: Callable[..., Observation]) -> None:
    seen = look(case, 0)
    assert seen.refused == []
    assert seen.error == "" or ("error[M211]" in seen.error and case not in DECODERS)  # an encoder takes at least one


@pytest.mark.parametrize("case", cases("on cpu", ALL))
def test_the_cpu_only_computes_shapes(case: str, look: Callable[..., Observation]) -> None:
    seen = look(case)
    assert set(seen.on_cpu) - set(ON_CPU) == set()
    assert set(seen.on_cuda) - set(ON_CPU) != set(), "there are other nodes"


@pytest.mark.parametrize("case", cases("memcpy", ALL))
def test_no_node_copies_between_cpu_and_device(case: str, look: Callable[..., Observation]) -> None:
    assert look(case).memcpy_nodes <= MEMCPY_NODES


@pytest.mark.parametrize("case", cases("launches", DECODERS))
def test_a_step_launches_no_more_than_today(case: str, look: Callable[..., Observation]) -> None:
    a_layer = next(bound for pattern, bound in LAUNCHES_A_LAYER.items() if fnmatch(case, pattern))
    assert 0 < look(case).step.launches <= LAUNCHES_BESIDE + a_layer * LAYERS


@pytest.mark.parametrize("case", cases("aim", DECODERS))
def test_a_layer_launches_what_is_aimed_at(case: str, look: Callable[..., Observation]) -> None:
    assert 0 < look(case).step.launches <= LAUNCHES_BESIDE + AIM * LAYERS


@pytest.mark.parametrize("case", cases("copies", DECODERS))
def test_a_step_copies_nothing_in_its_layers(case: str, look: Callable[..., Observation]) -> None:
    step = look(case).step
    assert 0 < len(step.copied("host", "device")) <= TO_DEVICE
    assert len(step.copied("device", "device")) <= ON_DEVICE
    assert len(step.copied("device", "host")) <= TO_HOST


@pytest.mark.parametrize("case", cases("tf32", ALL))
def test_float32_is_multiplied_as_float32(case: str, look: Callable[..., Observation]) -> None:
    seen = look(case)
    assert seen.prompt.products != []
    assert [p for part in seen.parts.values() for p in part.tf32] == []


OF_ROUTERS = {"olmoe": {"softmax_warp_forward": LAYERS}}  # its scores are a softmax beside the operator
HALF = [case for case in DECODERS if case.split()[0] not in NO_FUSED_ATTENTION and "fp32" not in case]


@pytest.mark.parametrize("case", cases("attention", HALF))
def test_attention_is_one_of_the_fast_kernels_in_half_precision(case: str, look: Callable[..., Observation]) -> None:
    seen = look(case)
    for part in (seen.prompt, seen.step):
        slow = Counter({name: n for name, n in part.attention.items() if not FUSED.search(name)})
        assert slow - Counter(OF_ROUTERS.get(case.split()[0])) == Counter()
        assert (part.attention - slow).total() >= LAYERS
