"""States that a model's modules keep in themselves from call to call, and not in the cache (RecurrentGemma): each is
handed to its module before a call, and taken away after it, so that a call leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from moec.errors import MoecError
from moec.huggingface.operators.padding import PADDING, Padding
from moec.program.decoder_signature import past_name

_KEPT = {"conv1d_state": "conv_state", "recurrent_states": "recurrent_state"}  # attribute -> kind of state
_WAY_OUT = "compile its forward alone with --no-cache"
Place = tuple[nn.Module, str]


def state_in(path: str, attribute: str) -> str:
    """What a signature calls the state in an attribute of the module at a path; empty for one that is not known."""
    number = next((part for part in path.split(".") if part.isdigit()), None)
    return past_name(int(number), _KEPT[attribute]) if attribute in _KEPT and number is not None else ""


def places_in_modules(model: Any) -> dict[str, Place]:
    """Where the modules of a model keep states, by the names of a signature.

    Raises:
        MoecError: M206 for two states of one name, as two stacks of layers have them.
    """
    found: dict[str, tuple[str, Place]] = {}
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        for attribute in [name for name in vars(module) if name in _KEPT]:
            name = state_in(path, attribute)
            if name in found:
                what = f"both {found[name][0]!r} and {path!r} keep a state that is {name} in a signature"
                raise MoecError("M206", what, f"{path}.{attribute}", _WAY_OUT)
            if name:
                found[name] = path, (module, attribute)
    return {name: place for name, (_, place) in found.items()}


@contextmanager
def held_in(places: Mapping[str, Place], states: Mapping[str, Tensor], padding: Padding | None) -> Iterator[None]:
    """Let modules hold these states, by the names of a signature, and adapted ones know of `padding`. What is there
    afterwards is the state after the call, see `taken_from`."""
    for name, value in states.items():
        module, attribute = places[name]
        setattr(module, attribute, value)
        setattr(module, PADDING, padding)
    try:
        yield
    finally:
        for name in states:
            module, attribute = places[name]
            setattr(module, attribute, None)
            vars(module).pop(PADDING, None)  # once for a module of two states


def taken_from(places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The states that modules hold now, by the names of a signature."""
    held = {name: getattr(module, attribute) for name, (module, attribute) in places.items()}
    return {name: value for name, value in held.items() if value is not None}
