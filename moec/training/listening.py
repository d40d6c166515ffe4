"""Hooks on a model that tell what its mixtures choose."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.program.decoder_signature import MASK
from moec.program.trainable import TrainableProgram
from moec.routing.scores import score_that_gives, shares_of
from moec.routing.tally import Choice
from moec.training.mixtures import Mixture, find_mixtures, joined, programs_in

Add = Callable[[str, Choice, Tensor | None], None]
Wanted = Callable[[str, bool], bool]


def listen(model: nn.Module, wanted: Wanted, add: Add) -> tuple[list[Callable[[], None]], list[str]]:
    """Hook a model. Returns what ends each hook, none where there is no mixture, and the layers' names that are known.

    Args:
        wanted: whether the forward that runs counts; it is told whose forward it is, the dotted path of a program in
            the model or nothing for the model itself, and whether it begins.
        add: takes a layer's name, its choice, and the mask `[B, S]` of the forward.
    """
    programs = programs_in(model)
    ends = [_listen_to_program(path, m, wanted, add) for path, m in programs.items() if m.expert_weights()]
    layers = [_Layer(m, wanted, add) for m in find_mixtures(model, programs)]
    ends += [end for layer in layers for end in layer.hook()]
    if layers:
        ends.append(_Mask(model, wanted, layers).hook())
    return ends, [layer.mixture.name for layer in layers]


def _listen_to_program(path: str, module: TrainableProgram, wanted: Wanted, add: Add) -> Callable[[], None]:
    """A forward that does not count is one without its routers' outputs, so it costs nothing."""

    def watch(name: str, choice: Choice, mask: Tensor | None) -> None:
        add(joined(path, name), choice, mask)

    return module.watch_routers(watch, lambda: wanted(path, True))


class _Mask:
    """The mask of the forward that runs, for all layers."""

    def __init__(self, model: nn.Module, wanted: Wanted, layers: list[_Layer]) -> None:
        self._model, self._wanted, self._layers = model, wanted, layers
        names = list(inspect.signature(model.forward).parameters)
        self._place = names.index(MASK) if MASK in names else None

    def hook(self) -> Callable[[], None]:
        return self._model.register_forward_pre_hook(self._note, with_kwargs=True).remove

    def _note(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._wanted("", True)
        mask = kwargs.get(MASK)
        if mask is None and self._place is not None and self._place < len(args):
            mask = args[self._place]
        for layer in self._layers:
            layer.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


class _Layer:
    """One mixture: what its router read last, and what its experts are called with."""

    def __init__(self, mixture: Mixture, wanted: Wanted, add: Add) -> None:
        self.mixture, self._wanted, self._add = mixture, wanted, add
        self.mask: Tensor | None = None
        self._logits: Tensor | None = None
        self._rows: Tensor | None = None  # what a router gave for all experts, 0 where one was not chosen

    def hook(self) -> list[Callable[[], None]]:
        ends = [self.mixture.experts.register_forward_pre_hook(self._called, with_kwargs=True).remove]
        if self.mixture.router is not None:
            ends.append(self.mixture.router.register_forward_hook(self._routed).remove)
        return ends

    @torch.no_grad()
    def _routed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Compute the logits anew, in float32: what a router returns under that name may have been through softmax."""
        weight = next(p for p in module.parameters(recurse=False) if p.dim() == 2 and p.shape[0] == self.mixture.count)
        x = next((a for a in args if isinstance(a, Tensor) and a.shape[-1] == weight.shape[1]), None)
        self._logits = self._rows = None
        if x is None or not self._wanted("", False):
            return
        bias = getattr(module, "bias", None)
        own = bias.float() if isinstance(bias, Tensor) and bias.shape == weight.shape[:1] else None
        self._logits = F.linear(x.detach().flatten(0, -2).float(), weight.float(), own)
        self._rows = next((t for t in _tensors(output) if t.shape == self._logits.shape and bool((t == 0).any())), None)

    @torch.no_grad()
    def _called(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._wanted("", False):
            return
        given = [t.detach() for t in _tensors((args, kwargs))]
        ids = next((t for t in given if not t.is_floating_point() and t.dim() == 2 and t.dtype != torch.bool), None)
        like = [t for t in given if ids is not None and t.is_floating_point() and t.shape == ids.shape]
        if ids is not None and like:
            self._tell(ids.long(), like[-1])
        elif self._rows is not None:
            weights, chosen = self._rows.detach().topk(int((self._rows != 0).sum(-1).max()), dim=-1)
            self._tell(chosen, weights)

    def _tell(self, ids: Tensor, weights: Tensor) -> None:
        logits = self._logits if self._logits is not None and len(self._logits) == len(ids) else None
        # asked each time: logits that are all alike, as a new router's are, fit every score
        score = None if logits is None else score_that_gives(logits, ids, weights)
        shares = None if logits is None or score is None else shares_of(logits, score)
        self._add(self.mixture.name, Choice(self.mixture.count, ids, weights, shares), self.mask)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or outputs, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
