"""Every backend on every case: compiled through the public API, proven by moec, and checked once more without moec's
own comparison.

The table of models in docs/models.md is of the whole zoo: `python -m tests.zoo_table`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moec
from moec import registry
from moec.program.decoder_signature import cache_inputs, positions
from moec.targets.backend import Backend
from moec.targets.target import Target
from tests.cases import Case, cases
from tests.zoo import save

BACKENDS = registry.names("backends")


def compile_case(case: Case, backend: str, folder: Path) -> moec.Report:
    model = save(case.name, folder / "model")
    return moec.compile(model, target=backend, pipeline=case.pipeline, out=folder / "engine")


def eager_error(case: Case, folder: Path, sizes: dict[str, int]) -> float:
    """max |d| / std(eager) of the first output, by transformers alone on inputs that the compile never saw, padding
    left out."""
    import transformers

    source = moec.open_source(str(folder / "model"))
    inputs = {
        name: value for name, value in source.sample(sizes, seed=77).items() if not name.startswith("past_key_values")
    }
    cached = bool(cache_inputs(source.inputs))
    places = (
        {"position_ids": positions(inputs["attention_mask"], sizes["sequence"])} if cached else {}
    )  # as `generate` passes them
    config = transformers.AutoConfig.from_pretrained(folder / "model")
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder / "model", dtype=torch.float32).eval()
    with torch.inference_mode():
        want = model(**inputs, **places)[0]
    got = next(iter(moec.load(folder / "engine")(**inputs).values()))
    real = inputs["attention_mask"].bool() if cached else ...
    return float((got[real] - want[real]).abs().max() / want.std())


ALWAYS_ON_CUDA = "olmoe", "gpt_oss"  # weights as scores, and all that attention and routing may have


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=[] if c.name in ALWAYS_ON_CUDA else [pytest.mark.repeats]) for c in cases()],
)
def test_graphs_for_cuda_are_proven_on_the_cpu(case: Case, tmp_path: Path) -> None:
    model = save(case.name, tmp_path / "model")
    report = moec.compile(
        model, target="onnxruntime:cuda,precision=fp16", pipeline=case.pipeline, out=tmp_path / "engine"
    )
    assert report.ok and report.coverage.reached == report.coverage.total


# dense, and a mixture or llama has the same attention; attention or routing of deepseek_v3 and qwen3_moe
REPEATED = "qwen2", "qwen3", "mistral", "phi3", "deepseek_v2", "glm4_moe"


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.repeats] if c.name in REPEATED else []) for c in cases()]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_and_equals_untouched_eager(case: Case, backend: str, tmp_path: Path) -> None:
    runtime: Backend = registry.find("backends", backend)()
    probe = runtime.probe(Target(backend))
    if not probe.available:
        pytest.skip(probe.missing)
    if runtime.stand_in(Target(backend)):
        pytest.skip(
            "its engines run on a GPU; tests/backends/tensorrt builds them here, and runs what they are built from"
        )
    report = compile_case(case, backend, tmp_path)
    assert report.ok
    assert report.coverage.total > 0
    assert report.coverage.reached == report.coverage.total
    assert report.facts["blocks"]
    assert eager_error(case, tmp_path, {"batch": 4, "sequence": 19}) < 1e-3


def test_a_wrong_engine_is_seen(tmp_path: Path) -> None:
    """The mutant: the same check on a model of which one expert's weights were changed after the compile."""
    from safetensors.torch import load_file, save_file

    case = Case("mixtral", "")
    compile_case(case, "onnxruntime", tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in sorted(weights) if "experts" in n and weights[n].dim() >= 2)
    weights[name] = weights[name] * 1.05
    save_file(weights, path, metadata={"format": "pt"})
    assert eager_error(case, tmp_path, {"batch": 4, "sequence": 19}) > 1e-3


def test_backends_keep_the_protocol() -> None:
    for name in BACKENDS:
        backend = registry.find("backends", name)()
        assert isinstance(backend, Backend)
        assert backend.name == name
        assert backend.options(Target(name)) == []
        assert backend.options(Target(name, options={"no-such-option": "1"}))
