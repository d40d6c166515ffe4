"""What may stand in a target `onnxruntime[:DEVICE][,OPTION=VALUE…]`. Imports nothing slow."""

from moec.targets.declared import Count, Declared, Option

DEVICES = ("cpu", "cuda")
OPTIONS: Declared = {
    "precision": Option(
        ("fp32", "fp16"), "fp32", "Of weights and activations. Routers that were fused compute in float32 in any case."
    ),
    "threads": Option(
        Count(low=0, high=4096), "0: one a core", "Threads of the processor for one call. 0 leaves it to the runtime."
    ),
    "accuracy": Option(
        ("exact", "int8"),
        "exact",
        "int8 lets products with quantized weights round their activations to 8 bits: faster, and no longer equal to "
        "the program.",
    ),
    "kernels": Option(
        ("runtime", "moec"),
        "runtime",
        "moec: experts on the CPU run in moec's own library, which lies in the engine's folder; other clients have to "
        "load it.",
    ),
    "tf32": Option(
        ("false", "true"),
        "false",
        "CUDA: round the factors of float32 products to 10 bits of mantissa, those of routers too, which may then "
        "choose other experts.",
    ),
    "tune": Option(
        Count("TOKENS", low=0, high=2**20),
        "512",
        "CUDA: up to so many tokens a call, kernels for experts are chosen when an engine is loaded; longer calls "
        "choose when they first come. 0 chooses none.",
    ),
    "graph": Option(
        ("false", "true"),
        "false",
        "CUDA: capture a step of one token as a graph, so that it is one launch; for decoders whose cache lies in "
        "buffers without padding.",
    ),
}
