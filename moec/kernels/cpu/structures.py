"""The structures of `block.h`, as ctypes passes them to the library."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

from moec.dialect import Activation
from moec.errors import MoecError, reason_of
from moec.kernels.cpu.library import require_library, way_out

# by their numbers in block.h
FUNCTIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "tanh", "sigmoid", "identity")


class MatrixStructure(ctypes.Structure):
    """A stack of matrices `[experts, rows, columns]`; addresses of its parts, 0 or None where there is none."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("data", "scale", "zero", "bias")),
        *((name, ctypes.c_size_t) for name in ("rows", "columns", "group")),
        ("bits", ctypes.c_int),
    ]


class ActivationStructure(ctypes.Structure):
    """What stands between the two matrices."""

    _fields_ = [
        ("function", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("gated", "clamp_after")),
        *((name, ctypes.c_float) for name in ("alpha", "beta", "limit", "cap", "up_cap")),
    ]


class BlockStructure(ctypes.Structure):
    """The experts of one layer and the tokens of one call."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "ids", "weights", "y")),
        *((name, ctypes.c_size_t) for name in ("tokens", "top_k", "experts", "hidden", "inner")),
        ("first", MatrixStructure),
        ("second", MatrixStructure),
        ("activation", ActivationStructure),
        ("score_before", ctypes.c_bool),
        ("left_out", ctypes.c_bool),
    ]


def activation_structure(rule: Activation) -> ActivationStructure:
    """A rule of the dialect as the library reads it."""
    numbers = (rule.alpha, rule.beta, rule.limit, rule.cap, rule.up_cap)
    return ActivationStructure(FUNCTIONS.index(rule.name), rule.gated, rule.clamp_after, *numbers)


@lru_cache(None)
def open_library(file: Path) -> ctypes.CDLL:
    """The library, its functions typed."""
    found = ctypes.CDLL(str(file))
    for name in ("moec_cpu_isa", "moec_cpu_experts", "moec_cpu_experts_on_team"):
        getattr(found, name).restype = ctypes.c_char_p
    found.moec_cpu_experts_on_team.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    return found


def require_that_opens(wanted_by: str) -> ctypes.CDLL:
    """The library. Raises M301 where it is not there, or not for this machine."""
    file = require_library(wanted_by)
    try:
        return open_library(file)
    except (OSError, AttributeError) as error:
        raise MoecError("M301", f"it does not load: {reason_of(error)}", str(file), way_out()) from error
