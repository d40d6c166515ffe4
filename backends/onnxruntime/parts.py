"""The graphs of an engine's parts beside each other, under the names that clients look for.

An encoder and a decoder have optimum's; the parts of a model of text and images those of recipes for
onnxruntime-genai. optimum-onnx takes `decoder_model_merged.onnx` for the prompt and for every later token, and gives it
caches without tokens at first: what moec's decoder takes, too. Weights are not written again: these graphs read those
of the parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moec.backends.onnxruntime.session.engine import MODEL_FILE
from moec.errors import AGAIN, MoecError
from moec.kernels.cpu.building import LIBRARY
from moec.program.encoder_decoder import DECODER, ENCODER
from moec.program.vision_language import EMBEDDING, VISION

FILES = {ENCODER: "encoder_model.onnx", DECODER: "decoder_model_merged.onnx"}
VISION_FILES = {VISION: "vision.onnx", EMBEDDING: "embedding.onnx", DECODER: "decoder.onnx"}
_LOCATION = "location"  # the key of an external tensor's file, relative to the graph's


def file_of(folder: Path, part: str) -> Path:
    """The graph of a part, in the folder of an engine that has it."""
    files = FILES if (folder / ENCODER).is_dir() else VISION_FILES
    return folder / files[part]


def put_beside(folder: Path, parts: Sequence[str]) -> dict[str, str]:
    """Write the graph of each part once more into `folder`, with the library of operators that it needs; its weights
    stay in the part's own folder. Returns the name of each."""
    for part in parts:
        file_of(folder, part).write_bytes(_moved(folder, part).SerializeToString())
        if (folder / part / LIBRARY).is_file():
            shutil.copyfile(folder / part / LIBRARY, folder / LIBRARY)
    return {part: file_of(folder, part).name for part in parts}


def require_beside(folder: Path, parts: Sequence[str]) -> None:
    """Raise M106 where a graph in `folder` is not that of its part."""
    import onnx

    for part in parts:
        file = file_of(folder, part)
        if onnx.load(str(file), load_external_data=False) != _moved(folder, part):
            what = f"{file.name} is another graph than {part}/{MODEL_FILE}"
            raise MoecError("M106", what, str(file), AGAIN)


def _moved(folder: Path, part: str) -> Any:
    """The graph of a part, for a place beside the part's folder."""
    import onnx

    model = onnx.load(str(folder / part / MODEL_FILE), load_external_data=False)
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == _LOCATION:
                entry.value = f"{part}/{entry.value}"
    return model


def _tensors(graph: Any) -> list[Any]:
    """Every constant of a graph, and of those inside its nodes."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found += _tensors(inner)
    return found
