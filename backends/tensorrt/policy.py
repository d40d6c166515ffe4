"""Which lowering a MoE block gets, decided before anything is built: by library, GPU, dtype, quantization, shape and
tokens of a call.

There are three.

- `native`: TensorRT's own MoE layer, put into the network after parsing, see `native`. It exists for gated
  SiLU on SM 10.0, 10.3 and 11.0, and in the enterprise library alone. Elsewhere a build fails in the middle: that is
  why moec asks first.
- standard operators without data-dependent shapes, in one of two forms. `gathered` copies the chosen experts' matrices
  for every token and multiplies by those; `dense` computes all experts for all tokens as three plain products and masks
  what was not chosen.
- `kernels`: grouped products of moec's own as plugins, see `plugins`; only where they are asked for, until they have
  been measured.

One form holds for the whole engine, also where it has two optimization profiles (few tokens and many). A branch in the
graph would keep each form from being fused with what stands around it, and two engines in one folder would hold all
weights twice. So the most tokens of a call decide: an engine that is only to continue texts is compiled for few tokens
(`max_sequence=1`). When gathering pays is a count of passes over memory, not a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moec.dialect import Activation
from moec.kernels.dispatch import has_triton
from moec.targets.backend import Refusal

NATIVE = (100, 103, 110)  # compute capabilities of the MoE layer
KERNELS = (80, 86, 87, 89, 90, 120, 121)  # those that moec's own kernels are compiled for
UNTRIED = (
    "moec's own kernels would fit, and nobody has measured them under TensorRT: ask for them with lowering=kernels"
)
LOWERINGS = ("auto", "native", "gathered", "dense", "kernels")
COPIES = 3  # passes over memory of a gathered matrix: read, written, read again; a dense one is read once
MEMORY_BYTES = 16 * 2**30
NATIVE_TOKENS = 16  # new tokens a text above which the library itself warns of its MoE layer's speed


@dataclass(frozen=True)
class BuildPlan:
    """What an engine is built for, as far as the graph depends on it.

    Attributes:
        edition: `tensorrt` or `tensorrt-rtx`.
        version: of the library, `11.4` or longer; empty for the newest that moec has a table of.
        architectures: compute capabilities, `90` for SM 9.0; none means all that the library knows.
        tokens: the most tokens of a call, over all profiles.
        length: the most new tokens of one text.
        memory_bytes: what the intermediates of one MoE block may take.
        lowering: one of `LOWERINGS`.
    """

    edition: str = "tensorrt"
    version: str = ""
    architectures: tuple[int, ...] = ()
    tokens: int = 8192
    length: int = 1024
    memory_bytes: int = MEMORY_BYTES
    lowering: str = "auto"


@dataclass(frozen=True)
class Shape:
    """A MoE block, as far as the choice depends on it.

    Attributes:
        experts, top_k, hidden, inner: E, K, H, I.
        activation: between the two products.
        score_before: weights multiply the experts' input.
        item_bytes: of an activation and of an unpacked weight.
        bits: of packed weights, 0 for plain ones.
        biases: whether only some of the experts' products have one (`some`), all (`all`) or none (empty).
        floats: whether packed weights are small floats, FP8 or NVFP4.
    """

    experts: int
    top_k: int
    hidden: int
    inner: int
    activation: Activation
    score_before: bool = False
    item_bytes: int = 2
    bits: int = 0
    biases: str = ""
    floats: bool = False


@dataclass(frozen=True)
class FormChoice:
    """What a block gets.

    Attributes:
        lowering: `native`, `gathered`, `dense` or `kernels`.
        form: which standard operators stand in the ONNX file, `gathered` or `dense`; of `native` and `kernels` they are
            what it is checked by.
        why: in words.
        memory_bytes: bound of the form's intermediates at the most tokens.
    """

    lowering: str
    form: str
    why: str
    memory_bytes: int

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {"formulation": self.lowering, "form": self.form, "why": self.why, "memory_bytes": self.memory_bytes}


def choose(shape: Shape, plan: BuildPlan, where: str = "") -> FormChoice | Refusal:
    """The lowering of one block, or why there is none. `where` names the block."""
    form = plan.lowering if plan.lowering in ("gathered", "dense") else _form(shape, plan)
    stored = "kernels" if plan.lowering == "kernels" else form
    need = memory_bytes(shape, stored, plan.tokens)
    if need > plan.memory_bytes:
        return _too_large(shape, plan, stored, need, where)
    refused = {"native": why_not_native(shape, plan), "kernels": why_not_kernels(shape, plan)}
    if plan.lowering in refused:
        why = refused[plan.lowering]
        if why:
            return Refusal(
                f"the lowering {plan.lowering!r} cannot be had: {why}",
                where,
                "leave the choice to moec (auto), or take gathered or dense",
            )
        return FormChoice(plan.lowering, form, "asked for", need)
    if plan.lowering == form:
        return FormChoice(form, form, "asked for", need)
    if not refused["native"] and plan.length <= NATIVE_TOKENS:
        return FormChoice("native", form, "TensorRT's MoE layer has this activation on this GPU", need)
    slow = f"TensorRT's MoE layer is made for {NATIVE_TOKENS} new tokens a text, not {plan.length}"
    return FormChoice(
        form, form, f"{_why(shape, plan, form)}; {refused['native'] or slow}; {refused['kernels'] or UNTRIED}", need
    )


def memory_bytes(shape: Shape, form: str, tokens: int) -> int:
    """Bound of what a form's intermediates take for so many tokens: float32 copies of the mix, and packed weights
    unpacked if they are gathered."""
    rows, wide = shape.activation.rows_per_neuron, 4
    if form == "kernels":
        return (
            tokens * shape.top_k * ((shape.inner + shape.hidden) * shape.item_bytes + 2 * wide)
            + 2 * wide * shape.experts
        )
    if form == "dense":
        return tokens * shape.experts * (shape.inner * (rows + 1) * shape.item_bytes + 2 * wide)
    matrices = (rows + 1) * shape.inner * shape.hidden * shape.item_bytes
    unpacked = shape.experts * matrices if shape.bits else 0
    return unpacked + tokens * shape.top_k * (
        matrices + (rows + 1) * shape.inner * shape.item_bytes + shape.hidden * wide
    )


def why_not_native(shape: Shape, plan: BuildPlan) -> str:
    """Why TensorRT's MoE layer would be wrong or is not there, in a few words; empty when it is right."""
    if plan.edition != "tensorrt":
        return "TensorRT-RTX has no MoE layer that it can build"
    wrong = [sm for sm in plan.architectures if sm not in NATIVE]
    if wrong or not plan.architectures:
        return f"TensorRT's MoE layer is for {_named(NATIVE)}, not {_named(wrong) or 'a GPU that is not named'}"
    if shape.activation != Activation("silu"):
        return "TensorRT's MoE layer has gated SiLU only, without a clamp or a factor"
    if shape.bits:
        return f"TensorRT's MoE layer reads no weights of {shape.bits} bits"
    if shape.score_before:
        return "TensorRT's MoE layer applies weights after the experts"
    return "TensorRT's MoE layer takes all biases or none" if shape.biases == "some" else ""


def why_not_kernels(shape: Shape, plan: BuildPlan) -> str:
    """Why moec's own kernels cannot be had, in a few words; empty when they can."""
    if plan.edition != "tensorrt":
        return "TensorRT-RTX takes no plugins"
    wrong = [sm for sm in plan.architectures if sm not in KERNELS]
    if wrong or len(plan.architectures) != 1:
        return f"there are no kernels of moec for {_named(wrong) or 'a GPU that is not named'}"
    if shape.floats:
        return "moec's kernels read no small floats in TensorRT"
    if shape.bits and (shape.bits not in (2, 4, 8) or shape.hidden % 8 or shape.inner % 8):
        return (
            f"moec's kernels read packed integers of 2, 4 or 8 bits in rows of whole 32-bit words, not {shape.bits} "
            f"bits of {shape.hidden} by {shape.inner}"
        )
    if shape.item_bytes not in (2, 4):
        return "moec's kernels compute in 16 or 32 bits"
    numbers = max(plan.tokens * shape.top_k, shape.activation.rows_per_neuron * shape.inner * shape.hidden)
    if numbers >= 2**31:
        return "an expert's weights, or a call's tokens, are more than moec's kernels count"
    return (
        ""
        if has_triton()
        else "moec's kernels are compiled by Triton, which is not installed (pip install 'moec[triton]')"
    )


def _named(architectures: Sequence[int]) -> str:
    return " and ".join(f"sm{sm}" for sm in architectures)


def _form(shape: Shape, plan: BuildPlan) -> str:
    return "gathered" if COPIES * plan.tokens * shape.top_k <= shape.experts else "dense"


def _why(shape: Shape, plan: BuildPlan, form: str) -> str:
    copied = (
        f"{plan.tokens} tokens would copy {plan.tokens * shape.top_k} of {shape.experts} experts"
        if form == "dense"
        else ""
    )
    return copied or f"{plan.tokens} tokens choose at most {plan.tokens * shape.top_k} of {shape.experts} experts"


def _too_large(shape: Shape, plan: BuildPlan, form: str, need: int, where: str) -> Refusal:
    fixed = memory_bytes(shape, form, 0)
    fitting = (plan.memory_bytes - fixed) // max(1, memory_bytes(shape, form, 1) - fixed)
    reason = (
        f"the {form} form of a block needs {need / 2**30:.1f} GiB for {plan.tokens} tokens, more than the "
        f"{plan.memory_bytes / 2**30:.1f} GiB that it may take"
    )
    return Refusal(
        reason,
        where,
        f"compile for {fitting} tokens a call or fewer (max_batch=…, max_sequence=…)"
        if fitting > 0
        else "give it more memory",
    )
