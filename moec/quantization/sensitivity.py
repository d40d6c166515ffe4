"""What it costs to give an expert few bits: the error of its block's output, weighted by what the loss makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from moec.dialect import Activation, dequantize, pack
from moec.errors import MoecError
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.execution.memory import total_bytes
from moec.program.decoder_signature import IDS, LOGITS
from moec.program.program import Program
from moec.program.signature import converted
from moec.quantization.grid import Grid
from moec.quantization.hessians import Arrivals
from moec.quantization.rounding import encode
from moec.weights.lazy import Weight

KINDS = ("fisher", "error", "frequency")
Inputs = Sequence[Mapping[str, Tensor]]
_RESERVE = 3  # times the weights' bytes that must be free for a backward pass in memory


@dataclass(frozen=True)
class Sensitivity:
    """Costs of the experts of some blocks.

    Attributes:
        costs: for each block `[E, widths]` in float64; only their proportions mean anything.
        kind: what they are: `fisher`, `error` or `frequency`.
        reason: why that is not what was asked for; empty when it is.
    """

    costs: dict[fx.Node, Tensor]
    kind: str
    reason: str = ""


def measure_sensitivity(
    program: Program,
    inputs: Iterable[Mapping[str, Tensor]],
    blocks: Mapping[fx.Node, Grid],
    widths: Sequence[int],
    kind: str,
) -> Sensitivity:
    """What each expert of some blocks costs at each width, on given inputs.

    `fisher`: the expert rounded to nearest alone, all else untouched, the squared change of the block's output times
    the squared gradient of the cross-entropy there, summed over tokens and elements: the diagonal of the Fisher
    information for the loss (Guo et al. 2026, arXiv 2605.23078). It takes one backward pass with all weights in memory.
    `error`: the same without gradients. `frequency`: how many tokens an expert gets, times what a bit less multiplies a
    rounding error by; for comparison.

    Args:
        inputs: of a language model, see `text_inputs`.
        blocks: mixture-of-experts operators and the grid of their matrices, whose own width is not looked at.
        widths: bits.
        kind: one of `KINDS`; where `fisher` cannot be had, `error` is measured and the reason given.

    Raises:
        MoecError: M105 when a cost is not a finite number.
    """
    inputs, reason, weights = list(inputs), "", dict[fx.Node, Tensor]()
    if kind == "fisher":
        weights, reason = _squared_gradients(program, inputs, blocks)
        kind = "error" if reason else kind
    costs: dict[fx.Node, Tensor] = {}
    last = [n for n in program.graph.nodes if n in blocks][-1]

    def visit(calls: OperatorCalls) -> None:
        if calls.node in blocks:
            arrivals = Arrivals.of(calls)
            if kind == "frequency":
                costs[calls.node] = arrivals.counts.double()[:, None] * torch.tensor(
                    [4.0**-b for b in widths], dtype=torch.float64
                )
            else:
                costs[calls.node] = _BlockErrors(calls, arrivals, weights.pop(calls.node, None)).costs(
                    blocks[calls.node], widths
                )
            if not bool(costs[calls.node].isfinite().all()):
                raise MoecError(
                    "M105",
                    "the error of an expert's output is not a finite number",
                    calls.node.name,
                    "look at its weights with `moec inspect`",
                )

    run_in_lockstep(program, inputs, visit, until=last)
    return Sensitivity(costs, kind, reason)


# ---------------------------------------------------------------------- errors of outputs
class _BlockErrors:
    """One block on all tokens.

    Args:
        squares: of the gradients at its output `[T, H]`; None to count all elements alike.
    """

    def __init__(self, calls: OperatorCalls, arrivals: Arrivals, squares: Tensor | None) -> None:
        call = calls.moe_calls()[0]
        self._matrices, self._biases = (call.w_in, call.w_out), (call.b_in, call.b_out)
        self._rule, self._arrivals, self._squares = call.activation, arrivals, squares

    def costs(self, grid: Grid, widths: Sequence[int]) -> Tensor:
        """`[E, widths]` in float64; zero for an expert that no token reaches."""
        return torch.stack([self._expert(e, grid, widths) for e in range(self._arrivals.experts)])

    def _expert(self, e: int, grid: Grid, widths: Sequence[int]) -> Tensor:
        a = self._arrivals
        token, place = torch.where((a.ids == e) & (a.weights != 0))
        if not len(token):
            return torch.zeros(len(widths), dtype=torch.float64)
        rows, mixing = a.rows[token], a.weights[token, place][:, None]
        rows, mixing = (rows * mixing, torch.ones_like(mixing)) if a.scaled else (rows, mixing)
        biases = [None if b is None else _row(b, e) for b in self._biases]
        exact = [_row(w, e) for w in self._matrices]
        want, found = _outputs(rows, exact, biases, self._rule), []
        for bits in widths:
            coarse = [_rounded(w, replace(grid, bits=bits, method="rtn")) for w in exact]
            error = (mixing * (_outputs(rows, coarse, biases, self._rule) - want)).square()
            found.append(
                (error if self._squares is None else error * self._squares[token].float()).sum(dtype=torch.float64)
            )
        return torch.stack(found)


def _row(stacked: Any, e: int) -> Tensor:
    """Expert e's own, in float32."""
    value: Tensor = stacked.read(e, e + 1)[0] if isinstance(stacked, Weight) else stacked[e]
    return value.float()


def _outputs(rows: Tensor, matrices: list[Tensor], biases: list[Tensor | None], rule: Activation) -> Tensor:
    return F.linear(rule(F.linear(rows, matrices[0], biases[0])), matrices[1], biases[1])


def _rounded(values: Tensor, grid: Grid) -> Tensor:
    codes, scale, zero = encode(values, grid)
    return dequantize(pack(codes, grid.stored), scale, zero, bits=grid.stored)


# ---------------------------------------------------------------------- gradients
class _Opened(fx.Interpreter):
    """Runs a program so that gradients reach the outputs of some operators, and nothing else's."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self._names = names
        self.leaves: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self._names:
            return value
        self.leaves[n.name] = torch.zeros_like(value, requires_grad=True)
        return value + self.leaves[n.name]


def _squared_gradients(
    program: Program, inputs: Inputs, blocks: Mapping[fx.Node, Grid]
) -> tuple[dict[fx.Node, Tensor], str]:
    """The squared gradient of the cross-entropy, summed over tokens, at each block's output: bfloat16 `[T, H]`; or why
    there is none."""
    need = _RESERVE * program.size_bytes
    if LOGITS not in program.outputs:
        return {}, f"the program has no {LOGITS}"
    if need > total_bytes() // 2:  # not what is free now: equal inputs have to give equal widths
        return {}, f"a backward pass needs {need / 2**30:.1f} GiB of memory, more than half of this machine's"
    parts: dict[fx.Node, list[Tensor]] = {node: [] for node in blocks}
    module, names = program.module(), {n.name for n in blocks}
    try:
        for sample in inputs:
            leaves = _backward(_Opened(module, names), program, sample)
            for node, found in parts.items():
                gradient = leaves[node.name].grad
                if gradient is None or not bool(gradient.isfinite().all()):
                    return {}, f"no finite gradient reaches {node.name}"
                found.append(gradient.reshape(-1, gradient.shape[-1]).float().square().bfloat16())
    except (RuntimeError, NotImplementedError) as error:
        return {}, f"the program has no gradients: {str(error).splitlines()[0]}"
    return {node: torch.cat(found) for node, found in parts.items()}, ""


def _backward(run: _Opened, program: Program, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given = converted(program.inputs, sample)
    with torch.enable_grad():
        outputs = run.run(*(given[i.name] for i in program.inputs), enable_io_processing=False)
        logits, ids = dict(zip(program.outputs, outputs, strict=True))[LOGITS], sample[IDS]
        F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().long(), reduction="sum").backward()  # type: ignore[no-untyped-call]
    return run.leaves
