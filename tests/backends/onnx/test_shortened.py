"""torch.onnx.export does less for a settled program, and the ONNX graph is the same to the last attribute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import onnx_ir as ir
import pytest
import torch
from torch import Tensor
from torch.onnx._internal.exporter import _registration
from torch.onnx._internal.exporter._torchlib._torchlib_registry import get_torchlib_ops

from moec.backends.onnx import export as onnx_export
from moec.backends.onnx.opaque_nodes import translations
from moec.backends.onnx.settled import settle
from moec.backends.onnx.shortened import shortened
from moec.frontend.export import capture, export
from moec.program.program import Program
from tests import zoo
from tests.backends.onnx.test_settled import Calls


def of(function: Callable[[Tensor], Tensor]) -> Program:
    return capture(Calls(function), {"x": torch.zeros(4, 6)}, {"x": ("batch", None)})


PROGRAMS: dict[str, Callable[[], Program]] = {
    "a mixture": lambda: zoo.captured("mixtral"),
    "a decoder with its own mask": lambda: zoo.captured("gpt2"),
    "mixed types": lambda: of(lambda x: ((x > 0) * 2 + x, x.to(torch.int64) / 3, torch.pow(2, x), (x > 0) + 1.5)),  # type: ignore[arg-type,return-value]
    "sizes": lambda: of(lambda x: x.sum(0) * x.shape[0] + x.shape[0] ** 0.5),
}


def text(model: ir.Model) -> list[str]:
    onnx_export.strip_traces(model)
    values = [str((v.name, v.type, v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
    kept = [
        str((n, v.shape, v.dtype, v.const_value.numpy().tolist() if n not in v.const_value.name else ""))  # type: ignore[union-attr,operator]
        for n, v in model.graph.initializers.items()
    ]
    return [*values, *map(str, model.graph), *kept, str(model.opset_imports), str(sorted(map(str, model.functions)))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_graph_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, prepared = PROGRAMS[name](), list[int]()
    assert get_torchlib_ops()  # these are prepared when they are imported
    real = _registration.OnnxDecompMeta.__post_init__
    monkeypatch.setattr(_registration.OnnxDecompMeta, "__post_init__", lambda m: prepared.append(0) or real(m))
    found = text(onnx_export.to_onnx(program, 20))
    few = len(prepared)
    monkeypatch.setattr(onnx_export, "shortened", lambda *a: nullcontext())
    assert text(onnx_export.to_onnx(program, 20)) == found
    assert few < (len(prepared) - few) / 4  # translations that were prepared


def test_what_has_to_be_decomposed_gets_all() -> None:
    exported = settle(export(Calls(lambda x: torch.addcmul(x, x, x).mul_(2)), {"x": torch.zeros(4, 6)}, {}))
    before = _names()
    with shortened(exported, 20, translations()) as short:
        assert not short and _names() == before


def _names() -> set[str]:
    from onnxscript.function_libs.torch_lib import ops, registration

    del ops  # its import fills the registry

    return {name for name, _ in registration.default_registry.items()}


def test_another_version_of_torch_gets_all_and_everything_is_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.onnx._internal.fx.passes import type_promotion

    exported, before = settle(export(Calls(lambda x: x + 1), {"x": torch.zeros(4, 6)}, {})), _names()
    with pytest.raises(KeyError), shortened(exported, 20, ()) as short:
        assert short and _names() < before
        raise KeyError
    assert _names() == before
    monkeypatch.delattr(type_promotion, "_TypePromotionInterpreter")
    with shortened(exported, 20, ()) as short:
        assert not short and _names() == before
