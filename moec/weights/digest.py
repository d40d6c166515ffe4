"""Hashes over tensors: what a key of the weight cache, and the record of a model in memory, say of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_tensor(found: Any, value: Tensor) -> None:
    """Let a hash of `hashlib` go on with a tensor's dtype, shape and bytes; nothing is copied of one that lies in the
    host's memory as it is."""
    plain = value.detach().cpu().contiguous()
    found.update(repr((str(plain.dtype), tuple(plain.shape))).encode())
    found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
