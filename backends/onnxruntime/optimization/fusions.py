"""Several small nodes of a translated graph become one kernel of ONNX Runtime: the rules are onnxscript's, corrected
where the runtime is narrower.

RMS norms and transposed keys were measured to be faster on the CPU at one token; the sums that feed a norm were only
measured together with them. GELU is left as it is: nobody has measured it. No rule reads a weight: they look at scalars
and at shapes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.emit import MICROSOFT
from moec.backends.onnx.rooted_rules import rooted
from moec.backends.onnxruntime.optimization.half_norms import narrow_norms


def fuse(model: ir.Model, provider: str = "cpu") -> dict[str, int]:
    """Fuse RMS norms, sums that feed them and transposed keys, in place; for CUDA those in half precision wholly, see
    `half_norms`.

    Returns:
        How many of each: `rms_norm`, `skip_norm` (a sum and the norm of it), `transposed_key`.
    """
    found = {}
    for name, rules in _rules().items():
        found[name] = rules.apply_to_model(model)
        if name == "rms_norm" and provider == "cuda":
            narrow_norms(model)
    if found["skip_norm"]:
        model.opset_imports.setdefault(MICROSOFT, 1)
    return found


@cache
def _rules() -> dict[str, Any]:
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions.rms_normalization import RmsNormFusion
    from onnxscript.rewriter.ort_fusions.skip_normalization import (
        skip_layer_normalization_ruleset,
        skip_rms_normalization_ruleset,
    )

    class RmsNorm(RmsNormFusion):  # type: ignore[misc]
        """The runtime's kernel has one dtype for rows, scale and result; a model in half precision may scale in
        float32."""

        def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
            rows = x if x.dtype == scale.dtype else op.Cast(x, to=int(scale.dtype or 1))
            constant = ir.convenience.get_const_tensor(epsilon)
            assert constant is not None
            return op.SimplifiedLayerNormalization(
                rows, scale, axis=-1, epsilon=float(constant.numpy().item()), stash_type=self._stash_dtype
            )

    rule: Any = RmsNorm.rule
    rules = {
        "root": [pattern.RewriteRule(_power, _reciprocal_root, _is_minus_half)],
        "rms_norm": [rule("rms_norm", _mul_order=order) for order in (False, True)],
        "skip_norm": [*skip_rms_normalization_ruleset.rules, *skip_layer_normalization_ruleset.rules],
        "transposed_key": [pattern.RewriteRule(_key_by_three, _key_at_once, _swaps_last_two)],
    }
    return {name: pattern.RewriteRuleSet(rooted(some)) for name, some in rules.items()}


# ---------------------------------------------------------------------- x ** -0.5, as Gemma writes its norm
def _power(op: Any, x: Any, exponent: Any) -> Any:
    return op.Pow(x, exponent)


def _is_minus_half(context: Any, x: ir.Value, exponent: ir.Value, **_: Any) -> bool:
    constant = exponent.const_value
    return constant is not None and constant.size == 1 and float(constant.numpy().item()) == -0.5


def _reciprocal_root(op: Any, x: Any, exponent: Any) -> Any:
    return op.Reciprocal(op.Sqrt(x))


# ---------------------------------------------------------------------- a key that torch.onnx transposes through three
def _key_by_three(op: Any, key: Any, flat: Any, shape: Any) -> Any:
    return op.Reshape(op.Transpose(op.Reshape(key, flat), perm=[0, 2, 1]), shape)


def _key_at_once(op: Any, key: Any, flat: Any, shape: Any) -> Any:
    return op.Transpose(key, perm=[0, 1, 3, 2])


def _swaps_last_two(context: Any, key: ir.Value, flat: ir.Value, shape: ir.Value, **_: Any) -> bool:
    """Whether the shapes are `[-1, S, D]` and `[…, D, S]`, computed from the key `[B, N, S, D]` itself."""
    if key.shape is None or len(key.shape) != 4:
        return False
    return _parts(flat, key)[-2:] == [(-2, -1), (-1, 4)] and _parts(shape, key) == [(0, -2), (-1, 4), (-2, -1)]


def _parts(shape: ir.Value, source: ir.Value) -> list[tuple[int, int] | None]:
    """Which dimensions of a source `[B, N, S, D]` a shape is concatenated from, as (start, end); None for other
    numbers."""
    joined = shape.producer()
    return [_part(v, source) for v in joined.inputs] if joined is not None and joined.op_type == "Concat" else []


def _part(value: ir.Value | None, source: ir.Value) -> tuple[int, int] | None:
    cut = None if value is None else value.producer()
    whole = (
        cut.inputs[0].producer() if cut is not None and cut.op_type == "Slice" and cut.inputs[0] is not None else None
    )
    if (
        cut is None
        or whole is None
        or whole.op_type != "Shape"
        or whole.inputs[0] is not source
        or whole.attributes.get_int("start", 0) != 0
    ):
        return None
    bounds = [
        None if v is None or v.const_value is None or v.const_value.size != 1 else int(v.const_value.numpy().item())
        for v in cut.inputs[1:3]
    ]
    if "end" in whole.attributes or len(cut.inputs) > 3 or bounds[0] is None or bounds[1] is None:
        return None
    start, end = bounds[0], bounds[1]
    return 0 if start <= -4 else start, 4 if end >= 4 else end
