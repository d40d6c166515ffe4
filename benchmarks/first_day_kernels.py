"""First day, stage `kernels`: moec's kernels against float64, each case twice, with new memory full of NaN.

The error is ||got - exact|| / ||exact|| over at most 64 tokens; it may be twice that of eager PyTorch at the same
dtype. In float32, where the order of a sum decides, PyTorch's is taken as 2**-24 * sqrt(longest sum) at least: TF32 is
100 times above that. The second run must give the same bits: a race would not.

Most of the time goes into Triton's compiler, so that cases are shared out to processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
from first_day_blocks import Whole, wholes
from first_day_errors import allowed, distance
from first_day_rows import Rows
from torch import Tensor

from moec.dialect import Activation
from moec.dialect.experts import dense_expert, experts_reference
from moec.kernels import launch
from moec.kernels.packed import ExpertCodes

SAMPLE = 64
HALVES, DTYPES = ("bfloat16", "float16"), ("bfloat16", "float16", "float32")
RULES = {"silu": Activation(), "gpt-oss": Activation(alpha=1.702, beta=1.0, limit=7.0)}
# experts, hidden, inner, top_k
SIZES = {
    "odd": (6, 40, 24, 2),
    "ragged": (5, 33, 7, 3),
    "middle": (16, 256, 192, 4),
    "gpt-oss": (128, 2880, 2880, 4),
    "qwen3": (128, 2048, 768, 8),
}
Found = list[tuple[str, float, str, float]]  # who, value, unit, bound


@dataclass(frozen=True)
class Trial:
    """One call of `launch.experts`.

    Attributes:
        form: `plain`, `int4`, `int8` or `fp8` weights. transposed: the matrices are `.mT` of what lies in memory.
        rule: with `gpt-oss` there are biases. resident: `Tile.resident`.
    """

    size: str
    tokens: int
    dtype: str = "bfloat16"
    form: str = "plain"
    transposed: bool = False
    rule: str = "silu"
    resident: int | None = None

    @property
    def name(self) -> str:
        words = [self.size, self.dtype, self.form, "transposed" if self.transposed else "straight", self.rule]
        return " ".join([*words, *(["persistent"] if self.resident else []), f"T={self.tokens}"])


def trials(small: bool = False) -> list[Trial | Whole]:
    """All, one of each kind first; `small`: those that an interpreter or a memory checker ends in seconds."""
    if small:
        forms = [("plain", False), ("plain", True), ("int4", False)]
        few = [Trial("odd", t, "bfloat16", f, turned) for t in (5, 40) for f, turned in forms]
        more = [Trial("odd", t) for t in (0, 1)] + [Trial("odd", 17, "float32", resident=1)]
        return [*few, *more, *wholes(True), Trial("ragged", 20, "float16", transposed=True, rule="gpt-oss")]
    real = [Trial("qwen3", t) for t in (1, 16, 4096)] + [Trial("qwen3", t, form="int4") for t in (1, 4096)]
    real += [Trial("gpt-oss", t, transposed=True, rule="gpt-oss") for t in (1, 1024)]
    middle = product((17, 1, 4096, 0, 3, 16, 100, 257, 1024), DTYPES, (False, True))
    odd = product(("odd", "ragged"), (5, 1, 40), DTYPES, (False, True))
    packed = product((17, 1, 4096, 16, 257), HALVES, ("int4", "int8", "fp8"))
    persistent = product((40, 1024), DTYPES, (False, True))
    return [
        *(Trial("middle", t, dtype, transposed=turned) for t, dtype, turned in middle),
        *(Trial("middle", t, dtype, form) for t, dtype, form in packed),
        *real,
        *wholes(False),
        *(
            Trial("middle", t, d, transposed=turned, rule="gpt-oss")
            for t, d, turned in product((1, 40), DTYPES, (0, 1))
        ),
        *(Trial(size, t, dtype, transposed=turned) for size, t, dtype, turned in odd),
        *(Trial("middle", t, dtype, transposed=turned, resident=1) for t, dtype, turned in persistent),
    ]


class Drawn:
    """Random tensors of one trial on a device."""

    def __init__(self, trial: Trial, device: str) -> None:
        self.device, self.dtype, self.trial = device, getattr(torch, trial.dtype), trial
        self.generator = torch.Generator(device).manual_seed(0)
        self.experts, hidden, inner, top_k = SIZES[trial.size]
        self.x, self.rule = self.draw(trial.tokens, hidden).to(self.dtype), RULES[trial.rule]
        self.ids = self.draw(trial.tokens, self.experts).topk(top_k).indices
        self.weights = self.draw(trial.tokens, top_k).softmax(-1)
        self.w_in, self.w_out = self.matrix(2 * inner, hidden), self.matrix(hidden, inner)
        biased = trial.rule == "gpt-oss"
        self.b_in, self.b_out = (
            self.draw(self.experts, n).to(self.dtype) * 0.1 if biased else None for n in (2 * inner, hidden)
        )

    def draw(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, device=self.device)

    def matrix(self, rows: int, depth: int) -> Tensor | ExpertCodes:
        if self.trial.form == "plain":
            order = (depth, rows) if self.trial.transposed else (rows, depth)
            weight = torch.empty(self.experts, *order, device=self.device, dtype=self.dtype)
            weight.normal_(0, depth**-0.5, generator=self.generator)
            return weight.mT if self.trial.transposed else weight
        group = next(g for g in (64, 32, 8) if depth % g == 0)
        scale = (self.draw(self.experts, rows, depth // group).abs() + 0.5) * 0.5 * depth**-0.5
        if self.trial.form == "fp8":
            values = self.draw(self.experts, rows, depth).to(torch.float8_e4m3fn)
            return ExpertCodes(values, scale.to(self.dtype), group=group)
        bits = int(self.trial.form[-1])
        size, zero = (
            (self.experts, rows, depth * bits // 8),
            torch.full(scale.shape, 2 ** (bits - 1) - 1, device=self.device),
        )
        values = torch.randint(0, 256, size, generator=self.generator, device=self.device, dtype=torch.uint8)
        return ExpertCodes(values, (scale * 2.0 ** (2 - bits)).to(self.dtype), zero.to(torch.uint8), bits)

    def run(self) -> Tensor:
        given = (self.x, self.ids, self.weights, self.w_in, self.w_out, self.b_in, self.b_out)
        return launch.experts(*given, rule=self.rule, resident=self.trial.resident)

    def reference(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The chosen rows by PyTorch in this dtype, one expert after the other."""
        one = lambda e, part: dense_expert(*self.expert(e, dtype), self.rule)(0, part)  # noqa: E731
        return experts_reference(self.x[rows].to(dtype), self.ids[rows], self.weights[rows], one, self.experts)

    def expert(self, e: int, dtype: torch.dtype) -> tuple[Any, ...]:
        """One expert's matrices and biases, unpacked."""
        own = [self.w_in, self.w_out, self.b_in, self.b_out]
        return tuple(None if w is None else one_of(w, e).to(dtype) for w in own)


def one_of(weight: Tensor | ExpertCodes, e: int) -> Tensor:
    if isinstance(weight, Tensor):
        return weight[e : e + 1]
    zero = None if weight.zero is None else weight.zero[e : e + 1]
    part = ExpertCodes(weight.values[e : e + 1], weight.scale[e : e + 1], zero, weight.bits, weight.group, weight.rows)
    return part.unpacked()


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written yet holds NaN, and integers that are no expert."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def measure(trial: Trial | Whole, device: str) -> Found:
    """What is checked of one trial."""
    if isinstance(trial, Whole):
        return trial.measure(device)
    drawn = Drawn(trial, device)
    with torch.inference_mode():
        with poisoned():
            got, again = drawn.run(), drawn.run()
        if not trial.tokens:
            return [("moec: tokens", float(len(got)), "tokens", 0.0)]
        rows = torch.linspace(0, trial.tokens - 1, min(trial.tokens, SAMPLE), device=device).long()
        exact = drawn.reference(rows, torch.float64)
        plain = distance(drawn.reference(rows, drawn.dtype), exact)
        bound = allowed(plain, drawn.dtype, max(SIZES[trial.size][1:3]))
        differ = float((got != again).sum())
        whole = float((~got.isfinite()).sum())
    return [
        ("moec", distance(got[rows], exact), "relative error", bound),
        ("moec, all tokens", whole, "not finite", 0.0),
        ("moec, second run", differ, "elements that differ", 0.0),
    ]


def quiet() -> None:
    """A worker's start."""
    import warnings

    warnings.simplefilter("ignore")  # the deterministic mode is asked for its NaN alone
    torch.set_num_threads(1)


def kernels(rows: Rows, device: str, small: bool = False, processes: int = 0) -> None:
    """The stage."""
    wanted = trials(small)
    rows.notes["cases"] = len(wanted)
    if not processes:
        return judge(rows, wanted, {t.name: partial(measure, t, device) for t in wanted})
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    pool: Executor
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=quiet) as pool:
        futures: dict[str, Future[Found]] = {
            t.name: pool.submit(measure, t, device) for t in wanted if t.name not in rows.done
        }
        try:
            return judge(rows, wanted, {name: future.result for name, future in futures.items()})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def judge(rows: Rows, wanted: list[Trial | Whole], results: dict[str, Callable[[], Found]]) -> None:
    for trial in rows.todo(wanted, lambda t: t.name):
        for who, value, unit, bound in results[trial.name]():
            rows.check(who, value, unit, bound)
