"""A program as an `nn.Module` that is called and trained like the model that it was captured from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from moec.dialect import Routing
from moec.dialect.moe import router_logits
from moec.errors import MoecError
from moec.program.conditions import require
from moec.program.decoder_signature import IDS, LOGITS, MASK, complete
from moec.program.dialect_call import ROUTE, DialectCall, RouteCall
from moec.program.signature import sizes_of
from moec.registry import did_you_mean

LOSS, BALANCE, ROUTERS = "loss", "aux_loss", "router_logits"
_IGNORED = -100  # a label that counts for nothing, as in PyTorch and transformers


class _Fused(DialectCall):
    """A `moec::moe`, of which only the router is looked at."""

    operators = (torch.ops.moec.moe.default,)


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
        self._routed: tuple[fx.Graph, list[Routing]] | None = None
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
            output_router_logits: add `router_logits`, one `[tokens, E]` a block, and `aux_loss`, see `balance`; it
                then counts in `loss`.

        Raises:
            MoecError: M211 for inputs that do not fit, M213 for sizes that the program was not captured for, M201 for a
                loss that the model does not have or routers that the program does not know.
        """
        program = self._program
        given = self._given(args, inputs)
        values = self._forward(output_router_logits)(self, *(given[i.name] for i in program.inputs))
        named = dict(zip(program.outputs, values, strict=False))
        more: dict[str, Any] = {}
        if labels is not None:
            more[LOSS] = self._loss(named, labels)
        if output_router_logits:
            logits = tuple(v.flatten(0, -2) for v in values[len(program.outputs) :])
            rules = self._routed[1] if self._routed else []
            more |= {ROUTERS: logits, BALANCE: balance(logits, [r.top_k for r in rules], given.get(MASK))}
            if labels is not None:
                more[LOSS] = more[LOSS] + self.router_aux_loss_coef * more[BALANCE]
        return self._returned(named, more)

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
    def _forward(self, routers: bool) -> Callable[..., Any]:
        """The graph's code as a function of this module and the inputs."""
        if routers and self._routed is None:
            self._routed = _with_router_logits(self._graph)
            if not self._routed[1]:
                what = "no router of it is known, so it has no router logits"
                fix = 'run moec.Pipeline.parse("find-moe") on a model that has experts, or "upcycle" on a dense one'
                raise MoecError("M201", what, str(self._program.source), fix)
        if routers not in self._forwards:
            graph = self._routed[0] if routers and self._routed else self._graph
            self._forwards[routers] = type(fx.GraphModule(self, graph)).forward
        return self._forwards[routers]


def _with_router_logits(graph: fx.Graph) -> tuple[fx.Graph, list[Routing]]:
    """A copy of a graph that also gives each router's logits `[..., E]`, and the rules that they are used with."""
    found, logits, rules = deepcopy(graph), [], []
    for node in list(found.nodes):
        if node.target is ROUTE:
            logits.append(RouteCall(node).logits)
        elif node.target in _Fused.operators:
            call = _Fused(node)
            with found.inserting_before(node):
                parts = (call.argument("x"), call.argument("router_weight"), call.argument("router_bias"))
                logits.append(found.call_function(router_logits, parts))
        else:
            continue
        rules.append(Routing.of(node.kwargs))
    output = next(n for n in found.nodes if n.op == "output")
    output.args = ((*output.args[0], *logits),)
    return found, rules


def balance(logits: tuple[Tensor, ...], top_k: list[int], mask: Tensor | None = None) -> Tensor:
    """The load-balancing loss of Switch (arXiv 2101.03961, equations 4 to 6) for K experts a token, as transformers
    computes it: E times the sum over experts of the share of tokens that choose one and its mean probability. It is K
    where all experts are chosen alike.

    Args:
        logits: `[tokens, E]` a block; blocks of equal E and K are counted together.
        top_k: K of each block.
        mask: `[B, S]`, 0 where a token is padding and does not count; another length of all tokens is not looked at.

    Returns:
        float32 `[]`.
    """
    groups: dict[tuple[int, int], list[Tensor]] = {}
    for value, k in zip(logits, top_k, strict=True):
        groups.setdefault((value.shape[-1], k), []).append(value.float())
    losses = [_balance(torch.cat(blocks), k, len(blocks), mask) for (_, k), blocks in groups.items()]
    return torch.stack(losses).mean()


def _balance(logits: Tensor, top_k: int, blocks: int, mask: Tensor | None) -> Tensor:
    experts, probabilities = logits.shape[-1], logits.softmax(-1)
    chosen = F.one_hot(probabilities.topk(top_k, dim=-1).indices, experts).sum(1).to(probabilities.dtype)
    counts = torch.ones_like(probabilities[:, :1])
    if mask is not None and mask.numel() * blocks == len(logits):
        counts = mask.flatten().repeat(blocks)[:, None].to(probabilities.dtype)
    chosen, probabilities = ((v * counts).sum(0) / counts.sum() for v in (chosen, probabilities))
    return experts * (chosen * probabilities).sum()
