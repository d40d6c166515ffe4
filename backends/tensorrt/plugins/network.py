"""moec's own kernels in the place of a block's standard operators, one plugin a kernel, put into a network that the
ONNX parser has made.

Each kernel was compiled before (`chain`), for one GPU; what is known of it is a `ChainStep`. It becomes a plugin of
TensorRT's "quickly deployable" kind with an implementation ahead of time: TensorRT asks for PTX and for the sizes of
the launch as expressions of the inputs' shapes, and keeps both in the plan, which then runs without Python. Such a
plugin is one launch: input pointers, 32-bit integers and output pointers, no workspace; hence a chain of them. Nothing
here imports torch or Triton, and nothing here has run on a GPU.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moec.backends.tensorrt.gpu import Gpu
from moec.backends.tensorrt.plugins.packed_file import constants
from moec.backends.tensorrt.plugins.wiring import output_of, producer, shuffled, tensors_of
from moec.errors import MoecError

NAMESPACE = "moec"


@dataclass(frozen=True)
class Size:
    """A number that grows with the tokens T of a call: `(T * times // over + plus) * columns`."""

    times: int = 0
    over: int = 1
    plus: int = 0
    columns: int = 1

    def of(self, tokens: Any) -> Any:
        """Its value for so many tokens, an integer or one of TensorRT's expressions."""
        if not self.times:
            return self.plus * self.columns
        value = tokens * self.times if self.times != 1 else tokens
        value = value // self.over if self.over != 1 else value
        value = value + self.plus if self.plus else value
        return value * self.columns if self.columns != 1 else value


@dataclass(frozen=True)
class OutputTensor:
    """A tensor that a kernel writes: its name in the chain, dtype (`float16`) and shape."""

    name: str
    dtype: str
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class ChainStep:
    """One kernel of a chain, as data that an engine's folder keeps.

    Attributes:
        plugin: its name among TensorRT's plugins, of kernel and contents.
        kernel: entry of the PTX. ptx: file in the engine's folder.
        inputs: names in the chain, in the kernel's order. `ids`, `[T, K]`, is always one: T is read from it.
        numbers: the kernel's numbers. outputs: what it writes. Parameters are inputs, numbers, outputs.
        grid: programs along x and y. threads: of a program. shared_bytes: of a program.
    """

    plugin: str
    kernel: str
    ptx: str
    inputs: tuple[str, ...]
    numbers: tuple[Size, ...]
    outputs: tuple[OutputTensor, ...]
    grid: tuple[Size, ...]
    threads: int
    shared_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChainStep:
        """Read what `to_dict` gave."""
        outputs = tuple(OutputTensor(o["name"], o["dtype"], _sizes(o["shape"])) for o in data["outputs"])
        plain = {
            "inputs": tuple(data["inputs"]),
            "numbers": _sizes(data["numbers"]),
            "outputs": outputs,
            "grid": _sizes(data["grid"]),
        }
        return cls(**{**data, **plain})


def _sizes(found: Sequence[Mapping[str, int]]) -> tuple[Size, ...]:
    return tuple(Size(**size) for size in found)


def register(trt: Any, step: ChainStep, ptx: str) -> Any:
    """The plugin of a kernel, made known to TensorRT unless it is already: a function of its inputs for
    `add_plugin`."""
    plugin = importlib.import_module(f"{trt.__name__}.plugin")
    space = getattr(plugin.op, NAMESPACE, None)
    if space is None or not hasattr(space, step.plugin):
        name = f"{NAMESPACE}::{step.plugin}"
        plugin.register(name, lazy_register=True)(_description(trt, plugin, step))
        plugin.aot_impl(name)(_implementation(plugin, step, ptx))
    return getattr(getattr(plugin.op, NAMESPACE), step.plugin)


def _description(trt: Any, plugin: Any, step: ChainStep) -> Any:
    """What TensorRT asks for shapes and dtypes of outputs. It reads signatures, and annotations must be classes, not
    their names."""

    def describe(*inputs: Any) -> Any:
        tokens = _tokens(step, inputs)
        made = [
            plugin.from_shape_expr(tuple(size.of(tokens) for size in out.shape), getattr(trt, out.dtype))
            for out in step.outputs
        ]
        return tuple(made)

    _signed(describe, dict.fromkeys(step.inputs, plugin.TensorDesc), _several(plugin, step))
    return describe


def _implementation(plugin: Any, step: ChainStep, ptx: str) -> Any:
    """What TensorRT asks for the kernel: its name, PTX, launch and numbers. One tactic, and inputs as the network has
    them."""

    def implement(*given: Any) -> Any:
        tokens = _tokens(step, given)
        grid = [size.of(tokens) for size in (*step.grid, Size(plus=1))[:2]]
        launch = plugin.KernelLaunchParams(
            grid_x=grid[0], grid_y=grid[1], block_x=step.threads, shared_mem=step.shared_bytes
        )
        numbers = plugin.SymIntExprs(len(step.numbers))
        for n, size in enumerate(step.numbers):
            numbers[n] = plugin.SymInt32(size.of(tokens))
        return step.kernel, ptx, launch, numbers

    arguments = {**dict.fromkeys(step.inputs, plugin.TensorDesc), "outputs": _several(plugin, step), "tactic": int}
    _signed(implement, arguments, tuple[str, str, plugin.KernelLaunchParams, plugin.SymExprs])
    return implement


def _tokens(step: ChainStep, inputs: Sequence[Any]) -> Any:
    return inputs[step.inputs.index("ids")].shape_expr[0]


def _several(plugin: Any, step: ChainStep) -> Any:
    return tuple[(plugin.TensorDesc,) * len(step.outputs)]  # type: ignore[misc]  # a type of as many as there are outputs


def _signed(function: Any, arguments: Mapping[str, Any], result: Any) -> None:
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
        for name, kind in arguments.items()
    ]
    function.__signature__ = inspect.Signature(parameters, return_annotation=result)


def demand_gpu_of(blocks: Sequence[Mapping[str, Any]], gpu: Gpu | None) -> None:
    """Raise M302 where the GPU here is not the one that the kernels of these blocks were compiled for."""
    others = sorted({block["sm"] for block in blocks} - {gpu.sm if gpu else None})
    if gpu and others:
        what = f"the kernels of this engine were compiled for sm{others[0]}, and the GPU here is sm{gpu.sm}"
        raise MoecError("M302", what, gpu.name, "compile again here, or run on that GPU's machine")


def splice(trt: Any, network: Any, blocks: Sequence[Mapping[str, Any]], folder: Path) -> list[Any]:
    """Let chains of plugins compute the output of every one of these blocks.

    Args:
        trt: the library.
        network: as parsed; changed in place.
        blocks: `kernels` of facts of `moe.lower_experts`, with `steps`, see `chain.compile_chains`.
        folder: of the engine, where the PTX files and packed weights are.

    Returns:
        What must outlive the build: the layers, and pages of the file of packed weights.

    Raises:
        MoecError: M208 when the network lacks a tensor of a block, or the library gives no layer.
    """
    return [needed for block in blocks for needed in _splice(trt, network, block, folder)]


def _splice(trt: Any, network: Any, block: Mapping[str, Any], folder: Path) -> list[Any]:
    packed, layers = constants(trt, network, block["packed"], folder)
    known = _ends(trt, network, block) | packed
    for step in map(ChainStep.from_dict, block["steps"]):
        operator = register(trt, step, (folder / step.ptx).read_text())
        layer = network.add_plugin(operator(*(known[name] for name in step.inputs)), aot=True)
        if layer is None:
            raise MoecError(
                "M208", f"the library takes no plugin {step.plugin}", str(block["y"]), "take lowering=dense or gathered"
            )
        known |= {made.name: layer.get_output(n) for n, made in enumerate(step.outputs)}
        layers.append(layer)
    producer(network, block["y"]).set_input(0, known["out"])
    return layers


def _ends(trt: Any, network: Any, block: Mapping[str, Any]) -> dict[str, Any]:
    """The chain's tensors that the network has already: tokens and choices as matrices, and the weights."""
    by_role = {role: output_of(name) for role, name in block["weights_of"].items()}
    names = {name: str(block[name]) for name in ("x", "ids", "weights")} | by_role
    tensors = tensors_of(network, [*names.values(), str(block["y"])], "the plugins")
    x, ids, weights = (
        shuffled(network, tensors[names[name]], (-1, block[width]))
        for name, width in (("x", "hidden"), ("ids", "top_k"), ("weights", "top_k"))
    )
    ids, weights = (network.add_cast(t, d).get_output(0) for t, d in ((ids, trt.int32), (weights, trt.float32)))
    return {"x": x, "ids": ids, "route_weights": weights, **{role: tensors[name] for role, name in by_role.items()}}
