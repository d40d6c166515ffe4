"""The first day's stages: in which order, how long each may take, and what one knows after it."""

from __future__ import annotations

from dataclasses import dataclass

START_SECONDS, MACHINE_SECONDS = 70, 15 * 60  # to start a machine and send the tree; what there is
CALL_SECONDS = 590  # of one command


@dataclass(frozen=True)
class Stage:
    """One part of the day.

    Attributes:
        seconds: its limit, all in all. needs: the bundle without which it cannot run.
        says: what one knows after it.
    """

    name: str
    seconds: int
    needs: str
    says: str


STAGES = (  # those of one bundle fit into one call
    Stage("kernels", 130, "kernels", "the Triton kernels are right: dtypes, layouts, packed weights, 0 to 4096 tokens"),
    Stage("accelerate", 60, "kernels", "models with them are right, in a CUDA graph too"),
    Stage("engines", 90, "engines", "ONNX Runtime's engines on CUDA are what they are on the CPU, without TF32"),
    Stage("anchors", 210, "kernels", "how fast the kernels are beside PyTorch's, transformers' and published times"),
    Stage("runtime", 100, "engines", "a step's launches and copies, the memory of attention and of 4-bit weights"),
    Stage("sanitizer", 100, "kernels", "no kernel reads or writes outside of its tensors, or races"),
    Stage("decoder", 75, "kernels", "tokens a second of four layers of Qwen3-30B-A3B"),
)


def plan() -> str:
    """The stages, their limits and what they say, as Markdown."""
    total = sum(stage.seconds for stage in STAGES) + START_SECONDS
    lines = ["| stage | seconds at most | bundle | what it says |", "|---|---|---|---|"]
    lines += [f"| start | {START_SECONDS} | | the machine, the tree, the bundles |"]
    lines += [f"| {s.name} | {s.seconds} | {s.needs} | {s.says} |" for s in STAGES]
    return "\n".join([*lines, f"| all | {total} | | of {MACHINE_SECONDS} |"])
