"""An upcycled program, saved, loads in transformers as a stock mixture of experts that computes what the dense model
does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.original import Original
from moec.program.program import Program
from moec.weights.lazy import Weight, rowwise
from tests import zoo

TOLERANCE = 2e-5  # of the reference's standard deviation


@cache
def dense(name: str) -> tuple[Any, Program]:
    model = zoo.build(name)
    return model, HuggingFaceSource.from_model(model).capture()


def changed(name: str, **entries: Any) -> tuple[Any, Program]:
    """A random model with other entries in its config."""
    config = zoo.dense_configs()[name]
    for key, value in entries.items():
        setattr(config, key, value)
    given = {k: v for k, v in config.to_dict().items() if k != "layer_types"}  # derived from the others
    model = type(zoo.build(name))(type(config)(**given)).eval()
    zoo.randomize(model, 0)
    return model, HuggingFaceSource.from_model(model).capture()


def upcycled(program: Program, text: str) -> Program:
    return Pipeline.parse(text).run(program)[0]


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, experts_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, zoo.VOCAB, (2, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits.float()[mask.bool()]  # type: ignore[no-any-return]


def gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max() / two.std())


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 777.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
ROUND_TRIPS: list[tuple[str, dict[str, Any], str, str]] = [
    ("llama", {}, "upcycle", "mixtral"),
    ("llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 0.3, "head_dim": 12}, "upcycle", "mixtral"),
    ("llama", {}, "upcycle(experts=4, granularity=4, top_k=8)", "mixtral"),
    ("llama", {"rope_parameters": LLAMA3, "head_dim": 12}, "upcycle(layers=[1], granularity=2)", "glm4_moe"),
    ("mistral", {}, "upcycle", "mixtral"),
    ("mistral", {"sliding_window": None}, "upcycle(layers=[1])", "glm4_moe"),
    ("qwen2", {}, "upcycle(granularity=2)", "glm4_moe"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 9}, "upcycle", "glm4_moe"),
    ("qwen3", {}, "upcycle", "qwen3_moe"),
    ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}, "upcycle(layers=[0])", "qwen3_moe"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 9}, "upcycle", "qwen3_moe"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "upcycle", "qwen3_moe"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "entries", "text", "kind"), ROUND_TRIPS)
def test_round_trip(name: str, entries: dict[str, Any], text: str, kind: str, tmp_path: Path) -> None:
    model, program = changed(name, **entries) if entries else dense(name)
    program = upcycled(program, text)
    assert save_hf(program, tmp_path / "out", model.config) == kind
    saved = load(tmp_path / "out")
    assert saved.config.model_type == kind
    assert gap(logits(saved), logits(model)) < TOLERANCE
    state = saved.state_dict()
    for layer in [i for i in (0, 1) if f"model.layers.{i}.mlp.experts.gate_up_proj" in state]:
        for theirs, ours in {
            "experts.gate_up_proj": "experts.w_in",
            "experts.down_proj": "experts.w_out",
            "gate.weight": "router.weight",
        }.items():
            assert torch.equal(
                state[f"model.layers.{layer}.mlp.{theirs}"], program.weights[f"model.layers.{layer}.mlp.{ours}"].load()
            )


def test_a_wrong_expert_is_seen(tmp_path: Path) -> None:
    model, program = dense("llama")
    program = upcycled(program, "upcycle")
    for name in [n for n in program.weights if n.endswith("w_out")]:
        program.weights[name] = rowwise("wrong", lambda t: t * 1.001, program.weights[name])
    save_hf(program, tmp_path / "out", model.config)
    assert gap(logits(load(tmp_path / "out")), logits(model)) > TOLERANCE


def trained(program: Program) -> Any:
    """A program's module after one step of training."""
    module = program.module(trainable=True)
    ids = torch.randint(3, zoo.VOCAB, (4, 16), generator=torch.Generator().manual_seed(2))
    module(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    return module


def test_what_was_trained_is_what_is_saved(tmp_path: Path) -> None:
    module = trained(upcycled(dense("llama")[1], "upcycle(experts=4)"))
    assert save_hf(module, tmp_path / "out") == "mixtral"
    trained_gap, dense_gap = (gap(logits(m), logits(module)) for m in (load(tmp_path / "out"), dense("llama")[0]))
    assert trained_gap < TOLERANCE < dense_gap


def test_groups_whose_rows_training_made_differ_have_no_place(tmp_path: Path) -> None:
    """Mixtral chooses among all experts; the program chooses groups first. Without training that is the same."""
    program = upcycled(dense("llama")[1], "upcycle(experts=4, granularity=2)")
    with pytest.raises(MoecError, match="all experts, this one 1 of 4 groups") as caught:
        save_hf(trained(program), tmp_path / "out")
    assert "granularity=1" in caught.value.fix and list(tmp_path.iterdir()) == []
    assert save_hf(program, tmp_path / "before") == "mixtral"


def test_the_program_is_what_is_saved_even_where_it_is_not_the_dense_model(tmp_path: Path) -> None:
    model, program = dense("qwen3")
    program = upcycled(program, "upcycle(reinit=0.5)")
    save_hf(program, tmp_path / "out", model.config)
    saved = load(tmp_path / "out")
    ids = torch.randint(3, zoo.VOCAB, (2, 8))
    with torch.no_grad():
        expected = saved(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = program.run(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
        untouched = model(input_ids=ids).logits
    assert gap(found, expected) < TOLERANCE and gap(untouched, expected) > 0.1


def test_a_folder_as_source_gives_its_tokenizer_and_other_dtypes(tmp_path: Path) -> None:
    folder = Path(zoo.save("llama", tmp_path / "dense"))
    (folder / "tokenizer.json").write_text("{}")
    model, program = dense("llama")
    save_hf(upcycled(program, "upcycle"), tmp_path / "out", folder, dtype=torch.bfloat16, max_shard_bytes=20_000)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    saved = load(tmp_path / "out")
    assert saved.dtype == torch.bfloat16
    assert gap(logits(saved), logits(model.__class__(model.config).eval().requires_grad_(False))) > 0.5  # another model
    assert gap(logits(saved.float()), logits(model)) < 0.1


def test_a_source_knows_its_config_and_folder(tmp_path: Path) -> None:
    folder = Path(zoo.save("qwen3", tmp_path / "dense"))
    (folder / "vocab.json").write_text("{}")
    source = open_source(str(folder))
    assert save_hf(upcycled(source.capture(), "upcycle"), tmp_path / "out", source) == "qwen3_moe"
    assert (tmp_path / "out" / "vocab.json").exists()


@pytest.mark.parametrize("source", ["model.py:make", object()])
def test_a_model_from_elsewhere_is_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        save_hf(upcycled(dense("llama")[1], "upcycle"), tmp_path / "out", source)
    assert caught.value.code == "M206" and "transformers library" in caught.value.what


def test_a_program_that_was_stored_says_how_to_name_its_model(tmp_path: Path) -> None:
    program = upcycled(dense("llama")[1], "upcycle").clone()
    program.original = Original.of_plain(program.original.to_plain())  # as `load_program` gives it
    with pytest.raises(MoecError) as caught:
        save_hf(program, tmp_path / "out")
    assert caught.value.where == program.source and caught.value.fix == "pass source=the model's folder"
    folder = zoo.save("llama", tmp_path / "dense")
    assert save_hf(program, tmp_path / "out", folder) == "mixtral"  # the way out works


def test_sixteen_bit_shards_go_where_the_router_is_float32(tmp_path: Path) -> None:
    model, program = dense("llama")
    program = upcycled(program, "upcycle(granularity=2)")
    assert save_hf(program, tmp_path / "out", model.config, dtype=torch.bfloat16) == "glm4_moe"
    assert gap(logits(load(tmp_path / "out").float()), logits(model)) < 0.1


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("gemma2", {}, "upcycle", "norms, biases and gates of gemma2"),
    ("phi3", {}, "upcycle", "phi3"),
    ("nemotron", {}, "upcycle", "nemotron"),
    ("gpt2", {}, "upcycle", "biases"),
    ("llama", {"attention_bias": True}, "upcycle", "attention_bias"),
    ("llama", {"mlp_bias": True}, "upcycle", "biases"),
    ("llama", {}, "upcycle(layers=[0])", "layers [1] are"),
    ("mistral", {}, "upcycle(layers=[1])", "sliding window"),
    ("qwen2", {}, "upcycle(reinit=0.5)", "sigmoid"),
    (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "upcycle",
        "some of these slide",
    ),
]


@pytest.mark.parametrize(("name", "entries", "text", "says"), REFUSED)
def test_what_no_container_holds_is_refused(
    name: str, entries: dict[str, Any], text: str, says: str, tmp_path: Path
) -> None:
    model, program = changed(name, **entries) if entries else dense(name)
    with pytest.raises(MoecError) as caught:
        save_hf(upcycled(program, text), tmp_path / "out", model.config)
    assert caught.value.code == "M206" and says in caught.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_an_untouched_program_is_refused(name: str, tmp_path: Path) -> None:
    model, program = dense(name)
    program = Pipeline.parse("find-moe, fuse-moe").all_optional().run(program)[0]
    with pytest.raises(MoecError, match="no pass has changed the model") as caught:
        save_hf(program, tmp_path / "out", model.config)
    assert caught.value.code == "M206"
    save_hf(Pipeline.parse("quantize(bits=8, group=16)").run(program)[0], tmp_path / "out", model.config)  # the way out


def test_an_entry_without_a_place_is_refused(tmp_path: Path) -> None:
    model, program = dense("mistral")
    config = type(model.config)(**model.config.to_dict(), residual_multiplier=0.5)
    with pytest.raises(MoecError) as caught:
        save_hf(upcycled(program, "upcycle"), tmp_path / "out", config)
    assert caught.value.code == "M206" and "residual_multiplier" in caught.value.what


def disk_full(start: int, stop: int) -> Tensor:
    raise OSError(28, "No space left on device")


def interrupt(start: int, stop: int) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("read", "error"), [(disk_full, MoecError), (interrupt, KeyboardInterrupt)])
def test_nothing_is_left_behind(read: Callable[[int, int], Tensor], error: type[BaseException], tmp_path: Path) -> None:
    model, program = dense("llama")
    program = upcycled(program, "upcycle")
    name = "model.layers.1.mlp.experts.w_out"
    program.weights[name] = Weight(program.weights[name].shape, torch.float32, "broken", read)
    with pytest.raises(error) as caught:
        save_hf(program, tmp_path / "out", model.config)
    assert list(tmp_path.iterdir()) == [] and getattr(caught.value, "code", "M210") == "M210"


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    model, program = dense("llama")
    (tmp_path / "out").mkdir()
    with pytest.raises(MoecError) as caught:
        save_hf(upcycled(program, "upcycle"), tmp_path / "out", model.config)
    assert caught.value.code == "M210" and list((tmp_path / "out").iterdir()) == []
