"""A capture that is tried in another way where one fails; a refusal's way out is one that was tried."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

import torch

from moec.errors import MoecError
from moec.frontend.source import Source
from moec.huggingface.inputs.asked import Asked
from moec.huggingface.inputs.signature import Signature
from moec.huggingface.operators.attention import ATTENTION
from moec.huggingface.origin import Origin
from moec.program.program import Program

_REPORT = "this version of transformers is not supported; report it"


class Retried(Source):
    """A model of the transformers library, whose capture `_capture` makes; made anew by its own arguments."""

    origin: Origin
    signature: Signature
    _asked: Asked
    part: str
    _cache: bool
    _own_attention: bool
    _leave_out: Any
    _given: Any
    _explained: MoecError | None

    @abstractmethod
    def __init__(self, text: str, origin: Origin, cache: bool = True, leave_out: Any = None, given: Any = None) -> None:
        """See `moec.huggingface.source.HuggingFaceSource`."""

    @abstractmethod
    def _capture(self, dtype: torch.dtype, attention: str = "", device: str = "") -> Program:
        """The capture, with transformers' own `attention` where one is named."""

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """The model as a Program, its experts as `moec::experts`.

        Raises:
            MoecError: M205 a weight is missing, M206 experts that moec does not know, M207 a model that torch.export
                cannot take.
        """
        try:
            return self._captured(dtype)
        except MoecError as error:
            better = self._refusal(error)
            if better is error:
                raise
            raise better from error

    def _refusal(self, error: MoecError) -> MoecError:
        """The refusal of a capture; where a capture without a cache was tried and works, that is the way out."""
        if error.code not in ("M206", "M207") or error is self._explained:
            return error
        cached = self._cache or self.part
        self._explained = self._tried_without_cache(error) if cached else self._tried_with_values(error)
        return self._explained

    def _tried_with_values(self, error: MoecError) -> MoecError:
        sources = partial(type(self), self.text, self.origin, False, self._leave_out)
        return self._asked.with_values(error, self.signature, lambda given: sources(given).capture())

    def _tried_without_cache(self, error: MoecError) -> MoecError:
        try:
            type(self)(self.text, self.origin, False, self._leave_out, self._given).capture()
        except MoecError as other:
            what = f"{error.what}; with --no-cache, {other.what}"
            return MoecError(error.code, what, other.where, _REPORT if "--no-cache" in other.fix else other.fix)
        fix = "compile its forward alone: pass --no-cache, with which it was captured just now"
        return MoecError(error.code, error.what, error.where, fix)

    def _captured(self, dtype: torch.dtype) -> Program:
        try:
            return self._capture(dtype)
        except MoecError as error:
            if "lifted_tensor" in error.where:  # x[:, [-2]] makes a tensor on x's device, where meta keeps no values
                return self._capture(dtype, device="cpu")
            in_attention = error.code == "M206" and error.where == ATTENTION  # which our operator cannot honour
            if in_attention and not self._cache:
                self._own_attention = True
                return self._captured(dtype)
            if error.code != "M207" and not in_attention:
                raise
            return self._capture(dtype, attention="eager")
