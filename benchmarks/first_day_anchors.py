"""First day, stage `anchors`: the experts of three models beside PyTorch's, transformers' and what others measured.

The peers' times are data (`anchors_h200.toml`). A time here is a CUDA graph's of several calls over their number, each
call on other experts than the one before, so that no weight is found in the cache; how the peers' were taken is not
known in such detail. Routing is balanced, as theirs: pair p goes to expert p mod E.

Aims: a time no longer than the best peer's, for Qwen3's shape at 1 to 16 tokens 1.3 times faster; 0.80 of the
bandwidth at Mixtral's and DeepSeek's shapes up to 64 tokens; 4 bits at least 2.5 times as fast as 16 up to 16 tokens.
Outputs are compared with float64 before anything is timed, and what PyTorch alone would give decides the bound.
"""

from __future__ import annotations

import gc
import tomllib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from first_day_errors import allowed, distance
from first_day_kernels import quiet
from first_day_rows import Rows
from moe_gpu import Timer, limits
from moe_gpu_contestants import SHAPES, TOYS, Block, plain_grouped, tensors_of, transformers_experts
from torch import Tensor

from moec.kernels import launch
from moec.kernels.packed import ExpertCodes

ANCHORS = tomllib.loads(Path(__file__).with_name("anchors_h200.toml").read_text())
ORDER = (1, 16, 4096, 4, 64, 1024, 8192, 8, 256, 2, 2048)  # the ends first: what is left out is the middle
FASTER, SHARE, PACKED = 1.3, 0.80, 2.5  # the aims
FEW, MANY, SAMPLE = 16, 64, 16
PEERS = {"torch._grouped_mm": plain_grouped, "transformers grouped_mm": transformers_experts("grouped_mm")}


@dataclass(frozen=True)
class Cell:
    shape: str
    tokens: int
    bits: int

    @property
    def name(self) -> str:
        return f"{self.shape} {self.bits}-bit T={self.tokens}"


class Balanced(Block):
    """A block whose tokens are routed alike to all experts; each call of `route` goes on where the last one ended."""

    turn = 0

    def take(self, tokens: int) -> Tensor:
        """Choose the number of tokens; returns them."""
        top_k, experts = self.shape.routing.top_k, self.shape.experts
        pairs = torch.arange(tokens * top_k, device=self.device)
        self.ids = [((pairs + n * tokens * top_k) % experts).view(tokens, top_k) for n in range(self.turns(tokens))]
        self.mixing, self.turn = self.draw(tokens, top_k).float().softmax(-1), 0
        return self.draw(tokens, self.shape.hidden)

    def turns(self, tokens: int) -> int:
        """After how many calls every expert has been read; 8 at most."""
        return max(1, min(8, self.shape.experts // (tokens * self.shape.routing.top_k)))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.turn += 1
        return self.mixing[: len(x)], self.ids[self.turn % len(self.ids)][: len(x)]

    def bytes_moved(self, tokens: int) -> int:
        """Weights of the experts that are chosen, each once, and the tokens in and out."""
        chosen = min(self.shape.experts, tokens * self.shape.routing.top_k)
        each = sum(t.nbytes for w in (self.w_in, self.w_out) for t in tensors_of(w)) // self.shape.experts
        return chosen * each + 2 * tokens * self.shape.hidden * 2


def ours(block: Block) -> Callable[[Tensor], Tensor]:
    """moec's experts, routed by others."""

    def run(x: Tensor) -> Tensor:
        weights, ids = block.route(x)
        return launch.experts(x, ids, weights, block.w_in, block.w_out, block.b_in, block.b_out, rule=block.shape.rule)

    return run


def cells(small: bool) -> list[Cell]:
    if small:
        return [Cell("mixtral", t, bits) for t, bits in product((1, 20), (16, 4))]
    packed = [Cell(s, t, 4) for s, t in product(("qwen3", "mixtral", "deepseek"), (1, 16, 4, 4096, 64))]
    return [*(Cell(s, t, 16) for s, t in product(("qwen3", "mixtral", "deepseek"), ORDER)), *packed]


def judge(rows: Rows, block: Balanced, x: Tensor, call: Callable[[Tensor], Tensor]) -> None:
    """Ours against float64 on a few of the tokens."""
    some = torch.linspace(0, len(x) - 1, min(SAMPLE, len(x)), device=x.device).long()
    ids, mixing = [i.clone() for i in block.ids], block.mixing.clone()
    block.turn = 0
    got = call(x)[some]
    block.ids, block.mixing = [i[some] for i in ids], mixing[some]
    exact, plain = (reference_again(block, x[some], exact) for exact in (True, False))
    block.ids, block.mixing, block.turn = ids, mixing, 0
    longest = max(block.shape.hidden, block.shape.inner)
    rows.check("moec", distance(got, exact), "relative error", allowed(distance(plain, exact), x.dtype, longest))


def reference_again(block: Balanced, x: Tensor, exact: bool) -> Tensor:
    block.turn = 0
    return block.reference(x, exact)


def graph_us(timer: Timer, block: Balanced, call: Callable[[Tensor], Tensor], x: Tensor) -> float | None:
    """Microseconds of a call among several in one graph; None where it cannot be captured."""
    turns = 1 if timer.toy else max(2, len(block.ids))
    block.turn = 0

    def several() -> None:
        for _ in range(turns):
            call(x)

    call(x)
    ms = timer.median_ms(several) if timer.toy else timer.graph_ms(several)
    return None if ms is None else ms / turns * 1e3


def measure(rows: Rows, cell: Cell, block: Balanced, timer: Timer, speed: dict[str, float]) -> None:
    """The rows of one cell."""
    x = block.take(cell.tokens)
    call = ours(block)
    judge(rows, block, x, call)
    us = graph_us(timer, block, call, x)
    rows.check("moec in a CUDA graph", float(us is None), "failures", 0.0)
    assert us is not None
    rows.figure("moec", round(us, 2), "us")
    tell(rows, cell, block, us, speed)
    for who, make in PEERS.items() if cell.bits == 16 else ():
        with suppress(Exception):
            theirs = graph_us(timer, block, make(block), x)
            if theirs is not None:
                rows.figure(who, round(theirs, 2), "us", ratio=round(theirs / us, 3))
                continue
        rows.refuse(who, "cannot be captured here")


def tell(rows: Rows, cell: Cell, block: Balanced, us: float, speed: dict[str, float]) -> None:
    """Shares of the limits, and the aims."""
    moved, flop = block.bytes_moved(cell.tokens), block.flop(torch.empty(cell.tokens, 0))
    share = moved / us * 1e6 / ANCHORS["bytes_per_s"]
    rows.figure("moec", round(moved / us * 1e6 / speed["bytes_per_s"], 4), "of a copy's bytes a second")
    rows.figure("moec", round(flop / us * 1e6 / ANCHORS["flop_per_s"], 4), "of 989 TFLOP/s")
    wide = cell.bits == 16
    if wide and cell.shape != "qwen3" and cell.tokens <= MANY:
        rows.aim("moec", round(share, 4), "of 4.8 TB/s", SHARE)
    else:
        rows.figure("moec", round(share, 4), "of 4.8 TB/s")
    if wide and cell.tokens in ANCHORS["tokens"]:
        anchor = ANCHORS[cell.shape]["balanced"][ANCHORS["tokens"].index(cell.tokens)]
        least = FASTER if cell.shape == "qwen3" and cell.tokens <= FEW else 1.0
        rows.aim("moec against the best peer", round(anchor / us, 3), "times as fast", least)
    if not wide and (own := unpacked_us(rows, cell)):
        rows.aim("4 bits against 16", round(own / us, 3), "times as fast", PACKED if cell.tokens <= FEW else 1.0)


def unpacked_us(rows: Rows, cell: Cell) -> float:
    """The time of the same cell in 16 bits; 0 where it was not measured."""
    case = f"{cell.shape} 16-bit T={cell.tokens}"
    found = (r["value"] for r in rows.rows if (r["case"], r["who"], r["unit"]) == (case, "moec", "us"))
    return float(next(found, 0.0))


def compiled(cell: Cell) -> None:
    """Let Triton compile a cell's kernels: the same call on weights of one expert, which stand for all."""
    shape = SHAPES[cell.shape]
    block = Balanced(shape, 16, "meta", torch.bfloat16)
    block.device, block.bits = "cuda", cell.bits
    block.generator = torch.Generator("cuda").manual_seed(0)
    wide = {"w_in": (2 * shape.inner, shape.hidden), "w_out": (shape.hidden, shape.inner)}
    for name, (rows, depth) in wide.items():
        one = block.matrix(1, rows, depth)
        setattr(block, name, one.expand(shape.experts, -1, -1) if isinstance(one, Tensor) else many(one, shape.experts))
    ours(block)(block.take(cell.tokens))
    torch.cuda.synchronize()


def many(one: ExpertCodes, experts: int) -> ExpertCodes:
    return ExpertCodes(
        one.values.expand(experts, -1, -1), one.scale.expand(experts, -1, -1).contiguous(), None, one.bits
    )


def compile_all(wanted: list[Cell], processes: int) -> None:
    """Compile what these cells need side by side; what fails here fails again where it is told."""
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=quiet) as pool:
        wait([pool.submit(compiled, cell) for cell in wanted], timeout=90)
        pool.shutdown(wait=False, cancel_futures=True)


def anchors(rows: Rows, device: str, small: bool = False, processes: int = 0) -> None:
    """The stage."""
    wanted, shapes = cells(small), TOYS if small else SHAPES
    rows.notes["source"] = ANCHORS["source"]
    open_cells = [cell for cell in wanted if cell.name not in rows.done]
    if processes and open_cells:
        compile_all(open_cells, processes)
    timer = Timer(device == "cpu")
    speed = rows.notes["limits"] = limits(timer)
    held: dict[str, Any] = {}
    for cell in rows.todo(wanted, lambda c: c.name):
        key = f"{cell.shape} {cell.bits}"
        if key not in held:
            held.clear()
            gc.collect()
            if device != "cpu":
                torch.cuda.empty_cache()
            held[key] = Balanced(shapes[cell.shape], cell.bits, device, torch.bfloat16)
        with torch.inference_mode():
            measure(rows, cell, held[key], timer, speed)
