"""Models that are to become the experts of one: opened as the base was, and held to its form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.utils._pytree import tree_leaves

from moec.errors import MoecError
from moec.frontend.source import Source
from moec.pipeline.calibration import Calibration
from moec.program.program import Program
from moec.program.signature import Sample
from moec.weights.difference import first_difference
from moec.weights.lazy import Weight

HELD_OUT = 8  # one window in eight judges what the others made
_SYMBOL = re.compile(r"\b[su]\d+\b")  # a size that is known when the program runs
_PROBED = 64  # tokens whose texts are compared
_PROBE = "def f(x):\n    return {'a': [1, 2.5], \"b\": x}  # The quick brown fox, 12:30 -> Ærø\n"


@dataclass(frozen=True)
class MergeSource:
    """A model that becomes an expert.

    Attributes:
        program: the base's graph with its weights.
        text: inputs to fit on. held_out: inputs that judge.
    """

    program: Program
    text: list[Sample]
    held_out: list[Sample]


def name_of(model: str) -> str:
    """The last part of a folder's name or a hub id: how the calibration calls the model's text."""
    return Path(model).name or model


def open_sources(base: Program, models: Sequence[str], by: str) -> list[Program]:
    """The programs of models with the base's graph. Origins of their weights begin with the model's name.

    Args:
        base: captured from a `Source`. models: as the user named them. by: the pass, for errors.

    Raises:
        MoecError: M203 for a model of another form, function or vocabulary, M201 where models of the base's kind cannot
            be put together, else what opening it raises.
    """
    found = []
    for model in models:
        other = open_alike(base, model, by)
        _require_same_form(base, other, model)
        found.append(_with_weights(base, other, name_of(model)))
    return found


def open_alike(base: Program, model: str, by: str) -> Program:
    """A model that reads the base's tokens, opened as the base was and in its dtype; for the rest see
    `open_sources`."""
    source = base.original.source
    if not isinstance(source, Source):
        what = "the program does not know the model that it was captured from"
        raise MoecError("M203", what, by, "capture the base with moec.capture(folder)")
    _require_same_tokens(source, model)
    dtype = next(w.dtype for w in base.weights.values() if w.dtype.is_floating_point)
    return source.alike(model).capture(dtype)


def divided_text(text: Calibration, base: Program, hidden: int, by: str) -> tuple[list[Sample], list[Sample]]:
    """A model's text as inputs to fit on, and as others that judge.

    Args:
        hidden: how many numbers a router's row has. by: the pass, for errors.

    Raises:
        MoecError: M203 for a text that is too short.
    """
    fitted_on, held_out = text.divided(base.inputs, HELD_OUT, text.text.file)
    count = sum(sample["input_ids"].numel() for sample in fitted_on)
    if count < hidden:
        what = f"the text has {count} tokens to fit on, and a router's row {hidden} numbers"
        fix = f"give a longer text, or more of it with --calibration-tokens; {2 * hidden} tokens are enough"
        raise MoecError("M203", what, text.text.file or by, fix)
    return fitted_on, held_out


def _with_weights(base: Program, other: Program, name: str) -> Program:
    program, marked = base.clone(), dict[int, Weight]()
    for key in base.weights:
        weight = other.weights[key]
        own = replace(weight, origin=f"{name}/{weight.origin}", member=None)  # whose members are not marked
        program.weights[key] = marked.setdefault(id(weight), own)
    return program


def _require_same_form(base: Program, other: Program, model: str) -> None:
    forms = [{n: (list(w.shape), str(w.dtype)[6:]) for n, w in p.weights.items()} for p in (base, other)]
    wrong = next((n for n in (*forms[0], *forms[1]) if forms[0].get(n) != forms[1].get(n)), None)
    if wrong is not None:
        own, theirs = (f"{form[wrong][0]}" if wrong in form else "missing" for form in forms)
        what = f"{wrong} is {theirs} there and {own} in the base: fine-tunes of one model can be merged, no others"
        raise MoecError("M203", what, model, "leave it out, or give a fine-tune of the base")
    fixed = base.original.fixed & base.weights.keys()
    another = next((n for n in sorted(fixed) if first_difference(base.weights[n], other.weights[n])), None)
    another = another or _first_other_node(base, other)
    if another:
        what = f"it computes otherwise than the base: {another}"
        raise MoecError("M203", what, model, "compare both config.json: all but names has to be equal")


def _first_other_node(base: Program, other: Program) -> str:
    """The first operator that is another one there, by name, arguments, shape or dtype; empty where there is none. A
    model's weights and its stream are looked up by the base's names."""
    own, theirs = _written(base), _written(other)
    found = next((b for a, b in zip(own, theirs, strict=False) if a != b), "")
    return found[:120] or ("one graph is longer" if len(own) != len(theirs) else "")


def _written(program: Program) -> list[str]:
    """Each node as text: what it computes, and its value's form; symbols are numbered as they come."""
    symbols: dict[str, str] = {}

    def numbered(found: re.Match[str]) -> str:
        return symbols.setdefault(found[0], f"size{len(symbols)}")

    lines = []
    for node in program.graph.nodes:
        values = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        forms = [f"{str(v.dtype)[6:]}[{', '.join(map(str, v.shape))}]" for v in values]
        code = f"{node.name} = {node.target}{node.args}{node.kwargs or ''}: {' '.join(forms)}"
        lines.append(_SYMBOL.sub(numbered, code))
    return lines


def _require_same_tokens(base: Source, model: str) -> None:
    """Raise M203 where both have a tokenizer, and one reads a text otherwise."""
    own, theirs = (type(base).read_tokenizer(Path(text), text) for text in (base.text, model))
    if own is None or theirs is None:
        return
    tokens: list[int] = own.encode(_PROBE)
    same = theirs.encode(_PROBE) == tokens and _texts(own, base) == _texts(theirs, base)
    if not same:
        what = "its tokenizer gives other tokens than the base's: one vocabulary is needed for all experts"
        raise MoecError("M203", what, model, "merge fine-tunes that kept the base's tokenizer")


def _texts(tokenizer: object, base: Source) -> list[str]:
    domain = base.domains.get("input_ids")
    high = domain.high if domain else 0
    step = max(1, high // _PROBED)
    return [tokenizer.decode([token]) for token in range(0, high, step)]  # type: ignore[attr-defined]
