"""`moec::experts_on_cpu` by the library: PyTorch's tensors read where they lie, on PyTorch's own threads."""

from __future__ import annotations

import ctypes
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.dialect import Activation
from moec.dialect.experts import check_ids, dense_expert, experts_reference
from moec.errors import MoecError
from moec.kernels.checks import check_shapes
from moec.kernels.cpu.library import require_library
from moec.kernels.cpu.structures import BlockStructure, MatrixStructure, activation_structure, open_library
from moec.kernels.cpu.team import parallel, warn_where_alone

DTYPES = (torch.bfloat16, torch.float32)


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor | None = None, b_out: Tensor |
    None = None, **rule: Any,
) -> Tensor:  # fmt: skip
    """`moec::experts`, a token's result independent of the other tokens and of the number of threads. Matrices in
    bfloat16 are read as they lie; between tokens in bfloat16 and results in it everything is float32.

    What the library does not read (float16, float64, matrices whose rows do not lie in one piece) goes to the
    reference, which is slow, with a RuntimeWarning.

    Raises:
        MoecError: M212 for shapes or dtypes that do not fit together or an id that is no expert, M301 without the
            library.
    """
    activation, before = Activation.of(rule), bool(rule.get("score_before", False))
    check_shapes(x, ids, weights, w_in, w_out, b_in, b_out, activation)
    _check_dtypes(x, ids, weights, w_in=w_in, w_out=w_out, b_in=b_in, b_out=b_out)
    if why := unread(w_in, w_out, b_in, b_out):
        warnings.warn(f"experts run in plain PyTorch, slowly: {why}", RuntimeWarning, stacklevel=2)
        expert = dense_expert(w_in, w_out, b_in, b_out, activation)
        return experts_reference(x, ids, weights, expert, w_in.shape[0], before)
    warn_where_alone()
    rows, chosen, scale = x.contiguous(), ids.contiguous(), weights.float().contiguous()
    y = torch.empty(x.shape, dtype=torch.float32)
    block = BlockStructure(
        rows.data_ptr(), chosen.data_ptr(), scale.data_ptr(), y.data_ptr(), ids[..., 0].numel(), ids.shape[-1],
        w_in.shape[0], x.shape[-1], w_out.shape[2], _matrix(w_in, b_in), _matrix(w_out, b_out),
        activation_structure(activation), before, False,
    )  # fmt: skip
    own = open_library(_library())
    if wrong := own.moec_cpu_experts_on_team(ctypes.byref(block), parallel(), torch.get_num_threads()):
        check_ids(ids, w_in.shape[0])
        raise MoecError("M212", wrong.decode(), "moec::experts", "pass fewer tokens a call")
    return y.to(x.dtype)


def unread(*matrices: Tensor | None) -> str:
    """Why the library does not read these matrices and biases, with a way out; empty where it does."""
    given = [t for t in matrices if t is not None]
    if (dtype := given[0].dtype) not in DTYPES:
        named = " or ".join(str(d).removeprefix("torch.") for d in DTYPES)
        return f"their weights are {str(dtype).removeprefix('torch.')}; moec's kernels take {named}"
    if not all(t.layout == torch.strided and t.is_contiguous() for t in given):
        return "rows of their weights do not lie in one piece; call moec.accelerate(model) again"
    return ""


def _check_dtypes(x: Tensor, ids: Tensor, weights: Tensor, **matrices: Tensor | None) -> None:
    """Raise M212 unless eager PyTorch multiplies these too: tokens, matrices and biases of one dtype on one device. The
    weights of the choices may have another, as those of a router in float32 do."""
    for name, tensor in matrices.items():
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            what = f"x is {x.dtype} on {x.device}, {name} is {tensor.dtype} on {tensor.device}"
            raise MoecError("M212", what, "moec::experts", "bring all to one dtype: model.to(torch.bfloat16)")
    if not (x.is_floating_point() and weights.is_floating_point()) or ids.dtype != torch.int64:
        what = f"x is {x.dtype}, ids are {ids.dtype}, weights {weights.dtype}"
        raise MoecError("M212", what, "moec::experts", "pass tokens and weights as floats, ids as int64")


def _matrix(weight: Tensor, bias: Tensor | None) -> MatrixStructure:
    own = None if bias is None else bias.data_ptr()
    bits = weight.element_size() * 8
    return MatrixStructure(weight.data_ptr(), None, None, own, weight.shape[1], weight.shape[2], 0, bits)


@lru_cache(None)
def _library() -> Path:
    """Looked for once: it is read whole, to see what it was compiled from."""
    return require_library()
