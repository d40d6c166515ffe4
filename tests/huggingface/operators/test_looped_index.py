"""Qwen4-exp's index over pools of keys, for all tokens at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.operators import looped_index
from moec.huggingface.operators.looped_index import adapt_looped_index
from moec.huggingface.operators.proven import small_instance
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import POSITIONS, cache_inputs, without_padding
from tests import whole_zoo


def model() -> Any:
    from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextQSAIndexer

    found: Any = torch.nn.Module()
    found.config = whole_zoo.config("qwen4_exp_text")
    with torch.device("meta"):
        found.indexer = Qwen4ExpTextQSAIndexer(found.config, 1)
    return found


def test_it_is_found_and_proven() -> None:
    found = model()
    assert adapt_looped_index(found) == 1 and found.indexer.forward.__func__ is looped_index._forward
    del found.indexer
    assert adapt_looped_index(found) == 0


def _places_of_all_keys(right: Any, module: Any, keys: Any, place: Any, present: Any, pools: Any) -> Any:
    """The mutant that counts padding, too."""
    return right(module, keys, torch.arange(keys.shape[1]).expand_as(place), torch.ones_like(present), pools)


def _one_too_late(right: Any, module: Any, keys: Any, place: Any, present: Any, pools: Any) -> Any:
    found, first = right(module, keys, place, present, pools)
    return found, (first + 1).clamp(max=keys.shape[1] - 1)


@pytest.mark.parametrize("wrong", [_places_of_all_keys, _one_too_late])
def test_pools_of_other_keys_are_refused(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = looped_index._pooled
    monkeypatch.setattr(looped_index, "_pooled", lambda *given: wrong(right, *given))
    with pytest.raises(MoecError, match="does not choose the tokens") as error:
        adapt_looped_index(model())
    assert error.value.code == "M206"


def _turned_as_first_tokens(right: Any, module: Any, query: Any, pooled: Any, turns: Any) -> Any:
    """The mutant of scores that shows in the second call with a cache alone: its tokens stand where the first stood."""
    length = query.shape[1]
    return right(
        module, query, pooled, tuple(torch.cat([t[:, : t.shape[1] - length], t[:, :length]], 1) for t in turns)
    )


def _all_is_seen(right: Any, module: Any, hidden: Any, turns: Any, mask: Any, cache: Any) -> Any:
    """The mutant of the forward that shows where a mask is added to scores alone."""
    return right(module, hidden, turns, mask if mask.dtype == torch.bool else torch.ones_like(mask).bool(), cache)


@pytest.mark.parametrize(("part", "wrong"), [("_scores", _turned_as_first_tokens), ("_forward", _all_is_seen)])
def test_what_shows_with_a_cache_or_an_added_mask_alone_is_refused(
    part: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(looped_index, part)
    monkeypatch.setattr(looped_index, part, lambda *given: wrong(right, *given))
    with pytest.raises(MoecError, match="does not choose the tokens"):
        adapt_looped_index(model())


def test_each_class_and_config_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, whole = model(), model(), torch.nn.ModuleList()
    first.again = type(first.indexer)(first.config, 1)
    whole.extend([first, second])
    right, proven = looped_index._chooses_the_same, []

    def watched(module: Any, config: Any) -> bool:
        proven.append(config)
        return right(module, config)

    monkeypatch.setattr(looped_index, "_chooses_the_same", watched)
    assert adapt_looped_index(whole) == 3
    assert [id(c) for c in proven] == [id(m.config.get_text_config()) for m in (first, second)]


def test_masks_with_a_window_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils
    from transformers.models.qwen4_exp import modeling_qwen4_exp as file

    generator = torch.Generator().manual_seed(0)
    small = looped_index._SMALL
    own = small_instance(model().indexer, whole_zoo.config("qwen4_exp_text"), small, generator, 0)
    hidden, angles = (torch.randn(1, 17, width, generator=generator) for width in (small["hidden_size"], 4))
    causal = torch.ones(17, 17, dtype=torch.bool).tril()[None, None]
    window = causal & ~torch.ones(17, 17, dtype=torch.bool).tril(-10)
    same = []
    with torch.no_grad():
        for mask in (causal, window):
            given = hidden, (angles.cos(), angles.sin()), mask, None
            same.append(torch.equal(own(*given) & mask, looped_index._forward(own, *given)))
    assert same == [True, False]
    name = "create_sliding_window_causal_mask"
    monkeypatch.setattr(file, name, getattr(masking_utils, name), raising=False)
    with pytest.raises(MoecError, match=f"may have masks with a window, from {name}") as error:
        adapt_looped_index(model())
    assert error.value.code == "M206"


def test_one_that_is_called_in_another_way_is_refused() -> None:
    found = model()
    found.indexer.forward = lambda hidden_states: hidden_states
    with pytest.raises(MoecError, match="does not choose the tokens"):
        adapt_looped_index(found)


def test_one_graph_chooses_what_the_model_chooses_and_positions_are_no_state() -> None:
    source = HuggingFaceSource.from_model(whole_zoo.build("qwen4_exp_text"))
    engine, program = source.reference(), source.capture()
    kinds = [i.name.partition(".")[2] for i in cache_inputs(source.inputs) if i.name != "attention_mask"]
    assert kinds == ["0.conv_state", "0.recurrent_state", "1.key", "1.value", "1.index_key"]
    assert POSITIONS not in {i.name for i in source.inputs}
    for sizes in ((2, 19, 0), (3, 1, 8), (3, 5, 9)):
        sample = source.sample(dict(zip(("batch", "sequence", "past_sequence"), sizes, strict=True)))
        want, got = engine(**sample), program.run(**sample)
        for output in want:
            mine, theirs = (without_padding(o[output], sample, output, source.inputs) for o in (got, want))
            assert (mine - theirs).abs().max() <= 1e-4 * theirs.std(), (output, sizes)
