"""Models that are Python objects: an `nn.Module` in memory, a callable in a file, an exported `.pt2`."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.anew import CalledAnew, copied
from moec.execution.eager_anew import EagerAnew
from moec.execution.engine import Engine
from moec.files.regular import file_hash
from moec.frontend.dimensions import are_least_sizes, enlarged
from moec.frontend.domain import Domain
from moec.frontend.export import capture
from moec.frontend.exported_file import load_exported
from moec.frontend.from_exported import Dynamic, from_exported, named_outputs
from moec.frontend.in_memory import state_hash
from moec.frontend.kept_capture import kept_or_captured
from moec.frontend.loops_over_experts import Formed, without_branches
from moec.frontend.refusals import depends_on_data, say_dynamic, say_inputs, with_fixed_sizes
from moec.frontend.samples import (
    guess_domain,
    guess_dynamic,
    named_domain,
    require_known,
    shape_of,
    token_domains,
)
from moec.frontend.snapshot import Snapshot
from moec.frontend.source import Opening, Source
from moec.frontend.users_code import call, import_file, siblings_of
from moec.program.program import Input, Program
from moec.program.signature import sizes_of

CAPTURE_SIZES = {"batch": 3, "sequence": 11}
_INPUT = re.compile(r"^(?P<name>\w+)=(?P<shape>[\w,]*):(?P<dtype>\w+)(?:<(?P<high>\d+))?$")


class ModuleEngine(EagerAnew):
    """An untouched module in eager PyTorch; one that changes itself while it runs is made anew for each input."""

    def __init__(self, module: nn.Module, inputs: tuple[Input, ...]) -> None:
        self.name, self.inputs, self.module = "eager", inputs, (copied(module) or module).eval()
        self.outputs: tuple[str, ...] = ()
        self._call = CalledAnew(self.module, lambda other: lambda **given: named_outputs(other(**given)))


class ModuleSource(Source):
    """A module in memory with sample inputs.

    Args:
        module: any `nn.Module`; it is never modified.
        inputs: sample inputs by name; their sizes are the capture's.
        dynamic: names of dynamic dimensions by input, see `moec.frontend.export.capture`.
        text: how the user named it.
        hashes: of the files that it was built from.
        domains: values that the inputs may take; integers default to those below the sample's maximum.
    """

    def __init__(
        self, module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic | None = None, *,
        text: str = "module", hashes: Mapping[str, str] | None = None, domains: Mapping[str, Domain] | None = None,
    ) -> None:  # fmt: skip
        require_known(module, inputs)
        self.text, self._files, self._module, self._samples = text, dict(hashes or {}), module, dict(inputs)
        self._dynamic = dict(dynamic if dynamic is not None else guess_dynamic(inputs))
        self.inputs = tuple(Input(n, t.dtype, shape_of(t, self._dynamic.get(n, ()))) for n, t in inputs.items())
        self.domains = {n: guess_domain(n, t) for n, t in inputs.items()} | dict(domains or {})
        self.size_bytes = sum(p.nbytes for p in module.parameters())

    @classmethod
    def opens(cls, model: Any, opening: Opening) -> bool:
        return isinstance(model, nn.Module)

    @classmethod
    def takes_inputs(cls, model: Any) -> bool:
        return True

    @classmethod
    def open(cls, model: Any, opening: Opening) -> ModuleSource:
        """A module's source. Raises M201 without sample inputs."""
        text = type(model).__name__
        if opening.specs:
            samples, dynamic, domains = parse_inputs(opening.specs)
            return cls(model, samples, dynamic, text=text, domains=domains)
        if not isinstance(opening.inputs, Mapping):
            raise MoecError("M201", f"{text} needs sample inputs", "inputs", "pass inputs={'name': tensor, …}")
        return cls(model, opening.inputs, opening.dynamic, text=text)

    @cached_property
    def hashes(self) -> dict[str, str]:  # type: ignore[override]  # all weights are read only when somebody asks
        """SHA-256 of the files that it was built from; of the weights of a module that is only in memory."""
        return self._files or state_hash(self._module.state_dict())

    def reference(self) -> Engine:
        return ModuleEngine(copied(self._module) or self._module, self.inputs)  # a run may change what it is of

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        program = self._captured(dtype)
        program.original = replace(program.original, source=self)
        return program

    def _captured(self, dtype: torch.dtype) -> Program:
        module = copied(self._module) or self._module  # torch.export runs it, and it may change itself
        if any(p.is_floating_point() and p.dtype != dtype for p in module.parameters()):
            module = copy.deepcopy(module).to(dtype)
        samples = {n: t.to(dtype) if t.is_floating_point() else t for n, t in self._samples.items()}

        def attempt(dynamic: Dynamic) -> Program:
            return self._export(module, samples, dynamic)

        try:
            return attempt(self._dynamic)
        except MoecError as error:
            formed = without_branches(module, lambda m: m(**samples)) if depends_on_data(error) else Formed()
            if formed.changed:
                with contextlib.suppress(MoecError):  # the first says what stands in the user's own code
                    return attempt(self._dynamic)
            if error.code == "M207" and not depends_on_data(error):
                for larger in enlarged(samples, self._dynamic):
                    with contextlib.suppress(MoecError):  # the first says what is wrong with the user's own sample
                        found = self._export(module, larger, self._dynamic)
                        if are_least_sizes(found.conditions, sizes_of(self.inputs, samples)):
                            return found
            better = with_fixed_sizes(formed.explained(error), self._dynamic, attempt, self._say_dynamic)
            if better is error:
                raise
            raise better from error

    def _export(self, module: nn.Module, samples: Mapping[str, Tensor], dynamic: Dynamic) -> Program:
        return capture(module, samples, dynamic, source=self.text)

    def _say_dynamic(self, dynamic: Dynamic) -> str:
        """How a user asks for these dynamic dimensions."""
        return say_dynamic(dynamic)


class FileSource(ModuleSource):
    """A module that a callable in a Python file makes: `file.py:build[:sample_inputs]`."""

    @classmethod
    def opens(cls, model: Any, opening: Opening) -> bool:
        return isinstance(model, str | Path) and ".py:" in str(model)

    @classmethod
    def files(cls, model: str) -> tuple[Path, ...]:
        return (_file_of(model)[0],)

    @classmethod
    def runs(cls, model: str) -> str:
        return f"the Python file {_file_of(model)[0]} would be run"

    @classmethod
    def open(cls, model: Any, opening: Opening) -> ModuleSource:
        """See `from_file`. Raises M201 for tensors and dimensions: a file's callable says them, or texts do."""
        if isinstance(opening.inputs, Mapping) or opening.dynamic:
            fix = "write the inputs as texts, name=dims:dtype, or name a second callable: file.py:build:sample_inputs"
            raise MoecError("M201", "a file's inputs are no tensors of the caller", str(model), fix)
        return from_file(str(model), opening.specs)

    def _export(self, module: nn.Module, samples: Mapping[str, Tensor], dynamic: Dynamic) -> Program:
        program, self.recalled_from = kept_or_captured(module, samples, dynamic, self.text, self.hashes)
        return program

    def _say_dynamic(self, dynamic: Dynamic) -> str:
        return say_inputs(dynamic, self._samples, self.domains)


class ExportedSource(Source):
    """A `.pt2` file of torch.export. It is its own reference: nothing less captured of the model exists."""

    @classmethod
    def opens(cls, model: Any, opening: Opening) -> bool:
        return isinstance(model, str | Path) and str(model).endswith(".pt2")

    @classmethod
    def files(cls, model: str) -> tuple[Path, ...]:
        return (Path(model),)

    @classmethod
    def runs(cls, model: str) -> str:
        return f"the graph of {model} would be run"

    @classmethod
    def open(cls, model: Any, opening: Opening) -> ExportedSource:
        """Read the file, see `moec.frontend.exported_file`. Raises M204 when it is none, M209 when it holds code."""
        return cls(Path(model))

    def __init__(self, path: Path) -> None:
        self.snapshot = Snapshot.of([path])
        self._exported = load_exported(path)
        self.text, self.hashes = str(path), {path.name: file_hash(path)}
        self._program = from_exported(self._exported, source=str(path))
        self._program.original = replace(self._program.original, source=self)
        self.inputs = self._program.inputs
        self.domains = {i.name: named_domain(i.name) for i in self.inputs} | token_domains(self._program)
        self.size_bytes = sum(w.size_bytes for w in self._program.weights.values())

    def reference(self) -> Engine:
        from moec.execution.engine import EagerEngine

        return EagerEngine(self._program)

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        dtypes = {w.dtype for w in self._program.weights.values() if w.dtype.is_floating_point}
        if dtypes and dtype not in dtypes:  # its operators name their dtypes, so weights alone cannot be converted
            own_dtypes = ", ".join(sorted(str(d)[6:] for d in dtypes))
            raise MoecError(
                "M208",
                f"the .pt2 computes in {own_dtypes}, the target in {str(dtype)[6:]}",
                self.text,
                "choose the target's precision=…, or export it anew",
            )
        return self._program.clone()


def from_file(text: str, inputs: Sequence[str] = ()) -> FileSource:
    """`file.py:build[:sample_inputs]`: run the file, call `build()` for the module.

    Args:
        text: the path and one or two callables' names. `sample_inputs()` returns tensors by name.
        inputs: `name=dims:dtype[<high]` each, e.g. `ids=batch,sequence:int64<1000`; these win over `sample_inputs`.

    Raises:
        MoecError: M204 when the file or a callable is missing or fails, M201 on a malformed input.
    """
    path, names = _file_of(text)
    snapshot = Snapshot.of([path])
    module_code = import_file(path)
    made = [call(module_code, name, text) for name in names]
    if not isinstance(made[0], nn.Module):
        raise MoecError(
            "M204",
            f"{names[0]}() returned a {type(made[0]).__name__}, not an nn.Module",
            text,
            "return the module itself",
        )
    siblings = siblings_of(path)
    found = _made(made, text, inputs, {name: file_hash(file) for name, file in {path.name: path, **siblings}.items()})
    found.snapshot = snapshot.and_of(siblings.values())
    return found


def _made(made: Sequence[Any], text: str, inputs: Sequence[str], hashes: Mapping[str, str]) -> FileSource:
    """The source of what a file's callables returned: a module, and samples where no inputs are given."""
    if inputs:
        samples, dynamic, domains = parse_inputs(inputs)
        return FileSource(made[0], samples, dynamic, text=text, hashes=hashes, domains=domains)
    if len(made) < 2:
        fix = "add --input name=batch,64:float32, or name a second callable: file.py:build:sample_inputs"
        raise MoecError("M201", "no sample inputs", text, fix)
    return FileSource(made[0], made[1], text=text, hashes=hashes)


def _file_of(text: str) -> tuple[Path, list[str]]:
    """The file and the callables' names of `file.py:build[:sample_inputs]`."""
    path, *names = text.rsplit(":", 2) if text.count(":") > 1 else text.rsplit(":", 1)
    return Path(path), names


def parse_inputs(
    specs: Sequence[str],
) -> tuple[dict[str, Tensor], dict[str, tuple[str | None, ...]], dict[str, Domain]]:
    """Samples, dynamic dimensions and domains from `name=dims:dtype[<high]` texts. Raises M201."""
    samples: dict[str, Tensor] = {}
    dynamic: dict[str, tuple[str | None, ...]] = {}
    domains: dict[str, Domain] = {}
    spare = iter((7, 13, 17, 19, 23))
    sizes = dict(CAPTURE_SIZES)
    for spec in specs:
        match = _INPUT.match(spec)
        dtype = getattr(torch, match["dtype"], None) if match else None
        if match is None or not isinstance(dtype, torch.dtype):
            raise MoecError(
                "M201",
                f"cannot read the input {spec!r}",
                "--input",
                "write name=dims:dtype, e.g. ids=batch,sequence:int64<1000 or x=batch,64:float32",
            )
        dims = [d for d in match["shape"].split(",") if d]
        sizes.update({d: next(spare) for d in dims if not d.isdigit() and d not in sizes})
        shape = [int(d) if d.isdigit() else sizes[d] for d in dims]
        name, high = match["name"], int(match["high"] or 2)
        samples[name] = torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        dynamic[name] = tuple(None if d.isdigit() else d for d in dims)
        domains[name] = named_domain(name, high)
    return samples, dynamic, domains
