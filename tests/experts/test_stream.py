"""Where a network joins the residual stream, of blocks of several kinds, and what it lacks of the untouched one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import moec
from moec.execution.lockstep import Lockstep, joined
from moec.experts.stream import Stream, UntouchedStream, stream_of, without_network
from moec.program.program import Program
from moec.recognition.ffn import Ffn, find_ffns
from moec.weights.lazy import from_tensor
from tests import zoo

ROWS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Two blocks: a layer that stands for attention, and a network behind it or beside it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(8)
        self.mixes, self.ups, self.downs = (
            nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in ((8, 8), (8, 16), (16, 8))
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for mix, up, down in zip(self.mixes, self.ups, self.downs, strict=True):
            if self.kind == "before its neighbour":
                x = x + (down(torch.relu(up(x))) + torch.tanh(mix(x)))
                continue
            mixed = torch.tanh(mix(x))
            if self.kind != "beside":
                x = x + mixed
            said = down(torch.relu(up(x)))
            if self.kind == "behind, with a norm":
                said = self.norm(said)
            x = mixed + said + x if self.kind == "beside" else x + (said * 0.5 if self.kind == "scaled" else said)
        return {"y": self.norm(x)}


def of(kind: str) -> tuple[Program, list[Ffn]]:
    torch.manual_seed(0)
    program = moec.capture(Block(kind).eval(), {"x": ROWS}, {"x": ("batch", "sequence", None)})
    return program, find_ffns(program)[0]


def first(ffn: Ffn) -> torch.fx.Node:
    return next(n for n in ffn.output.graph.nodes if n in ffn.nodes and n.op == "call_function")


@pytest.mark.parametrize("kind", ["behind", "beside"])
def test_what_is_lacking_is_what_the_untouched_network_says_and_the_drift(kind: str) -> None:
    program, ffns = of(kind)
    changed = program.clone()
    name = next(n for n in changed.weights if n.startswith("mixes.0") and "weight" in n)
    changed.weights[name] = from_tensor(changed.weights[name].load() * 1.5, "larger")
    for other, moved in ((program, False), (changed, True)):
        found = list[Tensor]()
        places = {n.name: stream_of(f.output, n) for f in find_ffns(other)[0] for n in [first(f)]}
        untouched = UntouchedStream(program, [{"x": rows[None]} for rows in ROWS])
        places = {node: untouched.follow(stream) for node, stream in places.items()}

        for calls in Lockstep(other, [{"x": rows[None]} for rows in ROWS]).operators():
            stream = places.get(calls.node.name)
            if isinstance(stream, Stream):
                says = said(ffns[len(found)], joined(calls.values(0)))
                found.append(untouched.at(stream) - without_network(stream, calls) - says)
        assert len(found) == 2 and all(drift.shape == (10, 8) for drift in found)
        assert all((float(drift.abs().max()) > 1e-2) == moved for drift in found)


def said(ffn: Ffn, x: Tensor) -> Tensor:
    assert ffn.b_in is not None and ffn.b_out is not None
    hidden = torch.relu(x @ ffn.w_in.load().T + ffn.b_in.load())
    return hidden @ ffn.w_out.load().T + ffn.b_out.load()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("behind, with a norm", "not added to a residual stream as it is"),
        ("scaled", "not added to a residual stream as it is"),
        ("before its neighbour", "is computed behind it"),
    ],
)
def test_a_stream_that_cannot_be_told_says_why(kind: str, words: str) -> None:
    for ffn in of(kind)[1]:
        found = stream_of(ffn.output, first(ffn))
        assert isinstance(found, str) and words in found


class Confusing(nn.Module):
    """A network whose output is added to a tensor of the same size that is not what it reads, or to each of its
    rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        said = self.down(torch.relu(self.up(self.norm(x))))
        if self.kind == "every row to every row":
            return {"y": self.norm(said.unsqueeze(1) + x.unsqueeze(0)), "z": z}
        return {"y": self.norm(said + (z if self.kind == "another input" else x)), "z": z}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another input", "is not what it reads"),
        ("every row to every row", "not added to a residual stream as it is"),
        ("its own", ""),
    ],
)
def test_a_tensor_of_the_same_size_is_not_taken_for_the_stream(kind: str, words: str) -> None:
    sample = {"x": ROWS[0].clone(), "z": ROWS[1].clone()}
    program = moec.capture(Confusing(kind).eval(), sample, dict.fromkeys(sample, ("rows", None)))
    (ffn,) = find_ffns(program)[0]
    found = stream_of(ffn.output, first(ffn))
    if words:
        assert isinstance(found, str) and words in found
    else:
        assert isinstance(found, Stream) and [other.name for other in found.others] == ["x"]


def test_dropout_and_views_on_the_way_are_passed() -> None:
    for name, told in (("llama", True), ("gpt2", True), ("gemma2", False)):
        for ffn in find_ffns(zoo.captured(name, cache=False))[0]:
            found = stream_of(ffn.output, first(ffn))
            assert isinstance(found, Stream) == told
            assert isinstance(found, str) or found.total.target is torch.ops.aten.add.Tensor


def test_a_stream_is_followed_in_order_only() -> None:
    program, ffns = of("behind")
    streams = [stream_of(ffn.output, first(ffn)) for ffn in ffns]
    untouched = UntouchedStream(program, [{"x": ROWS}])
    assert isinstance(untouched.follow(streams[1]), Stream)
    assert "joins the residual stream before" in str(untouched.follow(streams[0]))
