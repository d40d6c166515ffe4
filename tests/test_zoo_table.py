"""The table of models: its rows say what happened, and a wrong engine gets none that says `right`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import moec
from tests import whole_zoo
from tests.zoo import save
from tests.zoo_table import (
    BOUND,
    GROUPS,
    PAGE,
    Row,
    continued,
    eager,
    measured,
    states_of,
    table,
    trials,
    without,
    write,
)

RIGHT = Row("mixtral", "MixtralForCausalLM", "right", ("keys and values",), ("grouped GEMM",), 5e-6, (16, 16))
REFUSED = Row("doge", "DogeForCausalLM", "refused", said=" ".join(["M206: it mixes tokens"] * 9))


def with_states(*names: str) -> SimpleNamespace:
    """An engine whose one layer keeps the named states."""
    return SimpleNamespace(inputs=[SimpleNamespace(name=f"past_key_values.0.{name}") for name in names])


def test_an_engine_is_tried_beyond_its_bounds_and_token_by_token(mixtral: Path, mixtral_engine: Path) -> None:
    engine = moec.load(mixtral_engine)
    assert states_of(engine) == ("keys and values",)
    assert trials(mixtral, engine)[0] <= 1e-4


def test_the_states_of_an_indexer_count_with_those_of_their_kind() -> None:
    """A key of an indexer has no value beside it, and stays a kind of its own."""
    assert states_of(with_states("compressed", "index_compressed", "waiting")) == ("2 × compressed", "waiting")
    assert states_of(with_states("conv_state_0", "conv_state_1")) == ("2 × conv state",)
    assert states_of(with_states("key", "value", "index_key")) == ("keys and values", "index key")


def test_the_untouched_model_goes_on_by_the_same_calls(mixtral: Path) -> None:
    """The other reference of a text that goes on; the mutant of the next test differs from both."""
    model, ids = eager(mixtral), torch.arange(34).reshape(2, 17) + 3
    with torch.inference_mode():
        want = model(input_ids=ids)[0][:, 4:]
    assert torch.allclose(continued(model, ids, torch.ones_like(ids)), want, atol=1e-4)


def test_an_engine_of_other_weights_is_wrong(mixtral_engine: Path, tmp_path: Path) -> None:
    """The mutant: the same architecture, drawn from another seed."""
    assert trials(Path(save("mixtral", tmp_path, seed=1)), moec.load(mixtral_engine))[0] > BOUND


def test_the_table_has_rows_and_reasons(tmp_path: Path) -> None:
    text = table([RIGHT, REFUSED])
    assert "1 of 2 models are right" in text and "transformers 5" in text
    assert "| MixtralForCausalLM | keys and values | grouped GEMM | 16/16 | 5e-06 |" in text
    assert "\n- DogeForCausalLM (refused): M206" in text and max(map(len, text.splitlines())) <= 120
    text = table([RIGHT, REFUSED, replace(REFUSED, verdict="alone")])
    assert (
        "1 of 3 models are right.\nOf 1 more the forward alone is." in text and "\n- DogeForCausalLM (alone): " in text
    )
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- support table -->\nold\n<!-- end of support table -->\nafter\n")
    write(page, text)
    assert page.read_text().startswith("before\n") and page.read_text().endswith("-->\nafter\n")
    assert "old" not in page.read_text() and text in page.read_text()


def test_images_are_left_out_and_not_the_text() -> None:
    fix = "to compile it for inputs without, pass --leave-out a,b; for the features of its images alone, --leave-out c"
    assert without(fix) == ["a", "b"] and without("pass --leave-out d") == ["d"]


def test_every_model_is_of_one_group() -> None:
    every = [name for names in GROUPS.values() for name in names()]
    assert len(every) == len(set(every)) and len(whole_zoo.names()) >= 67


@pytest.mark.repeats
@pytest.mark.parametrize("name", [name for names in GROUPS.values() for name in names()])
def test_every_model_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    row = measured(name, tmp_path)
    said = re.search(rf"^(\| |- ){row.architecture} (\(\w+\))?", PAGE.read_text(), re.M)
    assert said is not None and row.verdict in ("right", "alone", "refused"), row
    assert (said[2] or "(right)") == f"({row.verdict})", row
