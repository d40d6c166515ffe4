"""moec's own operators: `moec::route`, `moec::experts`, `moec::moe`, `moec::attention`, `moec::linear_attention`,
`moec::selective_scan`, `moec::causal_conv`, `moec::dequantize` and `moec::dequantize_float`.

Each is one opaque `torch.library` operator with an eager reference, a fake kernel and (but for the last) autograd, so
that a graph with data-dependent routing stays static, exports with dynamic shapes, and can always be run and trained in
PyTorch as it is. Importing this package registers them.
"""

from moec.dialect import cuda as _cuda  # noqa: F401
from moec.dialect.activation import ACTIVATIONS, Activation
from moec.dialect.attention import attention, attention_reference
from moec.dialect.capacity import Capacity
from moec.dialect.causal_conv import causal_conv, causal_conv_reference
from moec.dialect.cpu import experts_on_cpu
from moec.dialect.dequantize import dequantize, pack
from moec.dialect.dequantize_float import dequantize_float
from moec.dialect.experts import experts, experts_reference
from moec.dialect.linear_attention import linear_attention, linear_attention_reference
from moec.dialect.moe import moe, moe_reference
from moec.dialect.routing import Routing, route, route_reference
from moec.dialect.selective_scan import selective_scan, selective_scan_reference

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Capacity",
    "Routing",
    "attention",
    "attention_reference",
    "causal_conv",
    "causal_conv_reference",
    "dequantize",
    "dequantize_float",
    "experts",
    "experts_on_cpu",
    "experts_reference",
    "linear_attention",
    "linear_attention_reference",
    "moe",
    "moe_reference",
    "pack",
    "route",
    "route_reference",
    "selective_scan",
    "selective_scan_reference",
]
