"""Which lowering a MoE block gets, decided before anything is built: by library, GPU, dtype, quantization, shape and
tokens of a call.

There are three.

- `native`: TensorRT's own MoE layer, put into the network after parsing, see `native`. It exists for gated
  SiLU on SM 10.0, 10.3 and 11.0, and in the enterprise library alone. Elsewhere a build fails in the middle: that is
  why moec asks first.
- `kernels`: grouped products of moec's own as plugins, see `plugins`; the default where `kernel_defaults` says so.
- standard operators without data-dependent shapes. `gathered` copies the chosen experts' matrices for every token and
  multiplies by those; `dense` computes all experts for all tokens as three plain products and masks what was not
  chosen; `either` is both in one graph over the same weights, and the number of tokens decides which has rows.

What decides is how many bytes of weights a call moves, see `weight_bytes`: counted, not measured. A step of one token
takes what moves fewest, also in an engine whose prompts are long; prompts take whole products, in as many pieces as
their memory needs. A branch (`If`) would do the same and could not be part of a CUDA graph; two engines in one folder
would hold all weights twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moec.backends.tensorrt.kernel_defaults import NONE, kernel_defaults
from moec.dialect import Activation
from moec.kernels.dispatch import has_triton
from moec.targets.backend import Refusal

NATIVE = (100, 103, 110)  # compute capabilities of the MoE layer
KERNELS = (80, 86, 87, 89, 90, 120, 121)  # those that moec's own kernels are compiled for
OFF = "moec's own kernels would fit, and are not the default here (ask for them with lowering=kernels): "
UNPACKED = "gathering unpacks all experts first, and never pays for packed weights"
COPIES = 3  # passes over memory of a gathered matrix: read, written, read again; a dense one is read once
PIECES = 16  # of a call's tokens, at most, that one after the other become wide products
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
        step: the tokens that the narrowest profile is tuned for: of a decoder, those of one step.
        memory_bytes: what the intermediates of one MoE block may take.
        lowering: one of `LOWERINGS` of `options`.
        capacity: places of a decoder's cache where it is a buffer of fixed size; 0 where it grows.
    """

    edition: str = "tensorrt"
    version: str = ""
    architectures: tuple[int, ...] = ()
    tokens: int = 8192
    length: int = 1024
    step: int = 1
    memory_bytes: int = MEMORY_BYTES
    lowering: str = "auto"
    capacity: int = 0


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
        lowering: `native`, `kernels`, or as `form`.
        form: which standard operators stand in the ONNX file, `gathered`, `dense` or `either`; of `native` and
            `kernels` they are what it is checked by.
        why: in words.
        memory_bytes: bound of the form's intermediates at the most tokens.
        few: of `either`, the most tokens whose experts are gathered.
        piece: the most tokens of one wide product; 0 for all.
        step_bytes: what a call of `BuildPlan.step` tokens moves of this block's weights.
    """

    lowering: str
    form: str
    why: str
    memory_bytes: int
    few: int = 0
    piece: int = 0
    step_bytes: int = 0

    def facts(self) -> dict[str, Any]:
        """For the report."""
        words = f"gathered to {self.few} token{'s' if self.few > 1 else ''}, else dense" if self.few else self.form
        return {
            "formulation": self.lowering, "form": words, "why": self.why, "memory_bytes": self.memory_bytes,
            "step_bytes": self.step_bytes,
        }  # fmt: skip


def choose(shape: Shape, plan: BuildPlan, where: str = "") -> FormChoice | Refusal:
    """The lowering of one block, or why there is none. `where` names the block."""
    refused = {"native": why_not_native(shape, plan), "kernels": why_not_kernels(shape, plan)}
    why = (refused | {"either": UNPACKED if shape.bits else ""}).get(plan.lowering)
    if why:
        return Refusal(
            f"the lowering {plan.lowering!r} cannot be had: {why}",
            where,
            "leave the choice to moec (auto), or take gathered or dense",
        )
    lowering, why = (plan.lowering, "asked for") if plan.lowering != "auto" else _best(shape, plan, refused)
    form = _form(shape, plan, alone=True) if lowering in refused else lowering
    few = max(1, _few(shape, plan)) if form == "either" else 0
    piece = 0
    if lowering in ("dense", "either"):
        piece = plan.memory_bytes // max(1, memory_bytes(shape, "dense", 1))
        if piece * PIECES < plan.tokens:
            return _too_large(shape, plan, "dense", memory_bytes(shape, "dense", plan.tokens), where, PIECES)
        piece = 0 if piece >= plan.tokens else piece
    stored = "kernels" if lowering in refused else form
    need = memory_bytes(shape, stored, plan.tokens, few, piece)
    if need > plan.memory_bytes:
        return _too_large(shape, plan, stored, need, where)
    step_bytes = weight_bytes(shape, lowering, plan.step)
    return FormChoice(lowering, form, f"{why}: {_moved(shape, plan)}", need, few, piece, step_bytes)


def _best(shape: Shape, plan: BuildPlan, refused: dict[str, str]) -> tuple[str, str]:
    """What `auto` takes, and why; `refused` has the reasons against what is no standard operator."""
    if not refused["native"] and plan.length <= NATIVE_TOKENS:
        return "native", "TensorRT's MoE layer has this activation on this GPU"
    default = kernel_defaults().get(plan.architectures[0], NONE) if plan.architectures else NONE
    if not refused["kernels"] and default.taken:
        return "kernels", f"moec's kernels are the default here ({default.origin})"
    slow = f"TensorRT's MoE layer is made for {NATIVE_TOKENS} new tokens a text, not {plan.length}"
    against = f"{refused['native'] or slow}; {refused['kernels'] or OFF + default.origin}"
    return _form(shape, plan), f"standard operators, since {against}"


def _form(shape: Shape, plan: BuildPlan, alone: bool = False) -> str:
    """The standard operators that suit a plan; one form for all sizes where it stands `alone`, as a proof."""
    few = _few(shape, plan)
    if plan.tokens <= few:
        return "gathered"
    return "either" if plan.step <= few and not alone else "dense"


def _few(shape: Shape, plan: BuildPlan) -> int:
    """The most tokens whose experts are gathered: where that pays, and as far as memory goes."""
    fixed, token = (memory_bytes(shape, "gathered", n) for n in (0, 1))
    return min(gathering_pays(shape), max(0, plan.memory_bytes - fixed) // (token - fixed))


def gathering_pays(shape: Shape) -> int:
    """The most tokens of a call whose gathered experts move no more bytes than all experts do; 0 where none do."""
    fixed, token = (weight_bytes(shape, "gathered", n) for n in (0, 1))
    return max(0, (weight_bytes(shape, "dense", 1) - fixed) // (token - fixed))


def weight_bytes(shape: Shape, form: str, tokens: int) -> int:
    """What a call moves of a block's weights, in bytes, scales of packed ones left out.

    `dense` reads every expert once; `native` and `kernels` read those that were chosen once; `gathered` reads, writes
    and reads again each token's own, and unpacks all before if they are packed. `either` is the smaller of two.
    """
    numbers = (shape.activation.rows_per_neuron + 1) * shape.inner * shape.hidden
    plain, stored = numbers * shape.item_bytes, numbers * shape.bits // 8 if shape.bits else numbers * shape.item_bytes
    if form == "dense":
        return shape.experts * stored
    if form in ("native", "kernels"):
        return min(shape.experts, tokens * shape.top_k) * stored
    if form == "either":
        return min(weight_bytes(shape, "gathered", tokens), weight_bytes(shape, "dense", tokens))
    return (shape.experts * (stored + plain) if shape.bits else 0) + COPIES * tokens * shape.top_k * plain


def _moved(shape: Shape, plan: BuildPlan) -> str:
    """The figures that decide, in words."""
    amounts = (_size(weight_bytes(shape, form, plan.step)) for form in ("gathered", "dense", "kernels"))
    tokens = f"{plan.step} token{'s' if plan.step > 1 else ''}"
    return "a call of {} moves {} of weights gathered, {} as all experts, {} at the least".format(tokens, *amounts)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"


def memory_bytes(shape: Shape, form: str, tokens: int, few: int = 0, piece: int = 0) -> int:
    """Bound of what a form's intermediates take for so many tokens: float32 copies of the mix, and packed weights
    unpacked if they are gathered. `few` and `piece` as of `FormChoice`; pieces take each other's memory."""
    rows, wide = shape.activation.rows_per_neuron, 4
    if form == "either":
        return max(memory_bytes(shape, "gathered", min(few, tokens)), memory_bytes(shape, "dense", tokens, 0, piece))
    if form == "kernels":
        return (
            tokens * shape.top_k * ((shape.inner + shape.hidden) * shape.item_bytes + 2 * wide)
            + 2 * wide * shape.experts
        )
    if form == "dense":
        return (piece or tokens) * shape.experts * (shape.inner * (rows + 1) * shape.item_bytes + 2 * wide)
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
    if shape.activation.cap or shape.activation.up_cap:
        return "moec's kernels have no soft caps"
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


def _too_large(shape: Shape, plan: BuildPlan, form: str, need: int, where: str, pieces: int = 1) -> Refusal:
    fixed = memory_bytes(shape, form, 0)
    fitting = pieces * ((plan.memory_bytes - fixed) // max(1, memory_bytes(shape, form, 1) - fixed))
    often = f", and {pieces} pieces of it do too" if pieces > 1 else ""
    reason = (
        f"the {form} form of a block needs {need / 2**30:.1f} GiB for {plan.tokens} tokens, more than the "
        f"{plan.memory_bytes / 2**30:.1f} GiB that it may take{often}"
    )
    return Refusal(
        reason,
        where,
        f"compile for {fitting} tokens a call or fewer (max_batch=…, max_sequence=…)"
        if fitting > 0
        else "give it more memory",
    )
