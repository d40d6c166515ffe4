"""What samples say of a module's inputs. Guesses of dynamic dimensions: `tests/frontend/test_module_source.py`."""

from __future__ import annotations

import pytest
import torch

from moec.frontend.samples import guess_domain, shape_of


@pytest.mark.parametrize(
    ("name", "kind", "high"),
    [("ids", "number", 8), ("attention_mask", "mask", 8), ("position_ids", "position", 8), ("x", "number", 2)],
)
def test_domains(name: str, kind: str, high: int) -> None:
    found = guess_domain(name, torch.zeros(2) if name == "x" else torch.tensor([3, 7]))
    assert (found.kind, found.high) == (kind, high)


def test_shapes_have_the_names_of_dimensions() -> None:
    assert shape_of(torch.ones(2, 3, 5), ("batch", None)) == ("batch", 3, 5)
