"""What bounds a text is refused where no text decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moec
from moec.compiler.options import Options
from moec.compiler.proving import contract_checks
from moec.errors import MoecError
from moec.targets.backend import find_backend


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"pipeline": "quantize(bits=8)", "max_kl": 0.1}, True),
        ({"pipeline": "quantize(bits=8)", "max_kl": 0.1, "tolerance": 0.5}, False),
        ({"pipeline": "quantize(bits=8)"}, False),
        ({"max_kl": 0.1}, False),
    ],
)
def test_a_divergence_bounds_no_encoder(settings: dict[str, object], refused: bool, translator: Path) -> None:
    """After exact passes outputs are held closer than any divergence asks."""
    source, options = moec.open_source(str(translator), part="encoder"), Options.of(settings)
    captured, backend = source.capture(torch.float32), find_backend(options.target)
    if not refused:
        assert contract_checks(source, captured, options, backend)
        return
    with pytest.raises(MoecError, match="--max-kl bounds") as error:
        contract_checks(source, captured, options, backend)
    assert error.value.code == "M201" and "--tolerance" in error.value.fix
