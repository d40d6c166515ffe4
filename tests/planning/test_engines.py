"""Existing engines and their commands."""

from __future__ import annotations

from moec.planning.engines import servers
from tests.planning.shapes import dense, mixture


def test_commands_of_one_and_of_eight_devices() -> None:
    alone = {s.name: s for s in servers(mixture(name="Qwen3MoeForCausalLM"), "my model/")}
    assert alone["vLLM"].command == "vllm serve 'my model/'" and alone["vLLM"].listed
    eight = {s.name: s.command for s in servers(mixture(), "m", 8)}
    assert eight["vLLM"] == "vllm serve m --tensor-parallel-size 8 --enable-expert-parallel"
    assert eight["SGLang"].endswith("--tp-size 8 --ep-size 8") and eight["TensorRT-LLM"].startswith("trtllm-serve m")
    assert not any("expert" in s.command or "ep" in s.command.split("--")[-1] for s in servers(dense(), "m", 8))


def test_an_architecture_that_no_list_has_is_said_to_be_unlisted() -> None:
    found = servers(mixture(name="MyOwnForCausalLM"), "m")
    assert len(found) == 3 and not any(s.listed for s in found) and all(s.version and s.source for s in found)
