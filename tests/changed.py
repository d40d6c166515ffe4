"""An engine behind a change of its inputs: a wrong engine for proofs to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from moec.execution.engine import Engine


class Changed(Engine):
    """An engine whose inputs are changed before it sees them."""

    def __init__(self, engine: Engine, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self._engine, self._change = engine, change

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._engine(**self._change(dict(inputs)))
        return found
