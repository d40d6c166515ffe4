"""A model repository of Triton Inference Server: `<model>/config.pbtxt`, `<model>/1/model.onnx`, `<model>/warmup/`.

`tritonserver --model-repository=ENGINE` serves it. The reports stay at the top, where Triton looks only for folders.
The format is `model_config.proto` of triton-inference-server/common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from moec.execution.engine import TUNED
from moec.layouts.facts import OPERATORS, ModelFacts
from moec.layouts.pbtxt import EnumName, pbtxt
from moec.program.conditions import nearest
from moec.program.decoder_signature import PAST, SEQUENCE
from moec.program.program import Input, dynamic_dimensions

BACKENDS = {"model.onnx": ("onnxruntime", "onnxruntime_onnx"), "model.plan": ("tensorrt", "tensorrt_plan")}
LAYOUTS = ("triton", "kserve")  # a repository alone, or with what KServe starts it by
VERSION, WARMUP = "1", "warmup"
MAX_BATCH, PREFERRED, MAX_DELAY_US = 8, (4, 8), 1000
PREFILL, OTHER = 32, 4  # sizes of warm-up requests: tokens, and every other dynamic dimension
TYPES = {
    torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float64: "FP64", torch.bool: "BOOL",
    torch.int64: "INT64", torch.int32: "INT32", torch.int16: "INT16", torch.int8: "INT8", torch.uint8: "UINT8",
}  # fmt: skip
BATCHED = f"""\
# Requests whose inputs have equal shapes run as one batch of up to {MAX_BATCH}; Triton runs others one after the
# other, so clients that want batches pad to a few common lengths and mask what they padded.
"""
APART = f"""\
# Each request runs alone, with a batch of up to {MAX_BATCH} of its own: several texts that go on by several tokens at
# once are more than the attention's operator takes, and other requests are not to meet with that.
"""
ALONE = "# The model has no batch dimension that all inputs and outputs share, so each request runs alone.\n"
UNCHECKED = "Triton does not check that."
LOADED = """\
# The graph has operators of the library below. Its name is read from the server's working directory: start the server
# in the model repository, or write the full path.
"""
CACHE = """\
# The server keeps nothing between requests: a client sends the keys and values of earlier tokens, and whatever else
# they left, as past_key_values.* and gets all of it back, keys and values longer by the new tokens, as present.*. The
# first request sends these with 0 past tokens, and zeros for states whose shape stays; a client that cannot send empty
# tensors sends one token of zeros and masks it.
"""


def write(
    folder: Path, inputs: Sequence[Input], outputs: Sequence[Input], facts: ModelFacts, device: str = "cpu",
    settings: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Turn an engine folder into a repository with one model, which is named `facts.name`; all files of the folder move
    into its version 1."""
    staged = folder / ".version"
    files = list(folder.iterdir())
    staged.mkdir()
    for file in files:
        file.rename(staged / file.name)
    model = folder / facts.name
    (model / WARMUP).mkdir(parents=True)
    staged.rename(model / VERSION)
    engine = next(name for name in BACKENDS if (model / VERSION / name).exists())
    (model / "config.pbtxt").write_text(config(inputs, outputs, facts, engine, device, settings), encoding="utf-8")
    for mask in _masks(inputs):
        most = max(prod(mask.resolve(sizes)) for _, sizes in warmups(inputs, facts, device))
        (model / WARMUP / _ones(mask)).write_bytes(torch.ones(most, dtype=mask.dtype).numpy().tobytes())


def config(
    inputs: Sequence[Input], outputs: Sequence[Input], facts: ModelFacts, file: str = "model.onnx", device: str = "cpu",
    settings: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """The text of `config.pbtxt`.

    Args:
        inputs, outputs: the engine's signature; a dynamic dimension becomes -1, the batch dimension is Triton's own.
        facts: names the model, and bounds the warm-up by its context.
        file: the engine, a key of `BACKENDS`.
        device: `cpu` or `cuda`.
        settings: see `Backend.client_settings`; those of the provider Triton's backend takes as parameters of the
            accelerator `cuda`.
    """
    backend, platform = BACKENDS[file]
    batched = is_batched((*inputs, *outputs))
    fields: dict[str, Any] = {
        "name": facts.name,
        "backend": backend,
        "platform": platform,
        "max_batch_size": MAX_BATCH if batched else 0,
        "input": [_tensor(i, batched) for i in inputs],
        "output": [_tensor(o, batched) for o in outputs],
        "instance_group": [
            {"count": 1, "kind": EnumName("KIND_GPU" if device == "cuda" or backend == "tensorrt" else "KIND_CPU")}
        ],
    }
    if batched and facts.joined:
        fields["dynamic_batching"] = {
            "preferred_batch_size": list(PREFERRED),
            "max_queue_delay_microseconds": MAX_DELAY_US,
        }
    settings = dict(settings or {})
    library = settings.pop(OPERATORS, "")
    if library:
        fields["model_operations"] = {"op_library_filename": [f"{facts.name}/{VERSION}/{library}"]}
    if settings:
        given = [{"key": key, "value": value} for key, value in settings.items() if "." not in key]
        accelerator = {"gpu_execution_accelerator": [{"name": "cuda", "parameters": given}]}
        fields["optimization"] = {"execution_accelerators": accelerator}
        session = {key: value for key, value in settings.items() if "." in key}
        fields["parameters"] = [{"key": k, "value": {"string_value": v}} for k, v in session.items()]
    fields["model_warmup"] = [_warmup(name, sizes, inputs, batched) for name, sizes in warmups(inputs, facts, device)]
    assumed = f"# The engine is the model where {facts.assumes}; {UNCHECKED}\n" if str(facts.assumes) else ""
    how = ALONE if not batched else BATCHED if facts.joined else APART
    loaded = LOADED if library else ""
    return how + (CACHE if _has_cache(inputs) else "") + loaded + assumed + pbtxt(fields)


def is_batched(tensors: Sequence[Input]) -> bool:
    """Whether all tensors have one dynamic dimension as their first: then requests can be joined along it."""
    first = {t.shape[0] if t.shape else 0 for t in tensors}
    return len(first) == 1 and all(isinstance(d, str) for d in first)


def _has_cache(inputs: Sequence[Input]) -> bool:
    return PAST in dynamic_dimensions(inputs)


def _masks(inputs: Sequence[Input]) -> list[Input]:
    return [i for i in inputs if i.name.endswith("mask") and not i.dtype.is_floating_point]


def _ones(mask: Input) -> str:
    return f"ones.{TYPES[mask.dtype].lower()}"


def _tensor(spec: Input, batched: bool) -> dict[str, Any]:
    dims = [d if isinstance(d, int) else -1 for d in spec.shape[1 if batched else 0 :]]
    tensor: dict[str, Any] = {
        "name": spec.name,
        "data_type": EnumName(f"TYPE_{TYPES[spec.dtype]}"),
        "dims": dims or [1],
    }
    return tensor if dims else {**tensor, "reshape": {"shape": []}}  # dims may not be empty


def warmups(inputs: Sequence[Input], facts: ModelFacts, device: str = "cpu") -> list[tuple[str, Mapping[str, int]]]:
    """Name and sizes of the requests that each instance runs before it is ready: for a decoder a prompt, then a token
    after it; on CUDA a prompt of each number of tokens that kernels are chosen for."""
    length = min(PREFILL, facts.context // 2 or PREFILL)
    sizes = {name: 1 if k == 0 else OTHER for k, name in enumerate(dynamic_dimensions(inputs))}
    found: list[tuple[str, dict[str, int]]] = [("request", {**sizes, SEQUENCE: length})]
    if _has_cache(inputs):
        found = [("prefill", {**sizes, SEQUENCE: length, PAST: 0}), ("decode", {**sizes, SEQUENCE: 1, PAST: length})]
    if device == "cuda" and SEQUENCE in sizes:
        first = {**found[0][1], **({PAST: 0} if _has_cache(inputs) else {})}
        lengths = [2**n for n in range(TUNED.bit_length()) if 2**n <= min(TUNED, facts.context or TUNED)]
        found += [(f"{length} tokens", {**first, SEQUENCE: length}) for length in lengths]
    return [(name, nearest(facts.assumes.sizes, sizes) or sizes) for name, sizes in found]


def _warmup(name: str, sizes: Mapping[str, int], inputs: Sequence[Input], batched: bool) -> dict[str, Any]:
    """One sample: zeros everywhere, which is a valid token, type and position, but ones in a mask."""
    masks, entries = _masks(inputs), []
    for spec in inputs:
        data = {"input_data_file": _ones(spec)} if spec in masks else {"zero_data": True}
        dims = list(spec.resolve(sizes)[1 if batched else 0 :])
        entries.append(
            {
                "key": spec.name,
                "value": {"data_type": EnumName(f"TYPE_{TYPES[spec.dtype]}"), "dims": dims or [1], **data},
            }
        )
    return {"name": name, "batch_size": 1, "inputs": entries}
