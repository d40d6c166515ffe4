"""torch.onnx.export without what a settled program does not need: translations of operators that are not in it, and two
looks at all of it.

torch.onnx prepares the translation of every operator that it knows, for which it parses the source of hundreds. It
lists torch's decompositions, and it runs the program operator by operator to find mixed types. For a program whose
operators all have translations (see `moec.backends.onnx.settled`) that is most of an export, and what is left out here
has no effect on what comes out. A version of torch or onnxscript that is built otherwise does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from moec.backends.onnx.settled import is_settled
from moec.startup import swapped

_CHOSEN = ("aten::", "prims::")  # namespaces of which only the program's operators are prepared
_INSERTED = {"prims::convert_element_type", "aten::scalar_tensor"}  # by torch.onnx, where types are mixed
_REMOVED = {  # by torch.onnx
    "aten::sym_constrain_range_for_size",
    "aten::_assert_async",
    "aten::_assert_async.msg",
    "aten::_assert_scalar",
    "aten::_assert_tensor_metadata",
}


@contextmanager
def shortened(exported: ExportedProgram, opset: int, own: Collection[Any]) -> Iterator[bool]:
    """Within, `torch.onnx.export` of this program, and of no other, leaves out what changes nothing; gives whether it
    does.

    Args:
        exported: what is to be exported, as `settle` leaves it.
        opset: version of ONNX's standard domain.
        own: the operators whose translations torch.onnx is given.
    """
    with ExitStack() as stack:
        try:
            short = _enter(stack, exported, opset, own)
        except (ImportError, AttributeError):  # of another version
            stack.close()
            short = False
        yield short


def _enter(stack: ExitStack, exported: ExportedProgram, opset: int, own: Collection[Any]) -> bool:
    from onnxscript.function_libs.torch_lib import ops, registration
    from torch.onnx._internal.exporter import _fx_passes
    from torch.onnx._internal.exporter._torchlib import _torchlib_registry
    from torch.onnx._internal.fx.passes import type_promotion

    del ops  # its import fills the registry
    theirs = dict(registration.default_registry.items())
    torchs = {_name(m.fx_target) for m in _torchlib_registry.get_torchlib_ops() if m.opset_introduced <= opset}
    known = {*theirs, *torchs, *_REMOVED, *map(_name, own)}
    if not all(is_settled(n, ()) and _is_known(n, known) for n in exported.graph.nodes):
        return False
    used = _INSERTED | {_packet(_name(n.target)) for n in exported.graph.nodes}
    needed = {n: found for n, found in theirs.items() if not n.startswith(_CHOSEN) or _packet(n) in used}
    stack.enter_context(swapped(registration, "default_registry", needed))
    stack.enter_context(swapped(_fx_passes, "decompose_with_registry", lambda program, _: program))
    stack.enter_context(swapped(type_promotion._TypePromotionInterpreter, "run_node", _only_promoted(type_promotion)))
    return True


def _name(target: Any) -> str:
    """`aten::add.Tensor`, as torch.onnx names an operator; empty for what is none of torch's."""
    return str(target.name()) if isinstance(target, torch._ops.OpOverload) else ""  # type: ignore[no-untyped-call]


def _packet(name: str) -> str:
    """All overloads of an operator: where types are mixed, torch.onnx takes another one."""
    return name.partition(".")[0]


def _is_known(node: fx.Node, known: Collection[str]) -> bool:
    return not isinstance(node.target, torch._ops.OpOverload) or _name(node.target) in known


def _only_promoted(type_promotion: Any) -> Callable[[Any, fx.Node], Any]:
    """torch.onnx's step that makes conversions explicit, for one node: what it does not change has the value that
    stands at it, and is not run to find that."""
    run = type_promotion._TypePromotionInterpreter.run_node
    rule_of = type_promotion.get_type_promotion_rule

    def run_node(self: Any, node: fx.Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return run(self, node)
        rule = rule_of(node, self.type_promotion_table)
        if rule:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    return run_node
