"""A program that is called and trained like the model that it was captured from."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.export import capture
from moec.pipeline.pipeline import Pipeline
from moec.program.original import OutputForm, Place
from moec.program.program import Program
from moec.program.trainable import TrainableProgram
from tests import zoo


class Nested(nn.Module):
    """Returns a tree with something in it that is no tensor, and has a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, ids: Tensor) -> dict[str, object]:
        scores = self.head(self.table(ids)) + self.shift
        return {"scores": scores, "more": (scores.sum(-1), None, 7)}


def nested() -> tuple[Nested, TrainableProgram]:
    model = Nested().eval()
    program = capture(model, {"ids": torch.zeros(3, 11, dtype=torch.int64)}, {"ids": ("batch", "sequence")})
    return model, program.module(trainable=True)


@cache
def moe() -> tuple[nn.Module, Program]:
    return zoo.build("mixtral"), Pipeline.parse("find-moe").run(zoo.captured("mixtral"))[0]


def texts() -> tuple[Tensor, Tensor]:
    """Two texts, the second with padding behind it."""
    ids = torch.randint(3, zoo.VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return ids, mask


def test_it_returns_what_the_model_returned_by_name_or_in_order() -> None:
    model, module = nested()
    ids = torch.randint(0, 20, (2, 5))
    want, found = model(ids), module(ids)
    assert torch.allclose(found["scores"], want["scores"], atol=1e-6) and found["more"][1:] == (None, 7)
    assert torch.allclose(module(ids=ids)["more"][0], want["more"][0], atol=1e-5)
    assert dict(module.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert not torch.allclose(found["scores"], 1.01 * want["scores"], atol=1e-6)  # the mutant


@pytest.mark.parametrize(("given", "code", "says"), [({}, "M211", "missing"), ({"id": 1}, "M211", "did you mean ids")])
def test_inputs_that_do_not_fit_are_refused(given: dict[str, Tensor], code: str, says: str) -> None:
    with pytest.raises(MoecError) as caught:
        nested()[1](**given)
    assert caught.value.code == code and says in str(caught.value)


def test_a_model_without_tokens_or_routers_has_neither_loss_nor_balance() -> None:
    module, ids = nested()[1], torch.randint(0, 20, (2, 5))
    for asked in ({"labels": ids}, {"output_router_logits": True}):
        with pytest.raises(MoecError) as caught:
            module(ids, **asked)
        assert caught.value.code == "M201"


@pytest.mark.parametrize("passes", ["find-moe", "find-moe, fuse-moe"])
def test_losses_and_router_logits_are_those_of_transformers(passes: str) -> None:
    model, ids, mask = moe()[0], *texts()
    module = Pipeline.parse(passes).run(zoo.captured("mixtral"))[0].module(trainable=True)
    asked = {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}
    want, found = (m(**asked, output_router_logits=True) for m in (model, module))
    assert type(found) is type(want) and torch.allclose(found.loss, want.loss, atol=1e-5)
    assert torch.allclose(found.aux_loss, want.aux_loss, atol=1e-5) and module.router_aux_loss_coef == 0.001
    for ours, theirs in zip(found.router_logits, want.router_logits, strict=True):
        assert torch.allclose(ours[mask.flatten().bool()], theirs[mask.flatten().bool()], atol=1e-5)
    assert torch.allclose(module(**asked).loss + 0.001 * found.aux_loss, found.loss, atol=1e-6)
    unmasked = module(input_ids=ids, labels=ids, output_router_logits=True)  # other tokens count
    assert not torch.allclose(unmasked.loss, want.loss, atol=1e-3) and "loss" not in module(input_ids=ids)


@pytest.mark.parametrize("form", [Place("logits"), (Place("logits"),), [Place("logits")], {"logits": Place("logits")}])
def test_what_is_asked_for_stands_in_a_dict_where_the_model_returns_none(form: Any) -> None:
    program, (ids, _) = moe()[1].clone(), texts()
    program.original = replace(program.original, form=OutputForm.of(form))
    module = program.module(trainable=True)
    assert isinstance(module(input_ids=ids), Tensor if isinstance(form, Place) else type(form))
    found = module(input_ids=ids, labels=ids, output_router_logits=True)
    assert {"logits", "loss", "aux_loss", "router_logits"} <= found.keys() and found["logits"].shape[:2] == ids.shape


def test_the_program_of_a_trained_module_has_its_weights_of_now() -> None:
    _, program = moe()
    module, (ids, mask) = program.module(trainable=True), texts()
    before = program.digest()
    assert not any(name.endswith("inv_freq") for name, _ in module.named_parameters())
    module(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    trained = module.program
    want = module(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(trained.run(input_ids=ids, attention_mask=mask)["logits"], want, atol=1e-5)
    assert not torch.allclose(program.run(input_ids=ids, attention_mask=mask)["logits"], want, atol=1e-2)
    assert [s.name for s in trained.history] == ["find-moe", "train"] and program.digest() == before
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert torch.allclose(trained.run(input_ids=ids, attention_mask=mask)["logits"], want, atol=1e-5)


def test_a_copy_trains_apart() -> None:
    model, module = nested()
    copied = deepcopy(module)
    with torch.no_grad():
        copied.get_parameter("head.bias").add_(1)
    ids = torch.randint(0, 20, (2, 5))
    assert torch.allclose(module(ids)["scores"], model(ids)["scores"], atol=1e-6)
    assert torch.allclose(copied(ids)["scores"], model(ids)["scores"] + 1, atol=1e-5)
