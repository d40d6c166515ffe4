"""A decoder with a state that is no key and no value, from end to end: LFM2-MoE, whose convolutions have a window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

import moec
from moec import api
from moec.backends.onnxruntime.session import continuation
from moec.backends.onnxruntime.session.continuation import HostContinuation, SharedContinuation
from moec.backends.onnxruntime.session.on_device import DeviceContinuation
from moec.execution.generation import TensorContinuation, pad
from moec.program.decoder_signature import IDS, MASK, fixed_inputs
from moec.proof.cache_consistency import IN_TURNS, PADDED, SIZES, check_consistency
from moec.proof.compare import Tolerance
from tests.changed import Changed
from tests.execution.test_generation import NEW, prompts, reference, talkative, text, ties
from tests.layouts.test_genai import expected, generate
from tests.proving import cache
from tests.spoiling import edit

STATE = "past_key_values.0.conv_state"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "lfm2"
    talkative("lfm2_moe").save_pretrained(folder)  # type: ignore[operator]  # a PreTrainedModel
    return folder


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "lfm2"
    moec.compile(model, out=out)
    return out


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    return moec.load(folder)


@pytest.fixture(scope="module")
def sample(model: Path) -> dict[str, Tensor]:
    return moec.open_source(model).sample(SIZES, 3)


def test_it_is_proven_with_its_state_and_lies_as_onnxruntime_genai_reads_it(folder: Path, engine: Any) -> None:
    report = api.read_report(folder)
    ways = cache(report.proof).consistency.ways
    assert {PADDED, IN_TURNS} <= {way.name for way in ways} and cache(report.proof).ok
    assert [i.name for i in fixed_inputs(engine.inputs)] == [STATE] and "present.0.conv_state" in engine.outputs
    assert [fact["formulation"] for fact in report.facts["convolutions"]] == ["CausalConvWithState"]
    assert report.layout == "genai"


def test_greedy_texts_are_transformers_own_alone_and_in_a_padded_batch(engine: Any) -> None:
    for batch in (prompts(6), prompts(9, 2, 21)):
        ids, mask = pad(batch)
        want, logits = reference(talkative("lfm2_moe"), ids, mask)
        assert want.shape[1] == NEW and len(want.unique()) >= 8
        assert ties(text(engine, ids, mask), want, logits) == 0


def test_onnxruntime_genai_writes_them_too_with_padding_behind_its_prompts(model: Path, folder: Path) -> None:
    asked = prompts(9, 2, 21)
    assert generate(folder, asked, 24) == expected(model, asked, 24)


FORMS: dict[str, Any] = {
    "host": lambda e: HostContinuation(e._session, e.inputs, e.name),
    "shared": lambda e: SharedContinuation(e._session, e.inputs, e.name),
    "device": lambda e: DeviceContinuation(e._session, e.inputs, e.name, "cpu"),
    "tensors": TensorContinuation,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_text_that_is_written_carries_it(
    engine: Any, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turns with another text, through buffers that are used up, over calls of several tokens."""
    monkeypatch.setattr(continuation, "ROOM", 2)
    ids, mask = pad([[*range(5, 15)], [*range(20, 27)]])
    want, done = engine(input_ids=ids, attention_mask=mask)["logits"], 0
    one, other = FORMS[form](engine), FORMS[form](engine)
    for new in (3, 1, 1, 1, 2, 1, 1):
        done += new
        found = one.step(ids[:, done - new : done].numpy(), mask[:, :done].numpy()).copy()
        other.step(ids.flip(1)[:, done - new : done].numpy(), mask[:, :done].numpy())
        assert (torch.from_numpy(found) - want[:, done - 1]).abs().max() < 1e-4 * want.std()


@pytest.mark.parametrize("how", ["lost", "another's"])
def test_a_wrong_state_is_found(engine: Any, sample: dict[str, Tensor], how: str) -> None:
    assert check_consistency(engine, sample, Tolerance(1e-3)).ok
    spoil = {"lost": lambda state: state * 0, "another's": lambda state: state.roll(1, 0)}[how]
    spoiled = Changed(engine, lambda given: given | {STATE: spoil(given[STATE])})
    found = check_consistency(spoiled, sample, Tolerance(1e-3))
    assert len(found.failed) == len(found.ways) and found.error() is not None


def _window_ends(change: Callable[..., ir.Value]) -> Callable[[ir.Model], None]:
    """The edit that cuts windows elsewhere: `change` gets a way to make operators, where the last token of each text
    stands in a call, how many tokens the call has, and how many there are with those before it."""

    def edit_graph(model: ir.Model) -> None:
        graph = model.graph
        last = next(node for node in graph if node.op_type == "ReduceMax").outputs[0]
        users, made = list(last.uses()), list[ir.Node]()

        def make(kind: str, *given: ir.Value, **attributes: Any) -> ir.Value:
            made.append(ir.node(kind, given, attributes))
            return made[-1].outputs[0]

        ids, mask = (next(i for i in graph.inputs if i.name == name) for name in (IDS, MASK))
        new = change(make, last, *(make("Shape", i, start=1, end=2) for i in (ids, mask)))
        for user, k in users:
            user.replace_input_with(k, new)
        graph.extend(made)
        graph.sort()

    return edit_graph


WRONG_ENDS: dict[str, Callable[..., ir.Value]] = {
    "the longest text's": lambda make, last, new, _: make("Max", make("ReduceMax", last), last),
    "the call's after others": lambda make, last, new, whole: make("Where", make("Less", new, whole), new, last),
    "the call's where a text has no token": lambda make, last, new, _: make(
        "Where", make("Greater", last, make("Sub", new, new)), last, new
    ),
}


@pytest.mark.parametrize("how", WRONG_ENDS)
def test_a_window_that_ends_elsewhere_where_texts_have_padding_of_their_own_is_found(
    folder: Path, sample: dict[str, Tensor], tmp_path: Path, how: str
) -> None:
    wrong = moec.load(edit(folder, tmp_path / "copy", _window_ends(WRONG_ENDS[how])))
    assert [way.name for way in check_consistency(wrong, sample, Tolerance(1e-3)).failed] == [PADDED]


def test_an_engine_that_reads_padding_before_a_text_is_excused_by_a_model_that_does_so_alone(
    model: Path, engine: Any, sample: dict[str, Tensor]
) -> None:
    def seen(given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Padding before a text counts as text."""
        mask = given[MASK]
        return given | {MASK: mask + (mask.cummax(1).values == 0).to(mask.dtype)}

    right, wrong = moec.open_source(model).reference(), Changed(engine, seen)
    for untouched, failed in ((lambda: right, [PADDED]), (lambda: wrong, [])):
        found = check_consistency(wrong, sample, Tolerance(1e-3), untouched=untouched)
        assert [way.name for way in found.failed if way.name == PADDED] == failed


def test_padding_behind_a_prompt_leaves_a_trace_in_transformers_and_none_in_the_engine(
    model: Path, sample: dict[str, Tensor]
) -> None:
    """The mutant of that way of feeding a text: transformers' convolution goes on behind padding; and before a text, it
    takes padding that comes alone for a token."""
    found = check_consistency(moec.open_source(model).reference(), sample, Tolerance(1e-3))
    assert [way.name for way in found.failed] == ["token by token", PADDED]
