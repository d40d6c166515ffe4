"""A model in eager PyTorch that every input finds as it was at first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moec.execution.anew import CalledAnew
from moec.execution.engine import Engine, tensors_of


class EagerAnew(Engine):
    """An untouched model as an engine; one that changes itself while it runs is made anew for each input. Classes of
    this one set `_call`."""

    _call: CalledAnew

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            return self._call(**inputs)

    def be_timed(self) -> None:
        self._call.watched = False

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self._call.pristine)
