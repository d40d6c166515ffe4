"""What runs a plan on tensors that stay where they are: one of the library's execution contexts, and those beside it.

A CUDA graph holds what its context was told when it was captured, and the library asks that nobody tells that context
anything else while the graph is in use. So each text whose steps are captured has a context of its own; they share the
memory of intermediates, since one stream runs them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moec.backends.tensorrt.profiles import Profile, fitting
from moec.errors import MoecError
from moec.program.program import Input

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@dataclass
class Plan:
    """What all contexts of a plan have in common.

    Attributes:
        name: of the engine, for errors. engine: TensorRT's. library: the module.
        specs: the inputs that the plan has, buffers where its cache is fixed. outputs: their names.
        profiles: in the plan's order. stream: on which all of it runs.
        scratch: memory of the intermediates of steps, which their contexts share; made with the first of them.
    """

    name: str
    engine: Any
    library: Any
    specs: Sequence[Input]
    outputs: tuple[str, ...]
    profiles: tuple[Profile, ...]
    stream: Any
    scratch: Tensor | None = field(default=None, repr=False)


class PlanContext:
    """An executor, see `fixed_text`.

    Args:
        plan: what it shares with others. context: TensorRT's, at its first profile.
    """

    device = "cuda"

    def __init__(self, plan: Plan, context: Any) -> None:
        self._plan, self._context, self._profile = plan, context, 0
        self.bound: object = None
        self._made = dict[str, Tensor]()
        self._held: tuple[Mapping[str, Tensor], ...] = ()
        trt = plan.library
        self._dtypes = {getattr(trt, theirs): ours for theirs, ours in DTYPES.items() if hasattr(trt, theirs)}

    def apart(self) -> PlanContext:
        """Another context of the first profile, which a decoder's steps have; itself where the GPU has no memory for
        it."""
        plan, trt = self._plan, self._plan.library
        engine = plan.engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        if context is None:
            return self
        size = int(engine.get_device_memory_size_for_profile_v2(0))
        if plan.scratch is None:
            plan.scratch = torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)
        context.set_device_memory(plan.scratch.data_ptr(), size)
        return PlanContext(plan, context)

    def bind(self, owner: object, inputs: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """Set profile, shapes and addresses; what of the outputs is not in `kept` is allocated."""
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        index, context = fitting(self._plan.profiles, self._plan.specs, shapes, self._plan.name), self._context
        if index != self._profile:
            done = context.set_optimization_profile_async(index, self._plan.stream.cuda_stream)
            self._require(done, "set_optimization_profile_async")
            self._profile = index
        for name, value in inputs.items():
            self._require(context.set_input_shape(name, tuple(value.shape)), f"set_input_shape({name})")
        missing = context.infer_shapes()
        self._require(not missing, f"infer_shapes: {missing}")
        self._made = {name: self._allocate(name) for name in self._plan.outputs if name not in kept}
        for name, value in {**inputs, **self._made, **kept}.items():
            self._require(context.set_tensor_address(name, _address(value)), f"set_tensor_address({name})")
        self.bound, self._held = owner, (inputs, kept)  # whose memory the plan reads and writes

    def execute(self) -> dict[str, Tensor]:
        """Run on what is bound, and wait for it; the outputs that were not given."""
        stream = self._plan.stream
        stream.wait_stream(torch.cuda.current_stream())  # whose tensors these are
        self._require(self._context.execute_async_v3(stream.cuda_stream), "execute_async_v3")
        stream.synchronize()
        return self._made

    def capture(self) -> Callable[[], dict[str, Tensor]] | None:
        """What is bound as one CUDA graph; None where a layer of the plan does not let itself be captured."""
        graph, made, stream = torch.cuda.CUDAGraph(), self._made, self._plan.stream
        try:
            with torch.cuda.graph(graph, stream=stream):
                done = self._context.execute_async_v3(stream.cuda_stream)
        except RuntimeError:  # of the driver: the plan waits for the device in between
            return None

        def replay() -> dict[str, Tensor]:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                graph.replay()
            stream.synchronize()
            return made

        return replay if done else None

    def close(self) -> None:
        """Let go of TensorRT's objects."""
        self._context = self._plan.engine = self._plan.scratch = None

    def _allocate(self, name: str) -> Tensor:
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = self._dtypes[self._plan.engine.get_tensor_dtype(name)]
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise MoecError(
                "M211",
                f"the engine refuses the inputs: {what}",
                self._plan.name,
                "give inputs that fit its signature and its profiles",
            )


_NOTHING: list[Tensor] = []


def _address(value: Tensor) -> int:
    """Where a tensor lies. An empty one lies nowhere, and the library takes no null."""
    if value.numel():
        return value.data_ptr()
    if not _NOTHING:
        _NOTHING.append(torch.zeros(64, device="cuda"))
    return _NOTHING[0].data_ptr()
