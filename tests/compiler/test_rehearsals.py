"""One capture, whatever is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.compiler.foresee import foresee
from moec.compiler.plan import plan
from moec.compiler.rehearsals import Rehearsals
from moec.errors import MoecError
from tests.planning import configs

SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


def test_counts_memory_and_time_are_those_of_the_rewritten_model(tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.LLAMA_1B | SMALL)
    paper = Rehearsals(path)
    passes = "upcycle(experts=8, top_k=2), quantize(bits=4)"
    before, after = plan(path, devices=["h200"]), plan(paper, devices=["h200"], pipeline=passes)
    assert after.shape.total > 2 * before.shape.total and after.equivalent is not None
    read = [e.situations[0].decode for e in (before, after)]
    assert read[0] is not None and read[1] is not None and read[1].experts == pytest.approx(2)
    times = [e.situations[0].decode_time for e in (before, after)]
    assert times[0] is not None and times[1] is not None and times[1].low < times[0].low  # 4 bits
    captured = paper.captured()
    assert paper.captured(torch.float32) is captured
    assert foresee(paper, passes)[0].steps[0].rewrites == "1"  # one layer stands for both
    assert paper.captured() is captured


def test_a_pass_that_does_not_fit_says_so(tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.LLAMA_1B | SMALL)
    with pytest.raises(MoecError, match="M203"):
        plan(path, pipeline="upcycle(experts=2, top_k=3)")
    with pytest.raises(MoecError, match="M201"):
        Rehearsals(f"{tmp_path / 'model.py'}:make").after("fuse-moe")


def test_a_model_by_hand_is_called_only_counted(tmp_path: Path) -> None:
    """No pass and no target can see a model that no class builds; upgrading transformers would not help."""
    path = configs.write(tmp_path, configs.LLAMA_1B | SMALL | {"model_type": None, "architectures": None})
    with pytest.raises(MoecError, match="M206") as refused:
        plan(path, pipeline="fuse-moe")
    told = [(refused.value.what, refused.value.fix), foresee(path)[0].refusals[0]]
    for what, fix in told:
        assert "only counted" in what and "None" not in what and "--pass" in fix and "upgrade" not in fix
