"""RecurrentGemma's recurrent block goes on from states that its modules would keep in themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.execution.generation import pad
from moec.huggingface.operators import recurrent_block
from moec.huggingface.operators.recurrent_block import adapt_recurrent_blocks
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import MASK, cache_inputs
from moec.proof.cache_consistency import PADDED, READS_BEFORE, SIZES, check_consistency
from moec.proof.compare import Tolerance, compare
from tests import whole_zoo
from tests.changed import Changed
from tests.execution.test_generation import NEW, built, prompts, reference, text, ties, varied


def block() -> nn.Module:
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    with torch.device("meta"):
        config = RecurrentGemmaConfig(hidden_size=32, num_attention_heads=4)
        return nn.ModuleList([RecurrentGemmaRecurrentBlock(config, 0)])


@pytest.fixture(scope="module")
def source() -> HuggingFaceSource:
    return HuggingFaceSource.from_model(whole_zoo.build("recurrent_gemma"))


@pytest.fixture(scope="module")
def engine(source: HuggingFaceSource) -> Engine:
    return EagerEngine(source.capture())


def test_it_is_found_and_proven() -> None:
    assert adapt_recurrent_blocks(block()) == 1 and adapt_recurrent_blocks(nn.Linear(2, 2)) == 0


def test_one_that_forgets_its_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recurrent_block._forward

    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.conv1d_state = None
        return right(self, *args, **kwargs)

    monkeypatch.setattr(recurrent_block, "_forward", forgetful)
    with pytest.raises(MoecError, match="does not compute what its parts suggest") as error:
        adapt_recurrent_blocks(block())
    assert error.value.code == "M206"


def test_its_states_are_inputs_and_a_call_leaves_nothing_in_the_modules(source: HuggingFaceSource) -> None:
    names = [c.name.removeprefix("past_key_values.") for c in cache_inputs(source.inputs)]
    kinds = ("conv_state", "recurrent_state")
    assert names == [*(f"{n}.{kind}" for n in (0, 1) for kind in kinds), "2.key", "2.value"]
    reference: Any = source.reference()
    reference(**source.sample({"batch": 2, "sequence": 5, "past_sequence": 3}, 0))
    held = [m for m in reference.module.modules() if getattr(m, "recurrent_states", None) is not None]
    assert not held


@pytest.mark.parametrize("sizes", [(3, 5, 0), (2, 4, 6), (2, 1, 7)])
def test_equals_transformers_own_call_by_call(
    source: HuggingFaceSource, engine: Engine, sizes: tuple[int, int, int]
) -> None:
    sample = source.sample(dict(zip(("batch", "sequence", "past_sequence"), sizes, strict=True)), 3)
    assert compare(source.reference(), engine, [sample], Tolerance(1e-4)).ok
    if sizes[2]:

        def without(given: dict[str, Tensor]) -> dict[str, Tensor]:
            return {n: v * 0 if n.endswith("1.conv_state") else v for n, v in given.items()}

        assert not compare(source.reference(), Changed(engine, without), [sample], Tolerance(1e-3)).ok


def test_pieces_make_one_text(source: HuggingFaceSource, engine: Engine) -> None:
    sample = source.sample({**SIZES, "past_sequence": 0}, 5)
    sample[MASK][:] = 1
    found = check_consistency(engine, sample, Tolerance(1e-4), untouched=source.reference)
    assert found.ok and PADDED in {way.name for way in found.ways}


def test_padding_behind_a_text_leaves_no_trace_though_padding_before_it_is_read(
    source: HuggingFaceSource, engine: Engine
) -> None:
    sample = source.sample({**SIZES, "past_sequence": 0}, 5)
    alone = engine(input_ids=sample["input_ids"][1:2, 1:])["logits"][0]
    assert not sample[MASK][1, 0] and not torch.allclose(engine(**sample)["logits"][1, 1:], alone, atol=1e-3)
    right = check_consistency(engine, sample, Tolerance(1e-4), untouched=source.reference)
    assert right.ok and [way.left_out for way in right.ways if way.name == PADDED] == [READS_BEFORE]

    def looks(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return given | {MASK: given[MASK].clone().fill_(1)}

    wrong = check_consistency(Changed(engine, looks), sample, Tolerance(1e-4), untouched=source.reference)
    assert PADDED in {way.name for way in wrong.failed}


@pytest.mark.slow
def test_texts_are_transformers_own(tmp_path: Path) -> None:
    own = varied(whole_zoo.build("recurrent_gemma"), others=2.0, but=("embed", "recurrent_param"))
    found = built(own, "", tmp_path)
    for batch in (prompts(9), prompts(5, 9, 13)):
        ids, mask = pad(batch)
        want, logits = reference(own, ids, mask)
        assert want.shape[1] == NEW and len(want.unique()) > 8
        assert ties(text(found, ids, mask), want, logits) == 0
