"""Captures, kept from one compile to the next in the cache of `moec.files.kept`: reading one takes a fifteenth of the
time of making it.

Kept is the graph with what the capture learnt of it; its weights are those of the model that is opened now, by name. A
capture does not depend on their numbers, which torch.export never sees, and its key holds all that it does depend on:
the model's code and settings, names, shapes and dtypes of its tensors, which of them are one, and how it was captured.
What is read is plain data, never a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from moec.files import kept
from moec.frontend.export import capture, import_export
from moec.frontend.fingerprint import fingerprint, tensor_forms
from moec.frontend.plain_graph import GraphReader, plain_graph
from moec.frontend.plain_sizes import NotPlainError, Plain
from moec.program.attributes import attach
from moec.program.conditions import Assumptions
from moec.program.original import Original, OutputForm, Place
from moec.program.program import Program
from moec.program.signature import Input
from moec.weights.lazy import Weight, from_tensor
from moec.weights.remembered import code_key, keep, recall

FACTS = "facts"
_MOST_BYTES = 16 * 2**20  # of the tensors that a graph makes of literals


@dataclass(frozen=True)
class Kept:
    """A capture that was kept.

    Attributes:
        program: with the weights of the model that is opened now.
        note: what the source wrote beside it.
    """

    program: Program
    note: str


def capture_key(
    model: nn.Module,
    weights: Mapping[str, Weight],
    samples: Mapping[str, Tensor],
    dynamic: Mapping[str, Sequence[str | int | None]],
    *what: Any,
) -> str:
    """The hash of all that a capture depends on: moec's and torch's code, the forms of the model's tensors and of the
    samples, and `what`: the model's own code and settings, by their `repr`."""
    inputs = [(name, tuple(value.shape), value.dtype, value.device.type) for name, value in samples.items()]
    return code_key("capture", list(tensor_forms(model)), _weight_forms(weights), inputs, dict(dynamic), *what)


def _weight_forms(weights: Mapping[str, Weight]) -> list[Any]:
    first: dict[int, str] = {}
    return [(n, first.setdefault(id(w), n), w.shape, w.dtype, w.coded and w.coded.kind) for n, w in weights.items()]


def kept_or_captured(
    module: nn.Module,
    samples: Mapping[str, Tensor],
    dynamic: Mapping[str, Sequence[str | int | None]],
    text: str,
    code: Mapping[str, str],
) -> tuple[Program, str]:
    """The program of a module that code in files made, and the key that it was recalled from, empty where it was
    captured now. See `moec.frontend.export.capture` for the arguments, and for what is raised.

    Args:
        text: how the module was named. code: the hashes of its files.
    """
    try:
        key = capture_key(module, {}, samples, dynamic, text, dict(code), fingerprint(module))
    except NotPlainError:
        return capture(module, samples, dynamic, source=text), ""
    found = recall_capture(key, text, {}, module)
    if found:
        return found.program, key
    program = capture(module, samples, dynamic, source=text)
    keep_capture(key, program, {}, module)
    return program, ""


# ---------------------------------------------------------------------- keeping
def keep_capture(key: str, program: Program, weights: Mapping[str, Weight], model: nn.Module, note: str = "") -> bool:
    """Keep a program that was captured just now; whether it is kept. What cannot be read back as the same is not.

    Args:
        weights: those that were given by name; others are the model's own tensors.
        note: comes back with the program.
    """
    if kept.folder() is None:
        return False
    try:
        facts, constants = _plain(program, weights, model)
        text = json.dumps({**facts, "note": note})
        again = _program(json.loads(text), constants, program.source, weights, model)
        same = _plain(again, weights, model)[0] == facts and again.text() == program.text()
    except (NotPlainError, ValueError, LookupError, TypeError, AttributeError):
        return False
    content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return same and keep(key, {FACTS: content, **constants})


def _plain(
    program: Program, weights: Mapping[str, Weight], model: nn.Module
) -> tuple[dict[str, Plain], dict[str, Tensor]]:
    names, constants = {id(w): n for n, w in reversed(list(weights.items()))}, dict[str, Tensor]()
    first: dict[int, str] = {}
    origins: dict[str, list[str]] = {}
    for name, weight in program.weights.items():
        if first.setdefault(id(weight), name) != name:
            continue
        if id(weight) in names:
            origins[name] = ["weight", name if weights.get(name) is weight else names[id(weight)]]
        elif _form(_tensor_of(model, name)) == (weight.shape, weight.dtype):
            origins[name] = ["model", name]
        else:
            origins[name], constants[name] = ["constant", name], weight.load().clone()
    if sum(value.nbytes for value in constants.values()) > _MOST_BYTES:
        raise NotPlainError("its constants are large")
    facts = {
        "graph": plain_graph(program.graph),
        "weights": {name: first[id(weight)] for name, weight in program.weights.items()},
        "origins": origins,
        "inputs": [[i.name, str(i.dtype)[6:], list(i.shape)] for i in program.inputs],
        "outputs": list(program.outputs),
        "assumptions": program.assumptions.to_plain(),
        "edges": list(program.edges),
        "fixed": sorted(program.original.fixed),
        "form": _plain_form(program.original.form),
    }
    return facts, constants


def _tensor_of(model: nn.Module, name: str) -> Any:
    """A model's tensor by its dotted name; None where it has none, or none with numbers."""
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, Tensor) and value.device.type != "meta" else None


def _form(value: Any) -> Any:
    return None if value is None else (tuple(value.shape), value.dtype)


def _plain_form(form: OutputForm | None) -> Plain:
    if form is None:
        return None
    leaves = [[leaf.output] if isinstance(leaf, Place) else leaf for leaf in form.leaves]
    if not all(leaf is None or isinstance(leaf, bool | int | float | str | list) for leaf in leaves):
        raise NotPlainError("it returns something that is no tensor and no number")
    try:
        return [pytree.treespec_dumps(form.spec), leaves]
    except Exception as error:  # a class that torch does not know by name
        raise NotPlainError("the form of what it returns") from error


# ---------------------------------------------------------------------- reading
def recall_capture(key: str, source: str, weights: Mapping[str, Weight], model: nn.Module) -> Kept | None:
    """The capture that is kept under a key, as the model that is opened now has it; None where none is, or a broken
    one, which is removed.

    Args:
        source: as `moec.frontend.export.capture` takes it. weights, model: of the model that would be captured.
    """
    found = recall(key)
    if found is None:
        return None
    import_export()
    try:
        facts = json.loads(found.pop(FACTS).numpy().tobytes())
        return Kept(_program(facts, found, source, weights, model), facts["note"])
    except Exception:  # whole, and yet no capture: not ours
        kept.remove(key)
        return None


def _program(
    facts: Mapping[str, Plain],
    constants: Mapping[str, Tensor],
    source: str,
    weights: Mapping[str, Weight],
    model: nn.Module,
) -> Program:
    def origin(name: str) -> Weight:
        kind, of = facts["origins"][name]
        return weights[of] if kind == "weight" else from_tensor(constants[of] if kind == "constant" else own(of), name)

    def own(name: str) -> Tensor:
        value: Tensor = _tensor_of(model, name)
        return value

    made = {name: origin(name) for name in facts["origins"]}
    table = {name: made[first] for name, first in facts["weights"].items()}
    root = nn.Module()
    for name, weight in table.items():
        attach(root, name, weight.meta())
    inputs = tuple(Input(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in facts["inputs"])
    assumed = Assumptions.of_plain(facts["assumptions"])
    graph = GraphReader(facts["graph"]).graph()
    program = Program(fx.GraphModule(root, graph), table, inputs, tuple(facts["outputs"]), source)
    program.conditions, program.values, program.edges = assumed.sizes, assumed.values, tuple(facts["edges"])
    program.original = Original(_form_of(facts["form"]), frozenset(facts["fixed"]))
    program.check()
    return program


def _form_of(plain: Plain) -> OutputForm | None:
    if plain is None:
        return None
    spec, leaves = plain
    return OutputForm(
        pytree.treespec_loads(spec), tuple(Place(leaf[0]) if isinstance(leaf, list) else leaf for leaf in leaves)
    )
