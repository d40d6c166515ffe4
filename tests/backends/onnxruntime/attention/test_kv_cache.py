"""A cache inside the operator: the numbers of `moec::attention` over the whole text, whatever the batch, also where one
buffer is past and present."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnxruntime.attention.kv_cache import SHARED
from moec.backends.onnxruntime.attention.lower import CACHED, STANDARD_OPSET, lower_attention
from moec.program.decoder_signature import IDS, MASK, PAST, SEQUENCE, TOTAL, past_names, present_name
from tests.backends.onnxruntime.blocks import error, ops, session, value

N, G, D = 6, 3, 16
LIMIT = 1e-5
SIZES = [(1, 1, 5), (2, 1, 5), (1, 4, 5), (2, 4, 0), (1, 1, 0), (2, 4, 5), (3, 2, 1)]  # texts, new tokens, earlier ones


def model_of(
    provider: str = "cpu", readers: int = 1, size: int = D, mask: str = MASK, reads: str = "", **rule: Any
) -> tuple[ir.Model, dict[str, str]]:
    """One layer of a decoder, lowered, with the cache's length as an output; `readers` of its keys, `mask` is what the
    mask is called, `reads` another operator that reads its cache."""
    rows = {"query": N, "new_key": G, "new_value": G}
    inputs = [value(IDS, torch.int64, ["batch", SEQUENCE]), value(mask, torch.int64, ["batch", TOTAL])]
    inputs += [value(name, torch.float32, ["batch", heads, SEQUENCE, size]) for name, heads in rows.items()]
    past = [value(name, torch.float32, ["batch", G, PAST, size]) for name in past_names(0)]
    seen = value("seen", torch.bool, ["batch", 1, SEQUENCE, TOTAL])
    graph = ir.Graph([*inputs, *past, seen], [], nodes=[], opset_imports={"": 20, "moec": 1}, name="layer")

    def add(
        op: str,
        *given: ir.Value,
        name: str,
        shape: list[Any],
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        made = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        graph.append(ir.node(op, given, attributes, domain=domain, outputs=[made], name=f"node_{name}"))
        graph.outputs.append(made)
        return made

    whole = [
        add("Concat", p, n, name=present_name(str(p.name)), shape=["batch", G, TOTAL, size], axis=-2)
        for p, n in zip(past, inputs[3:], strict=True)
    ]
    rule = {"scale": 0.3, "softcap": 0.0, "causal": 1, **rule}
    add("Attention", inputs[2], *whole, seen, name="y", shape=["batch", SEQUENCE, N, size], domain="moec", **rule)
    add("Shape", past[0], name="length", shape=[1], dtype=ir.DataType.INT64, start=2, end=3)
    if reads:
        add(reads, past[0], name="read", shape=["batch", G, PAST, size])
    for n in range(1, readers):
        add("Neg", whole[0], name=f"negated_{n}", shape=["batch", G, TOTAL, size])
    model = ir.Model(graph, ir_version=10)
    (fact,) = lower_attention(model, provider)
    return model, fact


def text_of(batch: int, new: int, past: int, size: int = D) -> dict[str, Tensor]:
    """A batch with padding on the left of all but the first text."""
    generator = torch.Generator().manual_seed(0)
    make = lambda heads, length: torch.randn(batch, heads, length, size, generator=generator)  # noqa: E731
    total = past + new
    seen = (torch.arange(total)[None] <= torch.arange(new)[:, None] + past).expand(batch, 1, new, total).clone()
    seen[1:, :, :, 0] = False
    ids, mask = torch.ones((batch, new), dtype=torch.int64), torch.ones((batch, total), dtype=torch.int64)
    rows = {"query": make(N, new), "new_key": make(G, new), "new_value": make(G, new)}
    return {IDS: ids, MASK: mask, **rows, **{name: make(G, past) for name in past_names(0)}, "seen": seen}


def reference(text: dict[str, Tensor], **rule: Any) -> dict[str, Tensor]:
    whole = {
        present_name(p): torch.cat([text[p], text[new]], 2)
        for p, new in zip(past_names(0), ("new_key", "new_value"), strict=True)
    }
    y = torch.ops.moec.attention(text["query"], *whole.values(), text["seen"], **{"scale": 0.3, "softcap": 0.0, **rule})
    sees = text["seen"][:, 0].any(-1)  # a row that sees nothing may say anything
    return {"y": y * sees[..., None, None], **whole, "length": torch.tensor([text[past_names(0)[0]].shape[2]])}


def run(model: ir.Model, text: dict[str, Tensor], room: int = 0) -> dict[str, Tensor]:
    """All outputs; with `room`, past and present are one buffer with so much more space, filled with numbers that
    nobody may read."""
    opened, caches = session(model), past_names(0)
    feeds = {name: t.numpy() for name, t in text.items()}
    names = [o.name for o in opened.get_outputs()]
    if not room:
        found = dict(zip(names, opened.run(None, feeds), strict=True))
    else:
        from onnxruntime import OrtValue

        binding, past, total = opened.io_binding(), feeds[caches[0]].shape[2], feeds["seen"].shape[3]
        buffers = {c: np.pad(feeds[c], ((0, 0), (0, 0), (0, room), (0, 0)), constant_values=1e3) for c in caches}
        assert total <= past + room
        for name, array in {**feeds, **buffers}.items():
            ort_value = OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, ort_value)
            if name in caches:
                binding.bind_ortvalue_output(present_name(name), ort_value)
        others = [n for n in names if n not in map(present_name, caches)]
        for name in others:
            binding.bind_output(name, "cpu")
        opened.run_with_iobinding(binding)
        found = dict(zip(others, (v.numpy() for v in binding.get_outputs()[len(caches) :]), strict=True))
        found |= {present_name(c): b[:, :, :total] for c, b in buffers.items()}
    found = {name: torch.from_numpy(np.asarray(v)) for name, v in found.items()}
    return {**found, "y": found["y"] * text["seen"][:, 0].any(-1)[..., None, None]}


def worst(found: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert torch.equal(found["length"], want["length"])
    return max(error(found[name], want[name]) for name in want if name != "length")


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_batch_goes_on_by_any_number_of_tokens(size: tuple[int, int, int], softcap: float) -> None:
    model, fact = model_of(softcap=softcap)
    assert (
        fact["formulation"] == f"{CACHED}, several texts {'plain' if softcap else 'standard'}"
        and fact["why"]
        and "Concat" not in ops(model)
    )
    text = text_of(*size)
    assert worst(run(model, text), reference(text, softcap=softcap)) < LIMIT
    other = {**text, "new_key": text["new_key"] * 1.01}
    assert worst(run(model, other), reference(text, softcap=softcap)) > 10 * LIMIT, "another key is another present"


@pytest.mark.parametrize("size", [s for s in SIZES if 1 in s[:2] or s[2] == 0], ids=str)
def test_one_buffer_may_be_past_and_present(size: tuple[int, int, int]) -> None:
    model, _ = model_of()
    assert SHARED in model.metadata_props
    text = text_of(*size)
    found = run(model, text, room=7 + size[1])
    assert worst(found, reference(text)) < LIMIT, "and the cache is as long as mask and ids say"
    early = {**text, "new_value": text["new_value"].flip(1)}
    assert worst(run(model, early, room=7 + size[1]), reference(text)) > 10 * LIMIT


def test_opset_and_metadata_only_say_what_is_so() -> None:
    assert (
        model_of()[0].opset_imports[""] == STANDARD_OPSET
        and model_of(softcap=1.5)[0].opset_imports[""] < STANDARD_OPSET
    )
    model, fact = model_of(mask="no_mask")
    assert CACHED in fact["formulation"] and SHARED not in model.metadata_props, "nothing says how long the text is"
    model, fact = model_of(reads="Neg")
    assert CACHED in fact["formulation"] and SHARED not in model.metadata_props, "something reads the whole buffer"


@pytest.mark.parametrize("unlike", [{"provider": "cuda"}, {"readers": 2}, {"size": 12}, {"causal": 0}], ids=str)
def test_what_it_cannot_do_stays_concatenated(unlike: dict[str, Any]) -> None:
    model, fact = model_of(**unlike)
    assert CACHED not in fact["formulation"] and SHARED not in model.metadata_props and "Concat" in ops(model)
    text = text_of(1, 4, 5, unlike.get("size", D))
    assert worst(run(model, text), reference(text)) < LIMIT
