"""The shortest times that a device could take for single kernels: what measured times are seen beside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moec.planning.devices import Device
from moec.planning.formats import Format
from moec.planning.interpolation import Numbers
from moec.planning.step import bits_computed

LAUNCH = 3e-6  # seconds that the shortest kernel takes, whatever it does
ACTIVATION_BYTES = 2  # of a number in bf16
_LATENT, _LATENT_HEAD, _LATENT_VALUE = 576, 192, 128  # numbers of DeepSeek-V3's cache, of a head's key and value


def matrix_floor(device: Device, format: Format) -> Callable[[Numbers], Numbers]:
    """Seconds of products `[m, k] x [k, n]` for sizes m, n, k."""

    def floor(sizes: Numbers) -> Numbers:
        m, n, k = sizes.T
        read = n * k * _stored(format) + ACTIVATION_BYTES * m * (k + n)
        return _slower(device, read, 2 * m * n * k, bits_computed(format)) + LAUNCH

    return floor


def experts_floor(device: Device, format: Format) -> Callable[[Numbers], Numbers]:
    """Seconds of a layer of experts for sizes tokens, hidden, width, top_k, experts, distinct experts, matrices."""

    def floor(sizes: Numbers) -> Numbers:
        tokens, hidden, width, top_k, _, distinct, matrices = sizes.T
        read = matrices * distinct * hidden * width * _stored(format)
        computed = 2 * matrices * tokens * top_k * hidden * width
        return _slower(device, read, computed, bits_computed(format)) + 3 * LAUNCH

    return floor


def attention_floor(device: Device) -> Callable[[Numbers], Numbers]:
    """Seconds of one row of attention a text for sizes texts, tokens, heads, heads of keys, numbers a head."""

    def floor(sizes: Numbers) -> Numbers:
        texts, tokens, heads, pairs, size = sizes.T
        read = 2 * ACTIVATION_BYTES * texts * tokens * pairs * size
        return _slower(device, read, 4 * texts * tokens * heads * size, 16) + LAUNCH

    return floor


def prompt_floor(device: Device) -> Callable[[Numbers], Numbers]:
    """Seconds of a causal layer of attention over whole prompts, for the same sizes."""

    def floor(sizes: Numbers) -> Numbers:
        texts, tokens, heads, pairs, size = sizes.T
        read = 2 * ACTIVATION_BYTES * texts * tokens * (pairs + heads) * size
        return _slower(device, read, 2 * texts * tokens * tokens * heads * size, 16) + LAUNCH

    return floor


def latent_floor(device: Device, prompt: bool) -> Callable[[Numbers], Numbers]:
    """Seconds of multi-head latent attention (DeepSeek-V2) for sizes texts, tokens, heads."""

    def floor(sizes: Numbers) -> Numbers:
        texts, tokens, heads = sizes.T
        if prompt:
            size = _LATENT_HEAD + _LATENT_VALUE
            read = 2 * ACTIVATION_BYTES * texts * tokens * heads * size
            return _slower(device, read, texts * tokens * tokens * heads * size, 16) + LAUNCH
        read = ACTIVATION_BYTES * texts * tokens * _LATENT
        return _slower(device, read, 4 * texts * tokens * heads * _LATENT, 16) + LAUNCH

    return floor


def absorbed_floor(device: Device) -> Callable[[Numbers], Numbers]:
    """Seconds of a product a head between a head's 128 numbers and the latent 512, for sizes tokens, heads."""

    def floor(sizes: Numbers) -> Numbers:
        tokens, heads = sizes.T
        size = _LATENT_VALUE * 512
        return _slower(device, ACTIVATION_BYTES * heads * size, 2 * tokens * heads * size, 16) + LAUNCH

    return floor


def exchange_floor(device: Device) -> Callable[[Numbers], Numbers]:
    """Seconds of an all-reduce over the links of a node, for sizes ranks, numbers."""

    def floor(sizes: Numbers) -> Numbers:
        ranks, numbers = sizes.T
        return 2 * (ranks - 1) / ranks * ACTIVATION_BYTES * numbers / (device.link * 1e9) + LAUNCH

    return floor


def _stored(format: Format) -> float:
    """Bytes of a number of a matrix, scales and zero points among them."""
    return format.matrix_bytes((1024, 4096)) / (1024 * 4096)


def _slower(device: Device, read: Numbers, computed: Numbers, bits: float) -> Numbers:
    return np.maximum(read / (device.bandwidth * 1e9), computed / device.flops(bits))
