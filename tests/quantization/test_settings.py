"""Settings without a model to quantize: which one decides for a weight, and what is refused whatever the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

from moec.errors import MoecError
from moec.quantization.bit_budget import Budget
from moec.quantization.grid import Grid
from moec.quantization.settings import FINE, KEEP, KINDS, QuantizeSettings
from moec.recognition.weight_roles import Use
from moec.weights.lazy import from_tensor

NONE = dict.fromkeys(KINDS)
PLAIN = QuantizeSettings(Grid(4, 16), NONE, None, None, 0, "quantize(…)")


def use(kind: str, name: str, module: str = "", width: int = 64) -> Use:
    return Use(
        fx.Graph().placeholder(name.replace(".", "_")), 1, kind, from_tensor(torch.zeros(8, width), name), name, module
    )


def bits(settings: QuantizeSettings, *uses: Use) -> list[int | None]:
    return [None if g is None else g.bits for g in settings.choose(uses)]


def test_rules_come_before_kinds_and_kinds_before_the_default() -> None:
    uses = use("experts", "layers.0.up"), use("experts", "layers.1.up"), use("attention", "q"), use("dense", "fc")
    asked = replace(PLAIN, kinds={**NONE, "experts": 2, "dense": KEEP}, rules={"*.0.*": 8, "layers.*": {"bits": 3}})
    assert bits(asked, *uses) == [8, 3, 4, None]
    assert bits(PLAIN, *uses) == [4, 4, 4, 4] and asked.rule(uses[0]) == "*.0.*" and asked.rule(uses[2]) is None


def test_a_rule_may_name_the_module() -> None:
    asked = replace(PLAIN, rules={"model.head": 8})
    assert bits(asked, use("dense", "w", "model.head"), use("dense", "w", "model.heads")) == [8, 4]


def test_the_head_has_eight_bits_and_tables_stay_unless_asked() -> None:
    assert bits(PLAIN, use("lm_head", "head"), use("embeddings", "table")) == [8, None]
    assert bits(PLAIN, use("embeddings", "both"), use("lm_head", "both")) == [8, 8], "one table for both is packed once"
    gptq = replace(PLAIN, default=Grid(4, 16, method="gptq"))
    assert [
        g.method for g in gptq.choose([use("embeddings", "both"), use("lm_head", "both"), use("dense", "fc")]) if g
    ] == ["hqq", "hqq", "gptq"]


def test_what_decides_among_experts_is_never_quantized() -> None:
    asked = replace(PLAIN, rules={"*": 2})
    assert [bits(asked, use(kind, "w")) for kind in (*FINE, "dense")] == [[None], [None], [2]]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rules": ["*"]}, "not a table"),
        ({"rules": {"*": {"bit": 4}}}, "no setting 'bit'"),
        ({"rules": {"*": 7}}, "bits=7"),
        ({"kinds": {**NONE, "experts": 6}}, "bits=6"),
        ({"recipe": {"attn": 8}}, "no 'attn'"),
        ({"recipe": {"down": {"bits": 5}}}, "bits=5"),
        ({"floor": -1}, "floor=-1"),
        ({"budget": Budget(9.0)}, "budget_bits=9.0"),
        ({"budget": Budget(3.0), "kinds": {**NONE, "experts": 4}}, "both say"),
        ({"budget": Budget(3.0), "recipe": {"experts": 4}}, "both say"),
        ({"budget": Budget(3.0), "recipe": {"always": 8, "down": 8}}, "recipe's 'down'"),
        ({"budget": Budget(3.0), "default": Grid(8, 16, format="fp8")}, "shares out integers"),
    ],
)
def test_settings_that_are_none(wrong: dict[str, object], words: str) -> None:
    PLAIN.check()
    replace(PLAIN, budget=Budget(3.0), recipe={"always": 8, "attention": 8}).check()
    with pytest.raises(MoecError) as caught:
        replace(PLAIN, **wrong).check()  # type: ignore[arg-type]
    assert (
        caught.value.code == "M203"
        and words in caught.value.what
        and caught.value.where == PLAIN.text
        and caught.value.fix
    )


@pytest.mark.parametrize(
    ("changes", "kinds", "words"),
    [
        ({"rules": {"*.q": 4}}, ["dense"], "fits no weight"),
        ({"rules": {"w": 8}}, ["router"], "only routers"),
        ({"kinds": {**NONE, "dense": 4}, "default": Grid(4, 128)}, ["dense"], "fits nothing that can be quantized"),
        ({"default": Grid(4, 128)}, ["experts"], "groups of 128 do not divide the 64 inputs"),
    ],
)
def test_what_fits_nothing_of_a_model(changes: dict[str, object], kinds: list[str], words: str) -> None:
    asked = replace(PLAIN, **changes)  # type: ignore[arg-type]
    uses = [use(kind, "w") for kind in kinds]
    with pytest.raises(MoecError) as caught:
        asked.check_asked(uses, asked.choose(uses))
    assert words in caught.value.what
    PLAIN.check_asked(uses, PLAIN.choose(uses))


RECIPE = {"experts": 2, "down": 4, "dense": 3, "always": 8, "attention": 4, "embeddings": 8}
DOWN = replace(use("dense", "layers.0.down"), last=True)


def test_a_recipe_is_for_what_nobody_names() -> None:
    asked = replace(PLAIN, kinds={**NONE, "dense": KEEP}, rules={"q": 2}, recipe=RECIPE)
    uses = use("attention", "q"), use("attention", "k"), use("dense", "fc"), use("experts", "up")
    assert bits(asked, *uses) == [2, 8, None, 2]
    assert bits(replace(PLAIN, recipe=RECIPE), *uses) == [8, 8, 8, 2]


def test_what_every_token_reads_is_always_only_beside_experts() -> None:
    asked, dense = replace(PLAIN, recipe=RECIPE), (DOWN, use("dense", "fc"), use("attention", "q"))
    assert bits(asked, *dense) == [4, 3, 4]
    assert bits(asked, *dense, use("experts", "up")) == [8, 8, 8, 2]
    assert bits(asked, replace(use("experts", "w_out"), last=True)) == [4]
    assert bits(asked, use("router", "gate"), use("embeddings", "table")) == [None, 8]


def test_a_recipe_fits_every_model() -> None:
    asked = replace(PLAIN, default=Grid(4, 64), recipe={"experts": 2, "attention": {"bits": 8, "group": 32}})
    odd, wide, none = use("experts", "up", width=48), use("attention", "q"), use("experts", "odd", width=40)
    grids = asked.choose([odd, wide, none])
    assert [g.group for g in grids if g] == [16, 32, 64]
    asked.check_asked([odd], asked.choose([odd]))  # there is no attention, and that is no error
    with pytest.raises(MoecError, match="groups of 64 do not divide the 40 inputs"):
        asked.check_asked([none], asked.choose([none]))
