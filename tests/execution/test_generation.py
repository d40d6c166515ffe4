"""Greedy texts are transformers' own, token by token, on the untouched model: alone and in a padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.execution.generation import (
    Continuation,
    GuardedContinuation,
    Sampling,
    choose,
    clocked,
    generate,
    is_decoder,
    pad,
)
from moec.frontend.source import Source
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.conditions import Assumptions, Condition
from moec.program.decoder_signature import cache_inputs, present_name
from moec.targets.backend import find_backend
from moec.targets.target import Target
from tests.cases import UPCYCLE
from tests.zoo import VOCAB, build

FAMILIES = {
    "llama": "", "qwen3": "", "gemma2": "", "phi3": "", "llama, upcycled": UPCYCLE,
    "mixtral": "", "qwen3_moe": "", "deepseek_v3": "", "gpt_oss": "", "glm4_moe": "",
}  # fmt: skip
REPEATED = "llama", "qwen3", "phi3", "llama, upcycled", "glm4_moe"  # another's cache and attention
NEW = 64
Model = TypeVar("Model", bound=nn.Module)


def talkative(name: str) -> nn.Module:
    return varied(build(name))


def varied(model: Model, embedding: float = 0.1, others: float = 3.0, but: Sequence[str] = ("lm_head",)) -> Model:
    """The model with larger weights behind a smaller embedding, in place: its greedy texts have dozens of different
    tokens, not two. `but`: parts of the names of weights that stay."""
    with torch.no_grad():
        for weight, value in model.named_parameters():
            if value.dim() > 1 and not any(part in weight for part in but):
                value.mul_(embedding if "embed" in weight else others)
    return model


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def text(engine: Engine, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    return torch.stack(list(generate(engine, ids, mask, **{"max_tokens": NEW, **options})), dim=1)


def reference(model: Any, ids: Tensor, mask: Tensor, eos: int | None = None) -> tuple[Tensor, Tensor]:
    """transformers' own greedy text and its logits, `[batch, new]` and `[batch, new, vocabulary]`."""
    model.generation_config.eos_token_id = eos
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits, dim=1)


def ties(got: Tensor, want: Tensor, logits: Tensor) -> int:
    """Rows that depart from the reference where its own two logits are closer than 1e-4 std; any other departure is an
    error."""
    found = 0
    for ours, theirs, scores in zip(got, want, logits, strict=True):
        apart = (ours != theirs).nonzero()
        if len(apart):
            at = int(apart[0])
            gap = (scores[at, theirs[at]] - scores[at, ours[at]]) / scores[at].std()
            assert gap < 1e-4, (
                f"token {at} is {int(ours[at])}, not {int(theirs[at])}, which is likelier by {gap:.1e} std"
            )
            found += 1
    return found


class Indirect(Engine):
    """An engine without a continuation of its own, so that the cache goes through tensors; if told, with two layers'
    keys exchanged."""

    def __init__(self, engine: Engine, exchange: bool = False) -> None:
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self._engine, self._exchange = engine, exchange

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._engine.run(inputs)
        if self._exchange:
            found["present.0.key"], found["present.1.key"] = found["present.1.key"], found["present.0.key"]
        return found


def built(model: nn.Module | Source, pipeline: str, folder: Path) -> Engine:
    """An engine without the proof, which tests of the backend make."""
    target, context = Target("onnxruntime"), Context()
    backend = find_backend(target)
    source = model if isinstance(model, Source) else moec.open_source(model)
    program, _ = Pipeline.parse(pipeline).run(source.capture(), context)
    program, _ = backend.legalize(target).run(program, context)
    backend.build(program, target, folder)
    return backend.load(folder, target)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.repeats] if f in REPEATED else []) for f in FAMILIES]
)
def test_greedy_text_equals_transformers(family: str, tmp_path: Path) -> None:
    model = talkative(family.split(",")[0])
    engine = built(model, FAMILIES[family], tmp_path)
    texts = [pad(batch) for batch in (prompts(1), prompts(6), prompts(140), prompts(9, 2, 21))]
    close = 0
    for ids, mask in texts:
        want, logits = reference(model, ids, mask)
        assert len(want.unique()) >= 8
        close += ties(text(engine, ids, mask), want, logits)
        close += ties(text(Indirect(engine), ids, mask, max_tokens=9), want[:, :9], logits[:, :9])
    assert close <= 1
    with pytest.raises(AssertionError):
        ties(text(Indirect(engine, exchange=True), ids, mask), want, logits)


# ---------------------------------------------------------------------- one engine
@pytest.fixture(scope="module")
def engine(mixtral_engine: Path) -> Engine:
    return moec.load(mixtral_engine)


@pytest.fixture(scope="module")
def model(mixtral: Path) -> Any:
    import transformers

    return transformers.MixtralForCausalLM.from_pretrained(mixtral, dtype=torch.float32).eval()


IDS, MASK = pad(prompts(9, 2, 21))


def test_padding_may_be_anywhere(engine: Engine) -> None:
    want = text(engine, IDS, MASK)
    right = [row[mask.bool()].tolist() for row, mask in zip(IDS, MASK, strict=True)]
    ids = torch.tensor([r + [0] * (24 - len(r)) for r in right])
    mask = torch.tensor([[1] * len(r) + [0] * (24 - len(r)) for r in right])
    assert torch.equal(text(engine, ids, mask), want)
    assert not torch.equal(text(engine, ids), want)  # the mutant: padding that is not masked


def test_finished_rows_stay_finished(engine: Engine, model: Any) -> None:
    free, _ = reference(model, IDS, MASK)
    end = int(free[0, 4])
    want, logits = reference(model, IDS, MASK, eos=end)
    got = text(engine, IDS, MASK, eos=[end])
    assert got.shape == want.shape and not ties(got, want, logits)
    assert bool((got[0, 5:] == 0).all()) and not torch.equal(got, free[:, : got.shape[1]])
    assert text(engine, IDS[:1], MASK[:1], eos=[end, int(free[0, 0])]).tolist() == [[int(free[0, 0])]]


def test_every_kind_of_engine_writes_the_same(engine: Engine, mixtral: Path) -> None:
    source = moec.open_source(str(mixtral))
    want = text(engine, IDS, MASK)
    for other in (source.reference(), EagerEngine(source.capture())):
        assert is_decoder(other) and torch.equal(text(other, IDS, MASK), want)


def test_the_context_ends_a_text(engine: Engine) -> None:
    ids = torch.tensor(prompts(12))
    assert text(engine, ids, context=17).shape == (1, 5) and text(engine, ids, context=13).shape == (1, 1)
    refused(lambda: generate(engine, ids, context=12), "a prompt of 12 tokens leaves no room in a context of 12")
    padded, mask = torch.cat([ids, ids], dim=1), torch.tensor([[1] * 12 + [0] * 12])
    assert text(engine, padded, mask, context=17).shape == (1, 5)  # padding takes no room


def refused(attempt: Any, what: str, code: str = "M211") -> str:
    """The code of the error, after checks of what was wrong and that three lines say it."""
    with pytest.raises(MoecError) as error:
        attempt()
    assert error.value.code == code and what in error.value.what, error.value
    assert error.value.exit_code == 2 and len(str(error.value).splitlines()) == 3
    return error.value.code


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.ones(3, dtype=torch.int64), None),
        (torch.ones((1, 3), dtype=torch.int32), None),
        (torch.ones((1, 0), dtype=torch.int64), None),
        (torch.ones((2, 3), dtype=torch.int64), torch.ones((2, 4), dtype=torch.int64)),
        (torch.ones((2, 3), dtype=torch.int64), torch.tensor([[1, 1, 1], [0, 0, 0]])),
    ],
    ids=["one dimension", "int32", "nothing", "mask of another length", "an empty row"],
)
def test_prompts_of_another_form_are_refused(engine: Engine, ids: Tensor, mask: Tensor | None) -> None:
    assert refused(lambda: generate(engine, ids, mask), "ids and mask are") == "M211"


def test_other_nonsense_is_refused(engine: Engine) -> None:
    refused(lambda: generate(engine, IDS, MASK, max_tokens=0), "0 tokens", "M201")
    refused(lambda: text(engine, torch.tensor([[VOCAB]])), "the model knows", "M214")
    refused(lambda: engine(input_ids=torch.tensor([[VOCAB]])), "the model knows", "M214")
    for wrong in ({"temperature": -1.0}, {"temperature": 1.0, "top_p": 0.0}, {"top_k": 3}):
        refused(lambda wrong=wrong: Sampling(**wrong), "", "M201")
    encoder = Indirect(engine)
    encoder.inputs = encoder.inputs[:2]
    assert refused(lambda: generate(encoder, IDS, MASK), "it writes no text") == "M211"


def caches(engine: Engine, batch: int = 2, past: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        c.name: torch.zeros(c.resolve({"batch": batch, "past_sequence": past}), dtype=dtype)
        for c in cache_inputs(engine.inputs)
    }


def test_a_cache_of_another_form_is_refused(engine: Engine) -> None:
    ids, right = torch.ones((2, 3), dtype=torch.int64), caches(engine)
    first = "past_key_values.0.key"
    assert engine(input_ids=ids, **right)[present_name(first)].shape[2] == 7
    wrong: Sequence[tuple[dict[str, Tensor], str]] = [
        (caches(engine, batch=3), first),
        (caches(engine, dtype=torch.float16), first),
        (caches(engine, dtype=torch.float64), first),
        ({**right, "past_key_values.1.value": right[first][:, :1]}, "past_key_values.1.value"),
        ({**right, "past_key_values.1.value": right[first][:, :, :3]}, "past_key_values.1.value"),
        ({**right, "past_key_values.1.value": right[first][..., :3]}, "past_key_values.1.value"),
        ({**right, "past_key_values.1.value": right[first][0]}, "past_key_values.1.value"),
        ({k: v for k, v in right.items() if k != "past_key_values.1.value"}, "past_key_values.1.value"),
        ({**right, "past_key_values.9.key": right[first]}, "past_key_values.9.key"),
        ({**right, "attention_mask": torch.ones((2, 3), dtype=torch.int64)}, first),
        ({**right, "attention_mask": torch.ones((2, 7), dtype=torch.int32)}, "attention_mask"),
    ]
    for inputs, named in wrong:
        refused(lambda inputs=inputs: engine(input_ids=ids, **inputs), repr(named))


# ---------------------------------------------------------------------- sampling
def test_drawing_is_repeatable_and_narrows_to_greedy(engine: Engine) -> None:
    want = text(engine, IDS, MASK)
    drawn = text(engine, IDS, MASK, sampling=Sampling(1.0, seed=5))
    assert torch.equal(drawn, text(engine, IDS, MASK, sampling=Sampling(1.0, seed=5)))
    assert not torch.equal(drawn, text(engine, IDS, MASK, sampling=Sampling(1.0, seed=6))) and not torch.equal(
        drawn, want
    )
    for narrow in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-6), Sampling(1e-4)):
        assert torch.equal(text(engine, IDS, MASK, sampling=narrow), want)


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7), Sampling(1.3, top_k=4), Sampling(1.0, top_p=0.6), Sampling(0.8, top_k=6, top_p=0.7)]
)
def test_draws_follow_the_shares_that_transformers_computes(sampling: Sampling) -> None:
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 1.5 * torch.randn((1, 12), generator=torch.Generator().manual_seed(1))
    ids = torch.zeros((1, 1), dtype=torch.int64)
    warpers = [
        TemperatureLogitsWarper(sampling.temperature),
        TopKLogitsWarper(sampling.top_k or 12),
        TopPLogitsWarper(sampling.top_p),
    ]
    scores = logits
    for warper in warpers:
        scores = warper(ids, scores)
    want, generator = scores.softmax(-1)[0], torch.Generator().manual_seed(2)
    drawn = choose(logits.expand(20000, -1).numpy(), sampling, generator)
    found = torch.from_numpy(drawn).bincount(minlength=12) / 20000
    assert bool((found[want == 0] == 0).all()) and (found - want).abs().max() < 0.015
    assert (found - logits.softmax(-1)[0]).abs().max() > 0.03  # the mutant: the shares without these settings


def test_waiting_is_clocked() -> None:
    items = list(clocked(iter("abc")))
    assert [item for item, _ in items] == ["a", "b", "c"] and all(seconds >= 0 for _, seconds in items)


# ---------------------------------------------------------------------- what the engine was made for
@pytest.mark.parametrize("own", [True, False], ids=["own continuation", "through tensors"])
@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_prompt_out_of_the_vocabulary_is_refused(engine: Engine, own: bool, token: int) -> None:
    asked = engine if own else Indirect(engine)
    asked.assume(Assumptions((), engine.values))
    with pytest.raises(MoecError, match=f"holds {token}") as caught:
        text(asked, torch.tensor([[5, token, 7]]))
    assert caught.value.code == "M214"


@pytest.mark.parametrize("own", [True, False], ids=["own continuation", "through tensors"])
def test_a_text_ends_where_the_conditions_do(mixtral_engine: Path, own: bool) -> None:
    loaded = moec.load(mixtral_engine)
    asked = loaded if own else Indirect(loaded)
    asked.assume(Assumptions((Condition("past_sequence + sequence <= 9"),), loaded.values))
    made = []
    with pytest.raises(MoecError) as caught:
        for token in generate(asked, torch.tensor([[5, 6, 7, 8]]), max_tokens=20):
            made.append(int(token))
    assert caught.value.code == "M213" and len(made) == 6
    with pytest.raises(MoecError):
        list(generate(asked, torch.full((1, 10), 5), max_tokens=1))


class Wide(Continuation):
    """Logits for more tokens than the vocabulary has, as padded heads give; the likeliest has no row."""

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.eye(1, VOCAB + 8, VOCAB + 3)


def test_a_chosen_token_without_a_row_is_refused(engine: Engine) -> None:
    guarded = GuardedContinuation(engine, Wide())
    one = np.ones((1, 1), np.int64)
    token = guarded.step(one, one).argmax(-1)[:, None]
    with pytest.raises(MoecError) as caught:
        guarded.step(token, np.ones((1, 2), np.int64))
    assert caught.value.code == "M214"
