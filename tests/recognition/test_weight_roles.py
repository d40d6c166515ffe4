"""What each matrix is for: found in every architecture of the zoo, whatever its modules are called."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.recognition.weight_roles import weight_uses
from tests import zoo
from tests.routers import KNOWN, Block, Router, captured, mixtral

NAMES = {
    "attention": ("attn", "attention."),
    "experts": (".experts.",),
    "lm_head": ("lm_head",),
    "gate": ("shared_expert_gate",),
}


@cache
def program(name: str) -> Program:
    return zoo.captured(name)


def expected(name: str, module: str) -> str:
    """The kind that the model's own names tell; the roles themselves never look at a name."""
    if module.endswith(("embed_tokens", "embeddings", "wte", "wpe")):
        return "embeddings"
    if name.endswith(("mlp.gate.weight", "router.weight")):
        return "router"
    return next((kind for kind, parts in NAMES.items() if any(p in name for p in parts)), "dense")


@pytest.mark.parametrize("name", [*zoo.moe_configs(), *zoo.dense_configs()])
def test_kinds_of_every_architecture(name: str) -> None:
    uses = weight_uses(program(name))
    assert {(u.name, u.module): u.kind for u in uses} == {(u.name, u.module): expected(u.name, u.module) for u in uses}
    blocks = len(program(name).nodes(torch.ops.moec.experts))
    assert [u.kind for u in uses].count("router") == blocks and [u.kind for u in uses].count("experts") == 2 * blocks
    matrices = {
        n
        for n, w in program(name).weights.items()
        if len(w.shape) > 1 and not n.endswith("bias") and w.shape[-1] >= 10 and w.dtype.is_floating_point
    }
    assert {u.name for u in uses} >= {n for n in matrices if n.endswith("weight") or "proj" in n} - {
        "vit.embeddings.patch_embeddings.projection.weight"
    }


@pytest.mark.parametrize("name", ["mixtral", "llama"])
def test_a_quantized_model_has_the_same_roles(name: str) -> None:
    before = weight_uses(program(name))
    after = weight_uses(Pipeline.parse("quantize(bits=8, group=16)").run(program(name))[0])
    assert [(u.kind, u.name, u.module) for u in after] == [(u.kind, u.name, u.module) for u in before]
    assert {u.kind for u in after if u.weight is not None} == ({"router", "embeddings"} if name == "mixtral" else set())


@pytest.mark.parametrize("router", KNOWN, ids=lambda r: r.__name__)
def test_routers_whatever_they_do(router: Router) -> None:
    assert [u.kind for u in weight_uses(captured(Block(router))) if u.name == "gate.weight"] == ["router"]


class TwoLayers(Block):
    """A router with a hidden layer, and, when `scored`, scores that are applied to the experts' rows by hand."""

    def __init__(self, scored: bool = False) -> None:
        super().__init__(mixtral)
        self.first, self.scored = nn.Linear(self.gate.in_features, self.gate.in_features), scored

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        logits = self.gate(torch.tanh(self.first(rows)))
        weights, ids = mixtral(logits, logits)
        rows = rows * logits.sigmoid().amax(-1, keepdim=True) if self.scored else rows
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)


def test_all_layers_of_a_router() -> None:
    assert {u.name: u.kind for u in weight_uses(captured(TwoLayers()))}["first.weight"] == "router"
    kinds = {u.name: u.kind for u in weight_uses(captured(TwoLayers(scored=True)))}
    assert kinds["gate.weight"] == "router"


@pytest.mark.parametrize(
    ("name", "lasts"), [("llama", "down_proj"), ("mixtral", "down_proj"), ("bert", "output.dense")]
)
def test_the_last_matrix_of_each_network_is_known(name: str, lasts: str) -> None:
    uses = weight_uses(zoo.captured(name))
    found = [u for u in uses if u.last]
    assert len(found) == 2 and all(lasts in u.name and "attention" not in u.name for u in found)
