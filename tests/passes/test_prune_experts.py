"""`prune-experts`: what remains is the model with some experts fewer, to the last row of its router; which ones, a text
decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moec import api
from moec.errors import MoecError
from moec.frontend.export import capture
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from tests import zoo
from tests.routers import Block, captured, mixtral, scaled_per_expert

COUNT = {
    "mixtral": "num_local_experts",
    "deepseek_v3": "n_routed_experts",
    "gpt_oss": "num_local_experts",
    "qwen2_moe": "num_experts",
}
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


SLOW = pytest.mark.slow
CASES = [
    ("mixtral", False),
    ("deepseek_v3", True),
    ("gpt_oss", False),
    pytest.param("gpt_oss", True, marks=SLOW),
    pytest.param("qwen2_moe", False, marks=SLOW),
]


@pytest.mark.parametrize(("name", "fused"), CASES)
def test_it_is_the_model_without_these_experts(name: str, fused: bool) -> None:
    model = model_of(name)
    source = HuggingFaceSource.from_model(model, cache=False)
    program, blocks = pruned(source.capture(), "find-moe, fuse-moe, prune-experts" if fused else "prune-experts")
    kept = [b["kept"] for b in blocks]
    assert [len(k) for k in kept] == [6] * len(moe_nodes(program)) and all(
        sorted(b["kept"] + b["dropped"]) == list(range(8)) for b in blocks
    )
    assert all(
        w.shape[0] == 6
        for n, w in program.weights.items()
        if ".experts." in n or "mlp.gate." in n or "mlp.router." in n
    )
    if name == "deepseek_v3":
        assert all(sum(e < 4 for e in k) == 3 for k in kept), "the groups are not equal"
    sample = source.sample({"batch": 3, "sequence": 9})
    assert error(program, with_experts(model, name, kept), sample) <= 1e-4
    others = [sorted({*k} - {k[0]} | {d[0]}) for k, d in ((b["kept"], b["dropped"]) for b in blocks)]
    assert error(program, with_experts(model, name, others), sample) > 0.05


@pytest.fixture(scope="module")
def model() -> Program:
    return zoo.captured("mixtral")


def experts_kept(program: Program, text: str, **given: Any) -> list[list[int]]:
    return [b["kept"] for b in pruned(program, text, **given)[1]]


def test_seeds_and_scores_decide(model: Program) -> None:
    by_score = {
        score: experts_kept(model, f"prune-experts(keep=0.5, score={score})")
        for score in ("reap", "activation", "frequency", "random")
    }
    assert by_score["random"] != by_score["reap"]
    assert by_score["random"] != experts_kept(model, "prune-experts(keep=0.5, score=random)", seed=1)
    assert by_score["random"] == experts_kept(model, "prune-experts(keep=0.5, score=random)", calibration=None), (
        "chance needs no text"
    )
    assert by_score["frequency"] == experts_kept(model, "prune-experts(keep=0.5, score=frequency)")


def test_what_is_kept_is_what_is_used(model: Program) -> None:
    """The text's most frequent experts stay: what is dropped was chosen less often, and the report says how often."""
    _, blocks = pruned(model, "prune-experts(score=frequency)")
    for block in blocks:
        assert block["frequency_dropped_most"] <= block["frequency_kept_least"] and 0 < block["choices_dropped"] < 0.25
        assert block["tokens_least"] > 0


def test_layers_may_keep_different_numbers(model: Program) -> None:
    sizes = [len(k) for k in experts_kept(model, "prune-experts(keep=0.4375, score=activation, per_layer=False)")]
    assert sum(sizes) == 7 and all(n >= 2 for n in sizes)
    assert [len(k) for k in experts_kept(model, "prune-experts(keep=0.4375)")] == [
        4,
        4,
    ]  # a part of an expert does not go


def test_it_composes_with_quantize(model: Program) -> None:
    program, steps = Pipeline.parse("prune-experts, quantize(bits=8, group=16)").run(model, context())
    assert [s.name.partition("(")[0] for s in steps] == ["find-moe", "prune-experts", "quantize"]
    packed = program.weights["model.layers.0.mlp.experts.gate_up_proj_packed"]
    assert packed.shape[0] == 6 and program.weights["model.layers.0.mlp.gate.weight"].shape == (6, 32)
    again, _ = Pipeline.parse("find-moe, fuse-moe").all_optional().run(program)
    assert len(again.nodes(torch.ops.moec.moe)) == 2, "what remains is a mixture like any other"


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("keep=0", "no share"),
        ("keep=1.5", "no share"),
        ("keep=-0.5", "no share"),
        ("keep=True", "no share"),
        ("keep='half'", "no share"),
        ("score=luck", "no score 'luck'"),
        ("keep=0.125", "leaves 1 of 8 experts, where a token goes to 2"),
    ],
)
def test_settings_that_mean_nothing(model: Program, text: str, what: str) -> None:
    error = refused(model, f"prune-experts({text})")
    assert error.code == "M203" and what in error.what
    assert "keep at least 0.25" in error.fix or "leaves" not in what


def test_keeping_all_changes_nothing_and_says_so(model: Program) -> None:
    for keep in (1, 0.9):
        error = refused(model, f"prune-experts(keep={keep})")
        assert error.code == "M103" and "of its 8 experts is all of them" in error.what


def test_it_needs_a_text_unless_chance_decides(model: Program) -> None:
    error = refused(model, "prune-experts", calibration=None)
    assert error.code == "M203" and "needs a text" in error.what


def test_experts_that_the_text_never_reaches_may_go_but_not_stay(model: Program) -> None:
    one = Calibration(CalibrationText("text", 0, 2), "", torch.tensor([5, 5]))
    error = refused(model, "prune-experts", calibration=one)
    assert (
        error.code == "M203" and "never reached experts" in error.what and error.where == "model.layers.0.mlp.experts"
    )
    _, blocks = pruned(model, "prune-experts(keep=0.25)", calibration=one)
    assert all(b["tokens_least"] > 0 and b["choices_dropped"] < 1 for b in blocks)


def test_groups_that_cannot_lose_an_expert() -> None:
    program = HuggingFaceSource.from_model(zoo.build("deepseek_v3"), cache=False).capture()
    error = refused(program, "prune-experts(keep=0.5)")
    assert (
        "leaves 4 of 8 experts, where a token goes to 3 within 2 of 4 groups" in error.what
        and "needs them all" in error.fix
    )
    assert "in groups" in refused(program, "prune-experts(per_layer=False)").what


def test_a_router_that_was_not_recognised() -> None:
    error = refused(captured(Block(scaled_per_expert)), "prune-experts(score=random)")
    assert (
        error.code == "M203" and "no routing rule computes what it computes" in error.what and error.where == "experts"
    )


def test_after_quantize_there_is_nothing_to_score(model: Program) -> None:
    assert "put it before quantize" in refused(model, "quantize(bits=8, group=16), prune-experts").fix


def test_twice_prunes_twice_and_nothing_else_runs_again(model: Program) -> None:
    program, steps = Pipeline.parse("prune-experts, prune-experts(keep=0.5)").run(model, context())
    assert [s.name.partition("(")[0] for s in steps] == ["find-moe", "prune-experts", "prune-experts"]
    assert [n.args[3].meta["val"].shape[0] for n in moe_nodes(program)] == [3, 3]  # type: ignore[union-attr]


def test_blocks_without_routers_of_their_own() -> None:
    assert (
        "nothing in the graph"
        in refused(
            capture(torch.nn.Linear(16, 16), {"input": torch.randn(3, 16)}, {}), "prune-experts(score=random)"
        ).what
    )
    assert pruned(captured(Block(mixtral)), "prune-experts(score=random)")[1][0]["module"] == "experts"


def test_an_engine_of_it_is_proven_and_judged(mixtral: Path, tmp_path: Path) -> None:
    """Against a model with more experts; and proven again from the manifest, with the same text."""
    np.save(tmp_path / "text.npy", np.random.default_rng(0).integers(0, zoo.VOCAB, 1200))
    given = {
        "text": str(tmp_path / "text.npy"),
        "tokens": 512,
        "max_kl": 50.0,
        "calibration": str(tmp_path / "text.npy"),
    }
    report = api.compile(
        str(mixtral), out=tmp_path / "engine", pipeline="prune-experts(keep=0.5), quantize(bits=8, group=16)", **given
    )
    assert report.coverage.complete and [len(load.assignments) for load in report.coverage.loads] == [4, 4]
    assert report.quality is not None and report.quality.agreement is not None and report.quality.kl_mean > 0.01
    assert not report.quality.agreement.blocks and len(report.quality.agreement.layers) == 2, (
        "choices among other experts can't agree"
    )
    assert next(s for s in report.steps if s["name"].startswith("prune-experts"))["facts"]["bytes_after"] > 0
    assert api.verify(tmp_path / "engine", max_kl=50.0).ok
