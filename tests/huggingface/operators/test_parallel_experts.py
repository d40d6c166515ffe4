"""JetMoE: a mixture of attention and one of feed-forward experts, equal to the model with its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.jetmoe import modeling_jetmoe as code

from moec import open_source
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.huggingface.operators.parallel_experts import adapt_parallel, is_parallel
from moec.program.dialect_call import ROUTE
from moec.program.moe_call import moe_nodes


def config(layers: int = 1) -> Any:
    heads = {"num_key_value_heads": 2, "kv_channels": 8, "num_experts_per_tok": 2, "num_local_experts": 4}
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": layers, "vocab_size": 96}
    return transformers.JetMoeConfig(**heads, **sizes, max_position_embeddings=128)


@torch.no_grad()
def drawn(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (0.2 if p.dim() > 1 else 0.1) + (p.dim() == 1))
    return model.eval()


def test_both_mixtures_equal_the_model_with_its_cache(tmp_path: Path) -> None:
    drawn(transformers.JetMoeForCausalLM(config())).save_pretrained(tmp_path)
    source = open_source(str(tmp_path))
    program = source.capture()
    assert len(moe_nodes(program)) == 1 and len(program.nodes(ROUTE)) == 2
    for sizes in ({"batch": 1, "sequence": 1, "past_sequence": 6}, {"batch": 3, "sequence": 9, "past_sequence": 0}):
        given = source.sample(sizes)
        want, found = source.reference()(**given), EagerEngine(program)(**given)
        assert set(want) == set(found) and len(found) == 3
        real = given["attention_mask"][:, -sizes["sequence"] :].bool()  # padding is anything
        for name, value in want.items():
            part = real if name == "logits" else slice(None)
            assert (found[name] - value)[part].abs().max() <= 1e-4 * value.std()
            assert (found[name].roll(1, -1) - value)[part].abs().max() > 1e-2 * value.std()


def adapted(kind: type) -> None:
    module = drawn(kind(config()))
    assert is_parallel(module)
    adapt_parallel("experts", module)


@pytest.mark.parametrize(("kind", "method"), [(code.JetMoeMoE, "forward"), (code.JetMoeMoA, "reduce")])
def test_the_same_parts_with_another_meaning_are_refused(
    kind: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted(kind)
    original = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda self, *given: original(self, *given) + self.bias)
    with pytest.raises(MoecError, match="does not compute") as error:
        adapted(kind)
    assert error.value.code == "M206" and kind.__name__ in error.value.what
