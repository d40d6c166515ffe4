"""The rules in config.json say of every module how it is stored, by its own name and by those that servers give it."""

from __future__ import annotations

import re
from typing import Any

from moec.huggingface.saving.gptq_config import quantization_config
from moec.huggingface.saving.schemes import EXPERT, FUSED, Scheme

FOUR, EIGHT, ODD = Scheme(4, 32, True), Scheme(8, 128, True), Scheme(4, 32, False)


def said_of(config: dict[str, Any], name: str) -> Scheme | None:
    """The first rule that the start of a name matches decides, as GPTQModel and vLLM read them."""
    for rule, own in config["dynamic"].items():
        if re.match(rule[2:], name):
            return Scheme(*(own[k] for k in ("bits", "group_size", "sym"))) if rule.startswith("+:") else None
    if name.endswith("lm_head") and not config["lm_head"]:
        return None
    return Scheme(config["bits"], config["group_size"], config["sym"])


def names_of(name: str) -> list[str]:
    """A module's own name, and that of the one which servers make of it and others."""
    path, _, leaf = name.rpartition(".")
    experts = EXPERT.match(name)
    return [name, *([experts[1]] if experts else []), *(f"{path}.{k}" for k, parts in FUSED.items() if leaf in parts)]


def mixture(layers: int = 12) -> dict[str, Scheme | None]:
    found: dict[str, Scheme | None] = {"lm_head": EIGHT}
    for path in (f"model.layers.{n}" for n in range(layers)):
        found |= {f"{path}.self_attn.{part}_proj": FOUR for part in "qkvo"}
        found |= {f"{path}.mlp.gate": None, f"{path}.mlp.shared_expert_gate": None}
        found |= {f"{path}.mlp.experts.{e}.{part}_proj": FOUR for e in range(2) for part in ("gate", "up", "down")}
        found |= {f"{path}.mlp.shared_expert.{part}_proj": EIGHT for part in ("gate", "up", "down")}
    return found


def test_every_module_is_said_to_be_what_it_is() -> None:
    modules = mixture()
    changed = {n: EIGHT if ".1.self_attn" in n else None if ".11.mlp.experts" in n else s for n, s in modules.items()}
    for case in (modules, changed):
        config = quantization_config(case, FOUR)
        assert {n: said_of(config, m) for n in case for m in names_of(n)} == case
        assert all(said_of(config, m) == s for n, s in case.items() for m in names_of(n))
        assert config["lm_head"] and config["checkpoint_format"] == "gptq" and not config["desc_act"]


def test_a_rule_is_for_every_layer_where_it_can_be() -> None:
    assert len(quantization_config(mixture(), FOUR)["dynamic"]) == 5  # two gates, gate and up, down, head
    modules = mixture() | {"model.layers.3.self_attn.o_proj": None}
    rules = quantization_config(modules, FOUR)["dynamic"]
    assert [r for r in rules if "o_proj" in r] == [r"-:model\.layers\.3\.self_attn\.o_proj$"]


def test_a_plain_head_needs_no_rule() -> None:
    config = quantization_config({"a.q_proj": FOUR, "lm_head": None}, FOUR)
    assert config["dynamic"] == {} and not config["lm_head"] and "modules_in_block_to_quantize" not in config


def test_zero_points_are_in_the_second_version_of_the_form() -> None:
    config = quantization_config({"a.o_proj": ODD, "b.o_proj": FOUR}, ODD)
    assert config["checkpoint_format"] == "gptq_v2" and not config["sym"]
    assert said_of(config, "b.o_proj") == FOUR and said_of(config, "a.o_proj") == ODD


def test_what_is_quantized_is_named_to_those_who_read_no_rules() -> None:
    modules = {"l.0.o_proj": FOUR, "l.1.o_proj": None, "lm_head": None}
    assert quantization_config(modules, FOUR)["modules_in_block_to_quantize"] == [["l.0.o_proj"]]
    assert "modules_in_block_to_quantize" not in quantization_config(mixture(), FOUR)
