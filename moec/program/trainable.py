"""A program as an `nn.Module` that is called and trained like the model that it was captured from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from moec.errors import MoecError
from moec.program.conditions import require
from moec.program.decoder_signature import IDS, LOGITS, MASK, complete
from moec.program.observed import Routers, expert_weights, router_weights, with_routers
from moec.program.signature import sizes_of
from moec.registry import did_you_mean
from moec.routing.losses import transformers_loss
from moec.routing.tally import Choice

LOSS, BALANCE, ROUTERS = "loss", "aux_loss", "router_logits"
_IGNORED = -100  # a label that counts for nothing, as in PyTorch and transformers


Watch = Callable[[str, Choice, Tensor | None], None]
Wanted = Callable[[], bool]


class TrainableProgram(nn.Module):
    """A program whose weights are parameters, under the names that they have in `Program.weights`.

    It takes the model's inputs by name or in order, and returns what the model returned. Buffers of the model, such as
    rotary tables, and packed integers stay buffers. `moec.compile` and `moec.save_hf` take it as it is.

    Attributes:
        router_aux_loss_coef: how much `aux_loss` counts in `loss`; the model's own where its config has one.
    """

    def __init__(self, program: Any, graph: fx.Graph) -> None:
        """Use `Program.module(trainable=True)`, which attaches the weights."""
        super().__init__()
        self._program, self._graph = program, graph
        self._routers: Routers | None = None
        self._watching: list[tuple[Watch, Wanted]] = []
        self._forwards: dict[bool, Callable[..., Any]] = {}
        self.router_aux_loss_coef: float = program.original.router_aux_loss_coef

    @property
    def program(self) -> Any:
        """The program with the weights as they are now, copied: training on does not change it."""
        tensors = {**dict(self.named_parameters(remove_duplicate=False)), **dict(self.named_buffers())}
        return self._program.trained({name: tensors[name] for name in self._program.weights if name in tensors})

    def forward(
        self, *args: Tensor, labels: Tensor | None = None, output_router_logits: bool = False, **inputs: Any
    ) -> Any:
        """What the model returns for these inputs.

        A decoder's absent mask is all ones, its absent cache is empty. What is asked for beside the outputs is an entry
        of the dict or `ModelOutput`; where the model returns something else, a dict of outputs by name stands for it.

        Args:
            labels: int64 `[B, S]`, the tokens, -100 where none counts. Adds `loss`, the mean cross-entropy in nats a
                token; a causal model's labels are shifted here, as in transformers.
            output_router_logits: add `router_logits`, one `[tokens, E]` a block, and `aux_loss`, see
                `moec.routing.losses.transformers_loss`; it then counts in `loss`.

        Raises:
            MoecError: M211 for inputs that do not fit, M213 for sizes that the program was not captured for, M201 for a
                loss that the model does not have or routers that the program does not know.
        """
        program = self._program
        given = self._given(args, inputs)
        watching = [watch for watch, wanted in tuple(self._watching) if wanted()]
        asked = output_router_logits or bool(watching)
        values = self._forward(asked, output_router_logits)(self, *(given[i.name] for i in program.inputs))
        named = dict(zip(program.outputs, values, strict=False))
        more: dict[str, Any] = {}
        if labels is not None:
            more[LOSS] = self._loss(named, labels)
        if output_router_logits:
            logits, top_k = self._found.logits(values), [rule.top_k for rule in self._found.rules]
            more |= {ROUTERS: logits, BALANCE: transformers_loss(logits, top_k, given.get(MASK))}
            if labels is not None:
                more[LOSS] = more[LOSS] + self.router_aux_loss_coef * more[BALANCE]
        for name, choice in self._found.choices(values) if watching else ():
            for watch in watching:
                watch(name, choice, given.get(MASK))
        return self._returned(named, more)

    def watch_routers(self, watch: Watch, wanted: Wanted = lambda: True) -> Callable[[], None]:
        """Have each forward tell what every mixture chose, detached: the block's name, the choice, and the mask `[B,
        S]` that the forward had, None without one. Returns what ends it.

        Args:
            wanted: asked as a forward begins, once; one that nobody wants is computed without its routers' outputs.
        """
        watcher = (watch, wanted)
        self._watching.append(watcher)
        return lambda: self._watching.remove(watcher)

    def router_weights(self) -> tuple[str, ...]:
        """Names of the parameters that its routers' logits are made with."""
        learning = dict(self.named_parameters(remove_duplicate=False))
        return tuple(name for name in router_weights(self._graph) if name in learning)

    def expert_weights(self) -> dict[str, list[Tensor]]:
        """The matrices of each mixture's experts as they are now, `[E, ...]`, by the mixture's name."""
        tensors = {**dict(self.named_parameters(remove_duplicate=False)), **dict(self.named_buffers())}
        return {mixture: [tensors[n] for n in names] for mixture, names in expert_weights(self._graph).items()}

    # ------------------------------------------------------------------ what goes in and comes out
    def _given(self, args: tuple[Tensor, ...], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        program, where = self._program, str(self._program.source)
        names = [i.name for i in program.inputs]
        given = dict(zip(names, args, strict=False)) | {n: v for n, v in inputs.items() if v is not None}
        unknown = next((n for n in given if n not in names), None)
        if unknown is not None:
            raise MoecError("M211", f"no input is called {unknown!r}", where, did_you_mean(unknown, names))
        ids = given.get(IDS)
        if MASK in names and isinstance(ids, Tensor) and not any(n.startswith("past_key") for n in given):
            given.setdefault(MASK, torch.ones_like(ids))
        given = {n: v.to(ids.device) if ids is not None else v for n, v in complete(program.inputs, given).items()}
        missing = next((n for n in names if n not in given), None)
        if missing is not None:
            raise MoecError("M211", f"input {missing!r} is missing", where, f"pass {', '.join(names)}")
        require(program.conditions, sizes_of(program.inputs, given), where)
        return given

    def _returned(self, named: dict[str, Tensor], more: dict[str, Any]) -> Any:
        """The outputs in the model's own form, with what was asked for beside them."""
        form = self._program.original.form
        found: Any = dict(named) if form is None else form.filled(named)
        if more and not isinstance(found, MutableMapping):
            found = dict(named)
        for name, value in more.items():
            found[name] = value
        return found

    # ------------------------------------------------------------------ losses
    def _loss(self, named: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats a token, from logits `[B, S, V]`, in float32."""
        kind = self._program.original.loss
        if not kind or LOGITS not in named:
            what = "the model that it was captured from computes no loss of tokens"
            fix = "compute the loss from its outputs, without labels"
            raise MoecError("M201", what, str(self._program.source), fix)
        logits = named[LOGITS].float()
        if kind == "next token":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED)

    # ------------------------------------------------------------------ the graph, with and without routers
    @property
    def _found(self) -> Routers:
        """The graph that gives what routers do, too; made when it is first asked for."""
        if self._routers is None:
            self._routers = with_routers(self._graph, len(self._program.outputs))
        return self._routers

    def _forward(self, routers: bool, logits: bool) -> Callable[..., Any]:
        """The graph's code as a function of this module and the inputs; with `routers`, see `with_routers`. Raises M201
        for logits that no router has."""
        if logits and not self._found.rules:
            what = "no router of it is known, so it has no router logits"
            fix = 'run moec.Pipeline.parse("find-moe") on a model that has experts, or "upcycle" on a dense one'
            raise MoecError("M201", what, str(self._program.source), fix)
        if routers not in self._forwards:
            graph = self._found.graph if routers else self._graph
            self._forwards[routers] = type(fx.GraphModule(self, graph)).forward
        return self._forwards[routers]
