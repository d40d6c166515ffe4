"""`moec::experts_on_cpu` by the library: PyTorch's tensors read where they lie, on PyTorch's own threads."""

from __future__ import annotations

import ctypes
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

DTYPES = (torch.bfloat16, torch.float32)


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor | None = None, b_out: Tensor |
    None = None, **rule: Any,
) -> Tensor:  # fmt: skip
    """`moec::experts`, a token's result independent of the other tokens and of the number of threads. Matrices in
    bfloat16 are read as they lie; between tokens in bfloat16 and results in it everything is float32. What the library
    does not read (other dtypes, matrices whose rows are no rows in memory) goes to the reference.

    Raises:
        MoecError: M212 for shapes that do not fit together or an id that is no expert, M301 without the library.
    """
    activation, before = Activation.of(rule), bool(rule.get("score_before", False))
    check_shapes(x, ids, weights, w_in, w_out, b_in, b_out, activation)
    if not _reads(x, ids, weights, w_in, w_out, b_in, b_out):
        expert = dense_expert(w_in, w_out, b_in, b_out, activation)
        return experts_reference(x, ids, weights, expert, w_in.shape[0], before)
    rows, chosen, scale = x.float().contiguous(), ids.contiguous(), weights.float().contiguous()
    y = torch.empty_like(rows)
    block = BlockStructure(
        rows.data_ptr(), chosen.data_ptr(), scale.data_ptr(), y.data_ptr(), ids[..., 0].numel(), ids.shape[-1],
        w_in.shape[0], x.shape[-1], w_out.shape[2], _matrix(w_in, b_in), _matrix(w_out, b_out),
        activation_structure(activation), before, False,
    )  # fmt: skip
    own = open_library(_library())
    if wrong := own.moec_cpu_experts_on_team(ctypes.byref(block), _parallel(), torch.get_num_threads()):
        check_ids(ids, w_in.shape[0])
        raise MoecError("M212", wrong.decode(), "moec::experts", "pass fewer tokens a call")
    return y.to(x.dtype)


def _reads(
    x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None
) -> bool:
    """Whether the library takes these tensors."""
    stacks = ((w_in, b_in), (w_out, b_out))
    given = [t for stack in stacks for t in stack if t is not None]
    return (
        x.dtype in DTYPES
        and ids.dtype == torch.int64
        and weights.dtype != torch.float64
        and all(w.dtype in DTYPES and (b is None or b.dtype == w.dtype) for w, b in stacks)
        and all(t.layout == torch.strided and t.is_contiguous() for t in given)
    )


def _matrix(weight: Tensor, bias: Tensor | None) -> MatrixStructure:
    own = None if bias is None else bias.data_ptr()
    bits = weight.element_size() * 8
    return MatrixStructure(weight.data_ptr(), None, None, own, weight.shape[1], weight.shape[2], 0, bits)


@lru_cache(None)
def _library() -> Path:
    """Looked for once: it is read whole, to see what it was compiled from."""
    return require_library()


@lru_cache(None)
def _parallel() -> int | None:
    """Where `GOMP_parallel` of PyTorch's own OpenMP library lies; None where PyTorch has threads of another kind."""
    core = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.cast(ctypes.CDLL(str(core)).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
