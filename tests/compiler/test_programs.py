"""From models in memory to programs, engines and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import moec
from moec import api
from moec.errors import MoecError
from moec.frontend.in_memory import IN_MEMORY
from tests import zoo
from tests.byte_tokenizer import write_tokenizer
from tests.command_line import Cli
from tests.moe_module import MoeModel

IDS = torch.randint(3, zoo.VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "masked"),
    [("llama", True), ("mixtral", False), ("bert", False), pytest.param("qwen3_moe", True, marks=pytest.mark.repeats)],
)
def test_a_transformers_model_in_memory_is_captured_as_it_stands(name: str, masked: bool) -> None:
    model = zoo.build(name)
    sample = torch.randint(3, 90, (3, 11))
    inputs = {"input_ids": sample, **({"attention_mask": torch.ones_like(sample)} if masked else {})}
    program = moec.capture(model, inputs, dynamic=dict.fromkeys(inputs, ("batch", "sequence")))
    cached = any(i.name.startswith("past_key_values") for i in program.inputs)
    assert cached is (name != "bert")
    with torch.no_grad():
        want, found = model(input_ids=IDS)[0], program.module(trainable=True)(input_ids=IDS)
    assert torch.allclose(found[0], want, atol=1e-4) and type(found) is type(model(input_ids=IDS))
    assert not torch.allclose(found[0], want + 0.01 * want.std(), atol=1e-4)  # the mutant


def test_other_inputs_than_tokens_are_taken_and_the_lost_cache_is_said() -> None:
    model = zoo.build("llama")
    dims = {"inputs_embeds": ("batch", "sequence", None)}
    source = moec.open_source(model, inputs={"inputs_embeds": torch.randn(3, 11, 32)}, dynamic=dims)
    assert [i.name for i in source.inputs] == ["inputs_embeds"]
    assert any("no cache" in line for line in source.account().lines())
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        assert torch.allclose(source.capture().run(inputs_embeds=x)["logits"], model(inputs_embeds=x).logits, atol=1e-4)


def test_inputs_in_order_and_a_sample_that_is_no_tensor() -> None:
    program = moec.capture(MoeModel().eval(), [IDS % 7])
    assert [i.shape for i in program.inputs] == [("batch", "sequence")]
    samples: list[Any] = [{"input_ids": [1, 2]}, [[1, 2]]]
    for sample in samples:
        with pytest.raises(MoecError, match="input 'input_ids' is a list, not a tensor") as caught:
            moec.capture(MoeModel(), sample)
        assert caught.value.code == "M207"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    zoo.save("llama", folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def trained(written: Path) -> moec.TrainableProgram:
    """A Llama from a folder, upcycled and trained for two steps."""
    program, _ = moec.Pipeline.parse("upcycle(experts=2, top_k=1)").run(moec.capture(written))
    module = program.module(trainable=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(2):
        module(input_ids=IDS, labels=IDS, output_router_logits=True).loss.backward()
        optimizer.step()
    return module


def test_a_trained_module_keeps_cache_tokenizer_and_layout(
    trained: moec.TrainableProgram, written: Path, tmp_path: Path, cli: Cli
) -> None:
    report = moec.compile(trained, out=tmp_path / "engine", save_hf=tmp_path / "hf")
    assert report.ok and report.layout == "genai" and report.source_hashes.keys() == {IN_MEMORY}
    assert (tmp_path / "engine" / "tokenizer.json").read_bytes() == (written / "tokenizer.json").read_bytes()
    engine = moec.load(tmp_path / "engine")
    assert any(name.startswith("present") for name in engine.outputs)
    want = trained(input_ids=IDS).logits.detach()
    assert torch.allclose(engine(input_ids=IDS)["logits"], want, atol=1e-3)
    assert not torch.allclose(trained.program.run(input_ids=IDS)["logits"], want * 1.01, atol=1e-3)  # the mutant
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert torch.allclose(saved(input_ids=IDS).logits, want, atol=1e-4)
    cli("verify", str(tmp_path / "engine"), status=2)
    assert "made in memory" in cli.err and "hf download" not in cli.err and len(cli.err.strip().splitlines()) == 3
    with torch.no_grad():
        trained.get_parameter("model.norm.weight").mul_(2)
    with pytest.raises(MoecError) as caught:
        moec.verify(tmp_path / "engine", trained)
    assert caught.value.code == "M106" and IN_MEMORY in caught.value.what


@pytest.mark.repeats
def test_a_decoder_in_memory_is_compiled_and_verified_and_so_is_what_was_made_of_it(tmp_path: Path) -> None:
    for n, model in enumerate((zoo.build("mixtral"), zoo.captured("llama").module(trainable=True))):
        inputs = {"input_ids": IDS} if n == 0 else None
        assert moec.compile(model, inputs=inputs, out=tmp_path / str(n)).layout == "genai"
        assert moec.verify(tmp_path / str(n), model).ok


@pytest.mark.parametrize(
    ("name", "passes", "kind"),
    [
        ("llama", "upcycle(experts=2, top_k=1), fuse-moe", "mixtral"),
        ("mixtral", "find-moe, fuse-moe", "mixtral"),
        ("llama", "", "llama"),
    ],
)
def test_a_trained_or_fused_program_is_saved(name: str, passes: str, kind: str, tmp_path: Path) -> None:
    program = zoo.captured(name)
    program = moec.Pipeline.parse(passes).run(program)[0] if passes else program
    module = program.module(trainable=True)
    module(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    assert moec.save_hf(module, tmp_path / "hf") == kind
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        want, before = module(input_ids=IDS).logits, zoo.build(name)(input_ids=IDS).logits
        assert torch.allclose(saved(input_ids=IDS).logits, want, atol=1e-4)
    assert not torch.allclose(want, before, atol=1e-2)


def test_copies_that_were_trained_are_copies_no_more(tmp_path: Path) -> None:
    """GLM-4's sigmoid holds groups of equal experts, and only these."""
    program, _ = moec.Pipeline.parse("upcycle(experts=2, top_k=2, granularity=2)").run(zoo.captured("llama"))
    assert moec.save_hf(program, tmp_path / "before", dtype=torch.bfloat16) == "glm4_moe"
    with pytest.raises(MoecError, match="sigmoid"):
        moec.save_hf(program.module(trainable=True), tmp_path / "after", dtype=torch.bfloat16)


def test_a_module_in_memory_is_verified_with_its_weights(tmp_path: Path, cli: Cli) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    out = tmp_path / "engine"
    report = moec.compile(model, out=out, inputs={"input": torch.randn(3, 6)})
    assert report.settings["inputs"] == ["input=batch,6:float32"] and moec.verify(out, model).ok
    cli("verify", str(out), status=2)
    assert "made in memory" in cli.err and "Sequential" in cli.err and "moec.api.bisect(engine, model)" in cli.err
    assert api.bisect(out, model).stage == ""
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(MoecError) as caught:
        moec.verify(out, model)
    with pytest.raises(MoecError, match="M106"):
        api.bisect(out, model)
    assert caught.value.code == "M106"
    assert json.loads((out / "moec.json").read_text())["source_hashes"].keys() == {IN_MEMORY}
