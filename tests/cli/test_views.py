"""What `moec inspect` prints can be read at a glance."""

from __future__ import annotations

import pytest

from moec.cli.views import joined, model_view
from moec.report.inspection import inspect_program
from tests.moe_module import MoeModel, source_of


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"], ["layers.0-2.mlp"]),
        (["layers.0.mlp", "layers.2.mlp"], ["layers.0.mlp", "layers.2.mlp"]),
        (["layers.0.experts.0", "layers.1.experts.1"], ["layers.0.experts.0", "layers.1.experts.1"]),
        (["encoder.0", "decoder.1"], ["encoder.0", "decoder.1"]),
        (["layers.9", "layers.10"], ["layers.9-10"]),
        (["head"], ["head"]),
        ([], []),
    ],
)
def test_equal_layers_are_one_row(names: list[str], want: list[str]) -> None:
    assert [row[0] for row in joined([(name, "same") for name in names])] == want
    assert len(joined([(name, str(k)) for k, name in enumerate(names)])) == len(names)


def test_a_model_is_a_table_with_units_that_fit() -> None:
    text = model_view(inspect_program(source_of(MoeModel()).capture()))
    head, row, *_ = text.splitlines()
    assert head.split()[:3] == ["layer", "kind", "experts"] and row.startswith("blocks.0  moe")
    assert "0.00" not in text and "parameters" in text and "a token (" in text and "FLOP a token" in text
