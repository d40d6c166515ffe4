"""Values inside an engine: the same ONNX graph with more outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moec.backends.onnx.cache_rows import COMPACT, compact_calls
from moec.backends.onnxruntime.session.opening import Start

FOLDER = (
    "session.model_external_initializers_file_folder_path"  # where the weights lie, for a model that comes from memory
)


def intermediates(path: Path, start: Start, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a model file and return every floating-point value of its main graph by name, in graph order.

    The runtime's own optimisations are off, so that no value of the file is fused away. `start`: see `opening`.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    known = {o.name for o in model.graph.output}
    values = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in known)
    session = start(model.SerializeToString(), {FOLDER: str(path.parent)}, plain=True)
    types = {o.name: o.type for o in session.get_outputs()}
    wanted = [name for name in values if types[name] in ("tensor(float)", "tensor(float16)", "tensor(double)")]
    calls = compact_calls(inputs) if any(p.key == COMPACT for p in model.metadata_props) else [inputs]
    found = [session.run(wanted, {n: v.detach().cpu().contiguous().numpy() for n, v in call.items()}) for call in calls]
    values_of = zip(wanted, zip(*found, strict=True), strict=True)
    return {name: _joined([torch.from_numpy(value) for value in parts]) for name, parts in values_of}


def _joined(parts: list[Tensor]) -> Tensor:
    """The values of texts that ran one by one, as of one call."""
    return torch.cat(parts) if len(parts) > 1 and parts[0].dim() else parts[0]
