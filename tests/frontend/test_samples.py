"""What samples say of a module's inputs. Guesses of dynamic dimensions: `tests/frontend/test_module_source.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.samples import guess_domain, require_known, shape_of


@pytest.mark.parametrize(
    ("name", "kind", "high"),
    [("ids", "number", 8), ("attention_mask", "mask", 8), ("position_ids", "position", 8), ("x", "number", 2)],
)
def test_domains(name: str, kind: str, high: int) -> None:
    found = guess_domain(name, torch.zeros(2) if name == "x" else torch.tensor([3, 7]))
    assert (found.kind, found.high) == (kind, high)


def test_shapes_have_the_names_of_dimensions() -> None:
    assert shape_of(torch.ones(2, 3, 5), ("batch", None)) == ("batch", 3, 5)


class Takes(nn.Module):
    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return tokens


class TakesAll(nn.Module):
    def forward(self, **inputs: Tensor) -> Tensor:
        return inputs["tokens"]


def test_a_name_that_no_argument_has_is_refused_with_the_nearest() -> None:
    require_known(Takes(), ["tokens", "mask"])
    require_known(TakesAll(), ["anything"])
    for name, advice in {"token": "did you mean tokens?", "zzz": "it has tokens, mask"}.items():
        with pytest.raises(MoecError) as caught:
            require_known(Takes(), ["tokens", name])
        assert caught.value.code == "M201" and caught.value.fix == advice
