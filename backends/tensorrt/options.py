"""What may stand in a target `tensorrt[:smNN][,OPTION=VALUE…]`, and in one of `tensorrt-rtx`. Imports nothing slow."""

from moec.backends.tensorrt.edition import RTX, TENSORRT
from moec.targets.declared import Count, Declared, Option

LOWERINGS = ("auto", "native", "gathered", "dense", "either", "kernels")
CACHES = ("fixed", "growing")  # a buffer that is written in place, or tensors that each call makes anew
PREFIX = "max_"  # of the options that say how large a dynamic dimension may be
DEVICES = tuple(f"sm{sm}" for sm in TENSORRT.architectures)
RTX_DEVICES = tuple(f"sm{sm}" for sm in RTX.architectures)

# of how the builder works and what a plan keeps
SETTINGS: Declared = {
    "refit": Option(
        ("no", "yes"),
        "no",
        "Whether the plan's weights can be changed without another build. RTX builds such plans on a GPU only.",
    ),
    "weight_streaming": Option(
        ("no", "yes"),
        "no",
        "Whether weights that do not fit may stay on the host, and go to the GPU when they are needed.",
    ),
    "verbosity": Option(
        ("layers", "detailed", "none"), "layers", "What the plan keeps of its layers, for NVIDIA's inspector."
    ),
    "timing_cache": Option(
        ("keep", "none"),
        "keep",
        "Whether timings of earlier builds on this GPU are used and kept (~/.cache/moec). TensorRT-RTX has none.",
    ),
}
OPTIONS: Declared = {
    "precision": Option(("fp32", "fp16"), "fp32", "Of everything but routers, which compute in float32. TF32 is off."),
    "lowering": Option(
        LOWERINGS,
        "auto",
        "Of MoE blocks. native: TensorRT's own layer. kernels: moec's kernels as plugins. gathered: the chosen "
        "experts' matrices, copied for each token. dense: all experts for all tokens. either: the number of tokens "
        "decides between these two. auto: what moves fewest bytes.",
    ),
    "cache": Option(
        CACHES, "fixed", "A decoder's cache: buffers that are written in place, or tensors that each call makes anew."
    ),
    "workspace": Option(
        Count("MiB", high=2**30),
        "the library's own; 16 GiB",
        "What the builder may take, and the intermediates of one MoE block.",
    ),
    f"{PREFIX}DIMENSION": Option(
        Count(),
        "batch 8, past_sequence 4096, others 1024",
        "The largest size of a dynamic dimension, such as max_sequence=4096.",
    ),
    **SETTINGS,
}
