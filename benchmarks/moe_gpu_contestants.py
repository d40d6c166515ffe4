"""What `moe_gpu.py` compares: one mixture-of-experts block, and every way to run it on a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.dialect import Activation, Routing, moe, route_reference
from moec.dialect.experts import dense_expert, experts_reference
from moec.kernels import dispatch, launch, tuning
from moec.kernels.ahead import compile_ahead
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import recording

Call = Callable[[Tensor], Tensor]
SMS = (80, 89, 90, 100, 120)


@dataclass(frozen=True)
class Shape:
    """A block of a known model. inner: hidden neurons of an expert; gpt-oss's has biases and a clamped gate.

    turned: its matrices stand as `[E, in, out]`, as transformers keeps gpt-oss's, and are taken as views.
    """

    title: str
    experts: int
    hidden: int
    inner: int
    routing: Routing
    rule: Activation = field(default_factory=Activation)
    biases: bool = False
    turned: bool = False


SHAPES = {
    "mixtral": Shape("Mixtral-8x7B", 8, 4096, 14336, Routing(2)),
    "qwen3": Shape("Qwen3-30B-A3B", 128, 2048, 768, Routing(8)),
    "gpt-oss": Shape(
        "gpt-oss-120b",
        128,
        2880,
        2880,
        Routing(4, combine="softmax"),
        Activation(alpha=1.702, beta=1.0, limit=7.0),
        biases=True,
        turned=True,
    ),
    "deepseek": Shape(
        "DeepSeek-V3",
        256,
        7168,
        2048,
        Routing(8, "sigmoid", groups=8, top_groups=4, group_score="top2", scale=2.5, epsilon=1e-20),
    ),
}
TOYS = {
    "mixtral": Shape("toy Mixtral", 4, 64, 64, Routing(2)),
    "gpt-oss": Shape(
        "toy gpt-oss",
        6,
        40,
        24,
        Routing(2, combine="softmax"),
        Activation(alpha=1.702, beta=1.0, limit=7.0),
        biases=True,
        turned=True,
    ),
}


class Block:
    """Weights of one block on one device. bits: 16, or 4 with groups of 128 (or what divides the widths)."""

    def __init__(self, shape: Shape, bits: int, device: str, dtype: torch.dtype) -> None:
        self.shape, self.bits, self.device, self.dtype = shape, bits, device, dtype
        self.generator = None if device == "meta" else torch.Generator(device).manual_seed(0)
        e, h, i = shape.experts, shape.hidden, shape.inner
        self.router, self.router_bias = self.draw(e, h) / h**0.5, torch.zeros(e, device=device, dtype=dtype)
        self.w_in, self.w_out = self.matrix(e, 2 * i, h), self.matrix(e, h, i)
        self.b_in, self.b_out = (self.draw(e, 2 * i) * 0.1, self.draw(e, h) * 0.1) if shape.biases else (None, None)

    def skew(self) -> None:
        """From now on the n-th expert is liked as Zipf has it, through the router's bias; in place, so that contestants
        see it."""
        popular = -torch.arange(1, self.shape.experts + 1, device=self.device, dtype=torch.float32).log()
        self.router_bias.copy_(popular - popular.mean())

    def draw(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, device=self.device, dtype=self.dtype)

    def matrix(self, experts: int, rows: int, depth: int) -> Tensor | ExpertCodes:
        if self.bits == 16:
            shape = (experts, depth, rows) if self.shape.turned else (experts, rows, depth)
            made = self.draw(*shape).mul_(depth**-0.5)
            return made.mT if self.shape.turned else made
        group = next(g for g in (128, 64, 32, 16, 8) if depth % g == 0)
        values = torch.randint(
            0, 256, (experts, rows, depth // 2), generator=self.generator, device=self.device, dtype=torch.uint8
        )
        scale = torch.rand(experts, rows, depth // group, generator=self.generator, device=self.device) + 0.5
        return ExpertCodes(values, (scale * 0.2 * depth**-0.5).to(self.dtype))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Plain PyTorch's; float32, as every implementation has it."""
        weights, ids = route_reference(
            F.linear(x.float(), self.router.float(), self.router_bias.float()), None, self.shape.routing
        )
        return weights, ids

    def reference(self, x: Tensor, exact: bool) -> Tensor:
        """The block with experts in float64 if `exact`, else in its own dtype, one expert after the other."""
        weights, ids = self.route(x)
        dtype = torch.float64 if exact else self.dtype
        return experts_reference(
            x.to(dtype), ids, weights, lambda e, rows: self.expert(e, rows, dtype), self.shape.experts
        )

    def expert(self, e: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        own = [
            w[e] if isinstance(w, Tensor) else ExpertCodes(w.values[e : e + 1], w.scale[e : e + 1]).unpacked()[0]
            for w in (self.w_in, self.w_out)
        ]
        bias = [None if b is None else b[e].to(dtype) for b in (self.b_in, self.b_out)]
        return F.linear(self.shape.rule(F.linear(rows, own[0].to(dtype), bias[0])), own[1].to(dtype), bias[1])

    def plain(self) -> tuple[Tensor, Tensor]:
        return tuple(w if isinstance(w, Tensor) else w.unpacked() for w in (self.w_in, self.w_out))  # type: ignore[return-value]

    def bytes_read(self, x: Tensor) -> int:
        """The least that has to be moved: the chosen experts' weights once, the router, the tokens in and out."""
        chosen = len(self.route(x)[1].unique())
        each = sum(t.nbytes for w in (self.w_in, self.w_out) for t in (tensors_of(w))) // self.shape.experts
        return chosen * each + self.router.nbytes + 2 * x.nbytes

    def flop(self, x: Tensor) -> int:
        return 2 * len(x) * self.shape.routing.top_k * 3 * self.shape.hidden * self.shape.inner


def tensors_of(weight: Tensor | ExpertCodes) -> list[Tensor]:
    return [weight] if isinstance(weight, Tensor) else [weight.values, weight.scale]


# ---------------------------------------------------------------------- contestants: each returns a function of x
def ours(block: Block, resident: int | None = None) -> Call:
    shape = block.shape
    given = block.router, block.router_bias, None, block.w_in, block.w_out, block.b_in, block.b_out
    return lambda x: launch.moe(x, *given, routing=shape.routing, rule=shape.rule, resident=resident)


def ours_persistent(block: Block) -> Call:
    """The same tiles by one program a multiprocessor."""
    return ours(block, resident=1)


def ours_compiled(block: Block) -> Call:
    """`torch.compile` of the operator: as a node in somebody's graph. Without a GPU the CPU's tensors go to the kernels
    too."""
    if isinstance(block.w_in, ExpertCodes):
        raise TypeError("the operator takes unpacked weights")
    if block.device == "cpu":
        moe.register_kernel("cpu")(dispatch.moe)
    rule = {**block.shape.routing.arguments(), **block.shape.rule.arguments()}
    given = block.router, block.router_bias, None, block.w_in, block.w_out, block.b_in, block.b_out
    run = lambda x: torch.ops.moec.moe(x, *given, **rule)  # noqa: E731
    return torch.compile(
        run, dynamic=True, fullgraph=True, backend="aot_eager" if block.device == "cpu" else "inductor"
    )


def for_tuning(block: Block) -> tuning.BlockExperts:
    """The block as `moec.kernels.tuning` takes it."""
    return tuning.BlockExperts(
        block.w_in, block.w_out, block.b_in, block.b_out, block.shape.rule, block.shape.routing.top_k, block.dtype
    )


def eager(block: Block) -> Call:
    """transformers' default until 5.0 and the dialect's reference: a loop over the experts that were chosen."""
    one = dense_expert(*block.plain(), block.b_in, block.b_out, block.shape.rule)

    def run(x: Tensor) -> Tensor:
        weights, ids = block.route(x)
        return experts_reference(x, ids, weights, one, block.shape.experts)

    return run


def plain_grouped(block: Block) -> Call:
    """Sort, `torch._grouped_mm` twice, and a sum: what PyTorch alone offers."""
    w_in, w_out = block.plain()
    shape, rule = block.shape, block.shape.rule

    def run(x: Tensor) -> Tensor:
        weights, ids = block.route(x)
        order = ids.flatten().argsort(stable=True)
        chosen = ids.flatten()[order]
        ends = torch.searchsorted(chosen, torch.arange(shape.experts, device=x.device), right=True).to(torch.int32)
        hidden = torch._grouped_mm(x[order // ids.shape[1]], w_in.mT, offs=ends)
        hidden = rule(hidden if block.b_in is None else hidden + block.b_in[chosen])
        result = torch._grouped_mm(hidden, w_out.mT, offs=ends)
        result = result if block.b_out is None else result + block.b_out[chosen]
        weighted = torch.empty_like(result).index_copy_(0, order, result * weights.flatten()[order, None].to(x.dtype))
        return weighted.view(len(x), -1, shape.hidden).sum(1)

    return run


def transformers_experts(implementation: str) -> Callable[[Block], Call]:
    """transformers' own experts module with one of its implementations."""

    def make(block: Block) -> Call:
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        shape, (w_in, w_out) = block.shape, block.plain()
        config: Any = SimpleNamespace(
            num_experts=shape.experts,
            num_local_experts=shape.experts,
            hidden_size=shape.hidden,
            moe_intermediate_size=shape.inner,
            intermediate_size=shape.inner,
            hidden_act="silu",
            swiglu_alpha=shape.rule.alpha,
            swiglu_limit=shape.rule.limit,
            _experts_implementation=implementation,
        )
        with torch.device("meta"):
            module = (GptOssExperts if shape.biases else Qwen3MoeExperts)(config)
        state = {"gate_up_proj": w_in, "down_proj": w_out}
        if shape.biases:
            turn = lambda t: torch.stack(t.chunk(2, 1), 2).flatten(1, 2)  # noqa: E731  # gate and up rows in turn
            state = {"gate_up_proj": turn(w_in).mT.contiguous(), "down_proj": w_out.mT.contiguous()}
            state |= {"gate_up_proj_bias": turn(block.b_in), "down_proj_bias": block.b_out}  # type: ignore[dict-item]
        for name, value in state.items():
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        return lambda x: module(x, *reversed([t.to(x.dtype) if t.is_floating_point() else t for t in block.route(x)]))

    return make


def compiled(block: Block) -> Call:
    return torch.compile(plain_grouped(block), dynamic=True)


class Module(nn.Module):
    """The block as a model that moec compiles; packed weights stay packed."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.rule = {**block.shape.routing.arguments(), **block.shape.rule.arguments()}
        for name in ("w_in", "w_out", "router", "router_bias"):
            value = getattr(block, name)
            for n, tensor in enumerate(tensors_of(value)):
                self.register_buffer(
                    f"{name}_{n}", tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu()
                )

    def weight(self, name: str) -> Tensor:
        first = getattr(self, f"{name}_0")
        if first.dtype == torch.uint8:
            return torch.ops.moec.dequantize(first, getattr(self, f"{name}_1"), None, bits=4)  # type: ignore[no-any-return]
        return first

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight("w_in"), self.weight("w_out")
        return torch.ops.moec.moe(x, self.router_0, self.router_bias_0, None, *weights, **self.rule)  # type: ignore[no-any-return]


def onnxruntime(block: Block) -> Call:
    """ONNX Runtime's MoE or QMoE through `moec.compile`, in float16; its tensors stay on the GPU."""
    import moec
    from moec.backends.onnxruntime.session.opening import open_session
    from moec.targets.target import Target

    folder, device = Path(tempfile.mkdtemp(prefix="moec-bench-")) / "engine", block.device
    target = "onnxruntime:cuda,precision=fp16" if device == "cuda" else "onnxruntime"
    moec.compile(
        Module(block).float(),
        out=folder,
        target=target,
        inputs={"x": torch.zeros(3, block.shape.hidden)},
        dynamic={"x": ("tokens", None)},
        verify="off",
    )
    session = open_session(next(folder.rglob("*.onnx")), Target.parse(target))  # as engines are opened: without TF32
    dtype = {"tensor(float16)": torch.float16, "tensor(float)": torch.float32}[session.get_inputs()[0].type]
    given, wanted = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(x: Tensor) -> Tensor:
        x = x.to(dtype).contiguous()
        out, binding, numbers = torch.empty_like(x), session.io_binding(), {torch.float16: 10, torch.float32: 1}
        for bind, name, tensor in ((binding.bind_input, given, x), (binding.bind_output, wanted, out)):
            bind(name, device, 0, numbers[dtype], tuple(tensor.shape), tensor.data_ptr())
        session.run_with_iobinding(binding)
        return out

    return run


CONTESTANTS: dict[str, Callable[[Block], Call]] = {
    "moec": ours,
    "moec persistent": ours_persistent,
    "moec compiled": ours_compiled,
    "eager": eager,
    "torch._grouped_mm": plain_grouped,
    "torch.compile": compiled,
    "transformers grouped_mm": transformers_experts("grouped_mm"),
    "transformers batched_mm": transformers_experts("batched_mm"),
    "onnxruntime": onnxruntime,
}


def resources(tokens: int = 4096) -> list[str]:
    """Registers a thread and KiB of shared memory a program of our kernels, compiled for five GPU generations; needs no
    GPU.

    For many tokens also the persistent kernels; bytes that a thread spills are added where there are any.
    """
    lines = [
        "| kernel: registers, KiB, warps | " + " | ".join(f"sm_{sm}" for sm in SMS) + " |",
        "|---|" + "---|" * len(SMS),
    ]
    for shape in (SHAPES["mixtral"], SHAPES["gpt-oss"]):
        for bits, count, resident in (
            (16, 1, 0),
            (16, tokens, 0),
            (16, tokens, 1),
            (4, 1, 0),
            (4, tokens, 0),
            (4, tokens, 1),
        ):
            cells: dict[str, list[str]] = {}
            for sm in SMS:
                block = Block(shape, bits, "meta", torch.bfloat16)
                with recording(sm) as found:
                    ours(block, resident)(torch.empty(count, shape.hidden, dtype=torch.bfloat16, device="meta"))
                for start in found.launches:
                    if resident and "persistent" not in start.kernel.__name__:
                        continue
                    built = compile_ahead(start, sm)
                    spilled = f", spills {built.spilled_bytes} bytes" if built.spilled_bytes else ""
                    cells.setdefault(built.name, []).append(
                        f"{built.registers}, {built.shared_bytes / 1024:.0f}, {built.warps}{spilled}"
                    )
            lines += [
                f"| {shape.title}, {bits}-bit, {count} tokens: {name} | " + " | ".join(values) + " |"
                for name, values in cells.items()
            ]
    return lines
