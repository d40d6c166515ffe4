"""Recurrences of transformers' models become `moec::linear_attention`, and only where they compute it; engines of such
decoders go on from their states, whatever is cut where."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.qwen3_next import modeling_qwen3_next

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import continuation, pad
from moec.huggingface.operators.linear_attention import use_moec_linear_attention
from moec.program.decoder_signature import fixed_inputs
from tests.execution.test_generation import Indirect, built, prompts, reference, talkative, text, ties
from tests.zoo import VOCAB, build

MODELS = {
    "qwen3_next": "Qwen3NextConfig",
    "qwen3_5": "Qwen3_5TextConfig",
    "qwen3_5_moe": "Qwen3_5MoeTextConfig",
    "olmo_hybrid": "OlmoHybridConfig",
    "kimi_linear": "KimiLinearConfig",
    "bailing_hybrid": "BailingHybridConfig",
}
CLOSE = 1e-3  # of the logits' standard deviation, as in a proof; eager itself is up to 1e-4 from float64 here


def made(name: str) -> Any:
    if not hasattr(transformers, MODELS[name]):
        pytest.skip(f"transformers {transformers.__version__} has no {MODELS[name]}")
    return build(name)


def ids_of(length: int, batch: int = 2) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.std())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_with_the_operator(name: str) -> None:
    model = made(name)
    changed = deepcopy(model)
    assert use_moec_linear_attention(changed) == 1
    with torch.no_grad():
        for length in (1, 7, 66):
            want, got = (m(ids_of(length), use_cache=False).logits for m in (model, changed))
            assert 0 < distance(got, want) < CLOSE, "computed otherwise, and the same"


def test_a_function_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_qwen3_next.torch_chunk_gated_delta_rule

    def other(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None = None,
        output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    ) -> Any:  # fmt: skip
        return own(
            query, key, value, g=g, beta=beta.square(), initial_state=initial_state,
            output_final_state=output_final_state, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        )  # fmt: skip

    monkeypatch.setattr(modeling_qwen3_next, "torch_chunk_gated_delta_rule", other)
    with pytest.raises(MoecError, match="computes something else") as caught:
        use_moec_linear_attention(made("qwen3_next"))
    assert caught.value.code == "M206" and caught.value.where == "model.layers.0.linear_attn"


# ---------------------------------------------------------------------- engines
NAMES = [pytest.param(name, marks=pytest.mark.repeats) for name in MODELS]


class Forgetful(Indirect):
    """An engine whose recurrences begin anew with every call."""

    def run(self, inputs: Any) -> dict[str, Tensor]:
        fixed = {i.name for i in fixed_inputs(self.inputs) if "recurrent" in i.name}
        return super().run({name: value * 0 if name in fixed else value for name, value in inputs.items()})


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Engine]:
    made(request.param)
    model = talkative(request.param)
    return model, built(model, "", tmp_path_factory.mktemp("engine"))


def pieces(engine: Engine, ids: Tensor, places: list[int]) -> Tensor:
    """The last logits of each piece, `[batch, pieces, vocabulary]`."""
    going, found = continuation(engine), []
    for first, last in zip([0, *places], [*places, ids.shape[1]], strict=True):
        logits = going.step(ids[:, first:last].numpy(), torch.ones_like(ids)[:, :last].numpy())
        found.append(torch.from_numpy(logits.copy()))  # the next step may write over them
    return torch.stack(found, 1)


def test_any_length_and_any_cut_give_what_one_go_gives(both: tuple[Any, Engine]) -> None:
    model, engine = both
    for length in (1, 2, 63, 64, 65, 130):
        ids = ids_of(length)
        with torch.no_grad():
            want = model(ids).logits
        assert distance(engine(input_ids=ids)["logits"], want) < CLOSE
    for places in ([1], [63], [64, 65], [5, 69, 128, 129], list(range(1, 12))):
        ends = [place - 1 for place in [*places, 130]]
        assert distance(pieces(engine, ids, places), want[:, ends]) < CLOSE
    forgotten = pieces(Forgetful(engine), ids, places)  # token by token: later a strong decay has forgotten, too
    assert distance(forgotten, want[:, ends]) > 10 * CLOSE, "the state matters"


def test_greedy_texts_are_transformers_own(both: tuple[Any, Engine]) -> None:
    model, engine = both
    for ids, mask in (pad(prompts(9)), pad(prompts(9, 2, 21))):
        want, logits = reference(model, ids, mask)
        assert len(want.unique()) >= 8 and ties(text(engine, ids, mask), want, logits) <= 1
    with pytest.raises(AssertionError):
        ties(text(Forgetful(engine), ids, mask), want, logits)
