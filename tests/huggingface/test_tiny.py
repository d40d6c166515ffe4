"""A tiny model of an architecture has its kinds of layers, its routing and its experts, and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moec.errors import MoecError
from moec.huggingface.reading.bare import described
from moec.huggingface.shape import shape_of
from moec.huggingface.tiny import save_tiny, tiny_config
from tests import zoo
from tests.planning import configs

SMALL = {"vocab_size": 96}


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (configs.MIXTRAL, 2),
        (configs.QWEN3_30B, 2),
        (configs.QWEN3_NEXT, 4),
        (configs.DEEPSEEK_V3, 4),
        (configs.GPT_OSS, 2),
        (configs.LLAMA_70B, 2),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_published_models_come_out_tiny_and_run(config: dict[str, Any], layers: int, tmp_path: Path) -> None:
    path, out = configs.write(tmp_path, config | SMALL), tmp_path / "tiny"
    out.mkdir()
    count = save_tiny(str(path), out)
    whole, found = shape_of(str(path)), shape_of(str(out))
    assert found.total == count < 25e6 and found.layers == layers
    assert {(m.experts, m.top_k) for m in found.mixtures} == {(m.experts, m.top_k) for m in whole.mixtures}
    assert {(s.kind, s.window) for s in found.states} == {(s.kind, s.window) for s in whole.states}
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert model(input_ids=torch.arange(12)[None]).logits.isfinite().all()


def test_seeds_decide_the_weights_and_the_tokenizer_comes_along(tmp_path: Path) -> None:
    source = Path(zoo.save("llama", tmp_path / "llama"))
    (source / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    first, again, other = (tmp_path / name for name in "abc")
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        folder.mkdir()
        save_tiny(str(source), folder, seed)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert (first / "tokenizer_config.json").read_text() == '{"model_max_length": 7}'


def test_an_architecture_that_stays_large_is_refused(tmp_path: Path) -> None:
    many = str(configs.write(tmp_path, configs.QWEN3_30B | {"num_experts": 8192}))
    with pytest.raises(MoecError, match="M206") as refused:
        tiny_config(*described(many), many)
    assert "parameters" in refused.value.what
