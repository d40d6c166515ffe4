"""A process with TensorRT's real bindings on empty libraries: plugins are registered, made and asked as the builder
does it.

Only what the builder itself would bring stands in: its registry, its tensors, and its expressions of shapes, which are
numbers here.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from moec.backends.tensorrt.plugins.network import ChainStep, register, splice


class Number:
    """A shape's expression; not constant, as those of dynamic shapes are not."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return False


class Numbers:
    """Makes expressions."""

    def __init__(self, trt: Any) -> None:
        do = trt.DimensionOperation
        self.rules = {
            do.SUM: lambda a, b: a + b,
            do.PROD: lambda a, b: a * b,
            do.SUB: lambda a, b: a - b,
            do.FLOOR_DIV: lambda a, b: a // b,
        }

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, rule: Any, a: Number, b: Number) -> Number:
        return Number(self.rules[rule](a.value, b.value))


class Tensor:
    """A tensor of the network."""

    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


class Registry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        self.creators[namespace, creator.name] = creator

    def get_creator(self, name: str, _version: str, namespace: str) -> Any:
        return self.creators[namespace, name]


class Network:
    """Holds tensors under the parser's names, and asks plugins that are added for everything that the builder asks."""

    def __init__(self, trt: Any, tokens: int, inputs: list[Tensor]) -> None:
        self.trt, self.tokens, self.inputs, self.asked = trt, tokens, inputs, []
        self.last = Layer([Tensor("y", inputs[0].dtype, inputs[0].shape)])
        self.num_inputs, self.num_layers = len(inputs), 1

    def get_input(self, n: int) -> Tensor:
        return self.inputs[n]

    def get_layer(self, _n: int) -> Layer:
        return self.last

    def add_shuffle(self, tensor: Tensor) -> Layer:
        return Layer([Tensor("", tensor.dtype, (-1, tensor.shape[-1]))])

    def add_cast(self, tensor: Tensor, dtype: Any) -> Layer:
        return Layer([Tensor("", dtype, tensor.shape)])

    def add_constant(self, shape: tuple[int, ...], weights: Any) -> Layer:
        assert isinstance(weights, self.trt.Weights) and weights.size == math.prod(shape)
        return Layer([Tensor("", weights.dtype, shape)])

    def add_plugin(self, function: Any, aot: bool) -> Layer:
        assert aot
        inputs, shapes, plugin = function(self.trt.QuickPluginCreationRequest.STRICT_AOT)
        assert shapes == [] and isinstance(plugin, self.trt.IPluginV3QuickAOTBuild)
        outputs = self._outputs(plugin, inputs)
        self.asked.append(self._launch(plugin, inputs, outputs))
        return Layer(outputs)

    def _outputs(self, plugin: Any, inputs: list[Tensor]) -> list[Tensor]:
        types = plugin.get_output_data_types([t.dtype for t in inputs], [len(t.shape) for t in inputs])
        sizes = [[Number(self.tokens if n < 0 else n) for n in t.shape] for t in inputs]
        shapes = plugin.get_output_shapes(sizes, [], Numbers(self.trt))
        return [Tensor("", dtype, tuple(n.value for n in shape)) for dtype, shape in zip(types, shapes, strict=True)]

    def _launch(self, plugin: Any, inputs: list[Tensor], outputs: list[Tensor]) -> dict[str, Any]:
        described = [self._described(t) for t in (*inputs, *outputs)]
        plugin.configure_plugin(described[: len(inputs)], described[len(inputs) :])
        formats = plugin.get_supported_format_combinations(described, len(inputs))
        assert [f.type for f in formats] == [t.dtype for t in (*inputs, *outputs)] and plugin.get_valid_tactics() == []
        plugin.set_tactic(0)
        launch, numbers = Blank(), Setter()
        sizes = [[Number(self.tokens if n < 0 else n) for n in t.shape] for t in inputs]
        plugin.get_launch_params(sizes, described, len(inputs), launch, numbers, Numbers(self.trt))
        plain = [d.desc for d in described]
        name, ptx = plugin.get_kernel(plain[: len(inputs)], plain[len(inputs) :])
        entry = ptx.decode()[ptx.index(b".entry") :]
        return {
            "kernel": name,
            "parameters": entry[: entry.index(")")].count(".param"),
            "target": re.findall(rb"\.target (\w+)", ptx)[0].decode(),
            "inputs": len(inputs),
            "outputs": [[str(t.dtype).rpartition(".")[2], list(t.shape)] for t in outputs],
            "numbers": [numbers.values[n] for n in range(numbers.nbSymExprs)],
            "launch": [vars(launch)[f"{what}_{axis}"] for what in ("grid", "block") for axis in "xyz"],
            "shared": launch.shared_mem,
        }

    def _described(self, tensor: Tensor) -> Any:
        known = self.trt.DynamicPluginTensorDesc()
        known.desc.type, known.desc.format = tensor.dtype, self.trt.TensorFormat.LINEAR
        known.desc.dims = known.min = known.opt = known.max = tuple(self.tokens if n < 0 else n for n in tensor.shape)
        return known


class Layer:
    def __init__(self, outputs: list[Tensor]) -> None:
        self.outputs, self.num_outputs, self.given = outputs, len(outputs), None

    def get_output(self, n: int) -> Tensor:
        return self.outputs[n]

    def set_input(self, n: int, tensor: Tensor) -> None:
        assert n == 0
        self.given = tensor


class Blank:
    """Takes any attribute."""

    shared_mem: int


class Setter:
    def __init__(self) -> None:
        self.nbSymExprs, self.values = 0, {}

    def __setitem__(self, n: int, value: int) -> None:
        self.values[n] = value


def load() -> tuple[Any, Any]:
    """The bindings, and their plugins' module, with what only a builder could make replaced."""
    trt = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = trt
    plugin = importlib.import_module("tensorrt_bindings.plugin")
    registry = Registry()
    trt.IDimensionExpr, trt.ITensor, trt.DimsExprs, trt.get_plugin_registry = (
        Number,
        Tensor,
        lambda n: [None] * n,
        lambda: registry,
    )
    sys.modules["tensorrt_bindings.plugin._tensor"].SymExprImpl = lambda expression: expression._expr.value
    return trt, plugin


def chain(trt: Any, block: dict[str, Any], folder: str, tokens: int) -> dict[str, Any]:
    """Every plugin of one block, asked for so many tokens."""
    inputs = [Tensor(name, getattr(trt, dtype), tuple(shape)) for name, (dtype, shape) in block["tensors"].items()]
    network = Network(trt, tokens, inputs)
    splice(trt, network, [block], Path(folder))
    assert network.last.given is not None
    return {"asked": network.asked, "last": list(network.last.given.shape)}


def complaint(trt: Any, data: dict[str, Any], given: int) -> str:
    """What the validators say when a plugin is registered and called with so many inputs; empty when nothing."""
    try:
        step = ChainStep.from_dict(data)
        register(trt, step, "")(*(Tensor("", trt.float32, (1,)) for _ in range(given)))
    except ValueError as error:
        return str(error)
    return ""


def signatures(plugin: Any, names: list[str]) -> dict[str, list[str]]:
    """Arguments of functions and classes of the plugins' module, as the list of signatures writes them."""
    found = {}
    for name in names:
        thing = getattr(plugin, name)
        if callable(thing):
            parameters = list(inspect.signature(thing).parameters.values())
            found[name] = [" ".join(p.name + ("" if p.default is p.empty else "=") for p in parameters)]
    return found


def main() -> None:
    request = json.load(sys.stdin)
    trt, plugin = load()
    if request["ask"] == "chain":
        answer: dict[str, Any] = {str(t): chain(trt, request["block"], request["folder"], t) for t in request["tokens"]}
    elif request["ask"] == "said":
        answer = {"said": [complaint(trt, step, given) for step, given in request["steps"]]}
    else:
        answer = {
            "plugin": signatures(plugin, request["names"]),
            "add_plugin": trt.INetworkDefinition.add_plugin.__doc__,
            "version": trt.__version__,
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
