"""Dense FFNs are found by structure, described right, and told from what only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.frontend.export import capture
from moec.program.program import Program
from moec.recognition.ffn import Ffn, find_ffns
from moec.weights.lazy import Weight
from tests import zoo

H, I = 12, 20  # noqa: E741  # hidden, intermediate


class Block(nn.Module):
    """Two or three matrices and a function of them, between a norm and a residual."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norm, self.function = nn.LayerNorm(H), function
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(*s, generator=generator)) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(self.norm(x), *self.weights)


def captured(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> tuple[Block, Program]:
    block = Block(function, *shapes)
    return block, capture(block, {"x": torch.randn(3, 5, H)}, {"x": ("batch", "sequence", None)})


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], -1)


def packed(x: Tensor, w: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, w).chunk(2, dim=-1)
    return F.linear(up * F.silu(gate), down)


def packed_up_first(x: Tensor, w: Tensor, bias: Tensor, down: Tensor) -> Tensor:
    up, gate = torch.split(F.linear(x, w, bias), I, dim=-1)
    return F.linear(F.gelu(gate) * up, down)


def packed_slices(x: Tensor, w: Tensor, down: Tensor) -> Tensor:
    h = F.linear(x, w)
    return F.linear(F.relu(h[..., :I]) * h[:, :, I:], down)


def bert_gelu(h: Tensor) -> Tensor:
    return h * 0.5 * (1.0 + torch.erf(h / 2**0.5))


def bloom_gelu(h: Tensor) -> Tensor:
    return h * 0.5 * (1.0 + torch.tanh(0.79788456 * h * (1 + 0.044715 * h * h)))


def flattened(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x.reshape(-1, H), a)), b).view(x.shape)


FOUND: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], str, bool]] = {
    "swiglu": (
        lambda x, g, u, d: F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d),
        [(I, H), (I, H), (H, I)],
        "silu",
        True,
    ),
    "up first": (
        lambda x, u, g, d: F.linear(F.linear(x, u) * F.silu(F.linear(x, g)), d),
        [(I, H), (I, H), (H, I)],
        "silu",
        True,
    ),
    "bilinear": (
        lambda x, g, u, d: F.linear(F.linear(x, g) * F.linear(x, u), d),
        [(I, H), (I, H), (H, I)],
        "identity",
        True,
    ),
    "bias on one half": (
        lambda x, g, b, u, d: F.linear(F.gelu(F.linear(x, g, b)) * F.linear(x, u), d),
        [(I, H), (I,), (I, H), (H, I)],
        "gelu",
        True,
    ),
    "packed": (packed, [(2 * I, H), (H, I)], "silu", True),
    "packed, up first": (packed_up_first, [(2 * I, H), (2 * I,), (H, I)], "gelu", True),
    "packed, slices": (packed_slices, [(2 * I, H), (H, I)], "relu", True),
    "glu": (lambda x, w, d: F.linear(F.glu(F.linear(x, w)), d), [(2 * I, H), (H, I)], "sigmoid", True),
    "relu2": (lambda x, a, b: F.linear(F.relu(F.linear(x, a)) ** 2, b), [(I, H), (H, I)], "relu2", False),
    "biases": (
        lambda x, a, b, c, d: F.linear(bert_gelu(F.linear(x, a, b)), c, d),
        [(I, H), (I,), (H, I), (H,)],
        "gelu",
        False,
    ),
    "tanh gelu by hand": (
        lambda x, a, b: F.linear(bloom_gelu(F.linear(x, a)), b),
        [(I, H), (H, I)],
        "gelu_tanh",
        False,
    ),
    "quick-gelu": (
        lambda x, a, b: F.linear((h := F.linear(x, a)) * torch.sigmoid(1.702 * h), b),
        [(I, H), (H, I)],
        "silu",
        False,
    ),
    "Conv1D": (
        lambda x, a, b, c, d: conv1d(F.gelu(conv1d(x, a, b)), c, d),
        [(H, I), (I,), (I, H), (H,)],
        "gelu",
        False,
    ),
    "matmul": (lambda x, a, b: torch.matmul(F.relu(torch.matmul(x, a.t())), b), [(I, H), (I, H)], "relu", False),
    "bias apart": (lambda x, a, b, c, d: F.relu(x @ a.mT + b) @ c.mT + d, [(I, H), (I,), (H, I), (H,)], "relu", False),
    "flattened": (flattened, [(I, H), (H, I)], "relu", False),
    "dropout": (
        lambda x, a, b: F.linear(F.dropout(F.relu(F.linear(x, a)), 0.5, False), b),
        [(I, H), (H, I)],
        "relu",
        False,
    ),
    "casts": (
        lambda x, a, b: F.linear(F.relu(F.linear(x, a).double()).to(x.dtype), b),
        [(I, H), (H, I)],
        "relu",
        False,
    ),
}


def load(weight: Weight | None) -> Tensor | None:
    return None if weight is None else weight.load()


def run_ffn(ffn: Ffn, x: Tensor) -> Tensor:
    """The FFN as its description says it."""
    return F.linear(ffn.activation(F.linear(x, ffn.w_in.load(), load(ffn.b_in))), ffn.w_out.load(), load(ffn.b_out))


@pytest.mark.parametrize("name", FOUND)
def test_found_and_described_right(name: str) -> None:
    function, shapes, activation, gated = FOUND[name]
    block, program = captured(function, *shapes)
    (ffn,), misses = find_ffns(program)
    assert misses == [] and (ffn.hidden, ffn.intermediate) == (H, I)
    assert (ffn.activation.name, ffn.activation.gated) == (activation, gated)
    assert [str(d) for d in ffn.x.meta["val"].shape] == [str(d) for d in ffn.output.meta["val"].shape]
    x = torch.randn(4, 7, H)
    with torch.no_grad():
        expected = block.function(x, *block.weights)
    torch.testing.assert_close(run_ffn(ffn, x), expected)
    assert not torch.allclose(run_ffn(ffn, x * 1.01), expected)
    assert all(part.shape == (I, H) for part, _ in ffn.parts()) and len(ffn.parts()) == 1 + gated


def attention(x: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> Tensor:
    return F.linear(F.scaled_dot_product_attention(F.linear(x, q), F.linear(x, k), F.linear(x, v)), o)


NOT_FFNS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "attention": (attention, [(H, H)] * 4),
    "two products in a row": (lambda x, a, b: F.linear(F.linear(x, a), b), [(I, H), (H, I)]),
    "another width at the end": (
        lambda x, a, b: F.linear(F.relu(F.linear(x, a)), b).mean(-1, True),
        [(I, H), (H + 2, I)],
    ),
    "pooler": (lambda x, a: torch.tanh(F.linear(x, a)), [(H, H)]),
    "gate of something else": (lambda x, a, b: F.linear(F.silu(F.linear(x, a)) * x, b), [(H, H), (H, H)]),
}


@pytest.mark.parametrize("name", NOT_FFNS)
def test_other_structures_are_left_alone(name: str) -> None:
    _, program = captured(NOT_FFNS[name][0], *NOT_FFNS[name][1])
    assert find_ffns(program) == ([], [])


MISSES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], str]] = {
    "nearly silu": (
        lambda x, a, b: F.linear(F.silu(F.linear(x, a)) * 1.001, b),
        [(I, H), (H, I)],
        "activation is none of",
    ),
    "nearly relu2": (
        lambda x, a, b: F.linear(F.relu(F.linear(x, a)) ** 2.001, b),
        [(I, H), (H, I)],
        "activation is none of",
    ),
    "a norm between": (
        lambda x, a, b: F.linear(F.layer_norm(F.relu(F.linear(x, a)), (I,)), b),
        [(I, H), (H, I)],
        "layer_norm",
    ),
    "a learned slope": (
        lambda x, a, s, b: F.linear(F.relu(F.linear(x, a)) * s, b),
        [(I, H), (I,), (H, I)],
        "stands between",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_near_match_says_why(name: str) -> None:
    function, shapes, reason = MISSES[name]
    _, program = captured(function, *shapes)
    found, misses = find_ffns(program)
    assert found == [] and len(misses) == 1 and reason in misses[0].reason


def test_ffns_in_a_row_do_not_overlap() -> None:
    chain = lambda x, a, b, c: F.linear(F.relu(F.linear(F.relu(F.linear(x, a)), b)), c)  # noqa: E731
    _, program = captured(chain, (H, H), (H, H), (H, H))
    assert len(find_ffns(program)[0]) == 1


@cache
def model_program(name: str) -> Program:
    return zoo.captured(name)


ACTIVATIONS = {"gemma2": "gelu_tanh", "nemotron": "relu2", "gpt2": "gelu_tanh", "bert": "gelu", "vit": "gelu"}


@pytest.mark.parametrize("name", zoo.dense_configs())
def test_every_dense_model_has_two(name: str) -> None:
    found, misses = find_ffns(model_program(name))
    assert misses == [] and len(found) == 2
    for layer, ffn in enumerate(found):
        assert ffn.activation.name == ACTIVATIONS.get(name, "silu")
        assert (ffn.hidden, ffn.intermediate) == (32, 48) and str(layer) in ffn.path.split(".")
