"""What users reported: the engine equals a model made anew for each input, but where a refusal is expected by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec.errors import MoecError
from moec.frontend.from_exported import named_outputs
from tests.reported import CASES

TOLERANCE = 1e-3  # max |d| / std, float32
DYNAMIC: dict[str, Any] = {  # of models that have no folder
    "switch": {"input_ids": ("batch", "sequence")},
    "loop": {"input_ids": ("batch", "sequence")},
    "one-hot": {"input_ids": ("batch", "sequence")},
    "speech": {"feats": ("batch", "frames", None)},
}
MIXTURES = ("switch", "loop", "one-hot")  # each becomes one operator
# what is not right on all inputs: the code, and what the refusal must say. Its way out is tried: of an engine, below;
REFUSED = {"qwen3-vl-moe": ("M216", "pixel_values_videos")}  # and in tests/huggingface/inputs/test_arguments.py
# of calls with more tokens than this. BigBird has another attention where a text is longer than (5 + 2 * 2) blocks of 8
HOLDS_TO = {"bigbird": ("M213", 72)}


def engine_of(name: str, tmp_path: Path) -> Any:
    case = CASES[name]
    if name not in DYNAMIC:
        case.save(tmp_path / "model")
    model = case.model() if name in DYNAMIC else str(tmp_path / "model")
    samples = list(case.inputs())[1] if name in DYNAMIC else None
    moec.compile(model, out=tmp_path / "engine", inputs=samples, dynamic=DYNAMIC.get(name))
    return moec.load(tmp_path / "engine")


@pytest.mark.parametrize("name", CASES)
def test_equal_or_refused(name: str, tmp_path: Path) -> None:
    if name in REFUSED:
        with pytest.raises(MoecError, match=REFUSED[name][1]) as caught:
            engine_of(name, tmp_path)
        assert caught.value.code == REFUSED[name][0]
        return
    engine = engine_of(name, tmp_path)
    code, most = HOLDS_TO.get(name, ("", None))
    beyond = 0
    for inputs in CASES[name].inputs():
        if most is not None and inputs["input_ids"].shape[1] > most:
            with pytest.raises(MoecError, match=f"holds where sequence <= {most}") as caught:
                engine(**inputs)
            assert caught.value.code == code and f"give sizes for which it holds, such as sequence={most}" in str(
                caught.value.fix
            )
            inputs, beyond = {key: value[:, :most] for key, value in inputs.items()}, beyond + 1
        assert_equal(engine, CASES[name].model(), inputs)
    assert bool(beyond) == (name in HOLDS_TO)
    if name in MIXTURES:
        assert len(moec.Report.read(tmp_path / "engine" / "moec.json").facts["blocks"]) == 1


def assert_equal(engine: Any, model: Any, inputs: dict[str, Any]) -> None:
    """All that an engine says is what the model says; its cache is compared where texts go on, see `moec.proof`."""
    with torch.no_grad():
        want = named_outputs(model(**inputs))
    found = {name: value for name, value in engine(**inputs).items() if not name.startswith("present.")}
    assert found and set(found) <= set(want)
    for output in found:
        values = want[output].double()
        spread = values.std() if values.numel() > 1 else values.abs().max()
        assert (found[output].double() - values).abs().max() <= TOLERANCE * float(spread), (output, inputs)


def test_what_holds_on_both_sides_is_no_bound_of_moecs() -> None:
    """Why BigBird's engine ends: its own attention is another past this many tokens, and says something else."""
    most = HOLDS_TO["bigbird"][1]
    texts = {n: torch.randint(4, 256, (1, n), generator=torch.Generator().manual_seed(n)) for n in (most, most + 8)}
    with torch.no_grad():
        for length, ids in texts.items():
            model, full = CASES["bigbird"].model(), CASES["bigbird"].model()  # anew: a short text changes it for good
            full.bert.set_attention_type("original_full")
            apart = (model(input_ids=ids).logits - full(input_ids=ids).logits).abs().max()
            assert bool(apart > 1e-3) == (length > most)
