"""`prune-experts`: what remains is the model with some experts fewer, to the last row of its router; which ones, a text decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.calibration import Calibration, CalibrationText
from moec.dialect import Routing
from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from moec.passes.prune_experts import PruneExperts
from moec.pipeline import Context, Pipeline
from moec.program import Program
from moec.trace import moe_nodes
from tests import zoo
from tests.routers import KNOWN, Block, Router, captured, deepseek_v3, other_input, scaled_per_expert

ops = torch.ops.moec
COUNT = {"mixtral": "num_local_experts", "deepseek_v3": "n_routed_experts", "gpt_oss": "num_local_experts", "qwen2_moe": "num_experts"}
GROUPED = {"deepseek_v3": {"n_group": 2, "topk_group": 1}}  # in groups of two, no expert can go


def text(tokens: int = 512, seed: int = 0) -> Calibration:
    ids = torch.randint(0, zoo.VOCAB, (tokens,), generator=torch.Generator().manual_seed(seed))
    return Calibration(CalibrationText("text", 0, 32), "", ids)


def context(**given: Any) -> Context:
    return Context(**{"calibration": text(), **given})


def pruned(program: Program, text: str = "prune-experts", **given: Any) -> tuple[Program, list[dict[str, Any]]]:
    done, steps = Pipeline.parse(text).run(program, context(**given))
    return done, next(s.facts["blocks"] for s in steps if s.name.startswith("prune-experts"))


def refused(program: Program, text: str, **given: Any) -> MoecError:
    with pytest.raises(MoecError) as caught:
        Pipeline.parse(text).run(program, context(**given))
    assert str(caught.value).count("\n") == 2
    return caught.value


def model_of(name: str, experts: int = 8) -> Any:
    """An architecture of `zoo` with another number of experts."""
    import transformers

    config = zoo.moe_configs()[name]
    for key, value in {COUNT[name]: experts, **GROUPED.get(name, {})}.items():
        setattr(config, key, value)
    model = getattr(transformers, config.architectures[0])(config)
    zoo.randomize(model, 0)
    return model.eval()


def with_experts(model: Any, name: str, kept: list[list[int]]) -> Any:
    """The model with only these experts in each layer that has some, put together by transformers."""
    small, layers = model_of(name, len(kept[0])), iter(kept)
    chosen: dict[str, list[int]] = {}
    state = {}
    for key, value in model.state_dict().items():
        own = any(part in key for part in (".experts.", "mlp.gate.", "mlp.router."))
        layer = key.split(".mlp.")[0]
        if own and layer not in chosen:
            chosen[layer] = next(layers)
        state[key] = value[chosen[layer]] if own else value
    small.load_state_dict(state)
    return small


def error(program: Program, model: nn.Module, sample: dict[str, Tensor]) -> float:
    with torch.no_grad():
        expected = model(**sample).logits
    return float((program.run(**sample)["logits"] - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", pytest.param("qwen2_moe", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fused", [False, True])
def test_it_is_the_model_without_these_experts(name: str, fused: bool) -> None:
    model = model_of(name)
    source = HuggingFaceSource.from_model(model, cache=False)
    program, blocks = pruned(source.capture(), "find-moe, fuse-moe, prune-experts" if fused else "prune-experts")
    kept = [b["kept"] for b in blocks]
    assert [len(k) for k in kept] == [6] * len(moe_nodes(program)) and all(sorted(b["kept"] + b["dropped"]) == list(range(8)) for b in blocks)
    assert all(w.shape[0] == 6 for n, w in program.weights.items() if ".experts." in n or "mlp.gate." in n or "mlp.router." in n)
    if name == "deepseek_v3":
        assert all(sum(e < 4 for e in k) == 3 for k in kept), "the groups are not equal"
    sample = source.sample({"batch": 3, "sequence": 9})
    assert error(program, with_experts(model, name, kept), sample) <= 1e-4
    others = [sorted({*k} - {k[0]} | {d[0]}) for k, d in ((b["kept"], b["dropped"]) for b in blocks)]
    assert error(program, with_experts(model, name, others), sample) > 0.05
