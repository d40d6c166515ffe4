"""Triton model repositories, read back with the protocol definitions that its client carries, and run as Triton would
run them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moec.layouts.triton import config, is_batched, write
from moec.program.conditions import Assumptions, Condition, Values
from moec.program.program import Input
from tests.layouts.test_genai import FACTS, decoder_inputs

proto = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
NUMPY = {
    "TYPE_INT64": np.int64,
    "TYPE_FP32": np.float32,
    "TYPE_FP16": np.float16,
    "TYPE_INT32": np.int32,
    "TYPE_BOOL": np.bool_,
}
ORT = {"TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}
IDS = Input("input_ids", torch.int64, ("batch", "sequence"))
ENCODER = (
    IDS,
    Input("attention_mask", torch.int64, ("batch", "sequence")),
    Input("token_type_ids", torch.int64, ("batch", "sequence")),
)
HIDDEN = (
    Input("last_hidden_state", torch.float16, ("batch", "sequence", 32)),
    Input("pooler_output", torch.float32, ("batch", 32)),
)
LOGITS = (Input("logits", torch.float32, ("batch", "sequence", 96)),)


def parse(text: str) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, proto.ModelConfig())


def type_name(value: int) -> str:
    name: str = proto.DataType.Name(value)
    return name


# ---------------------------------------------------------------------- the text
def test_requests_that_may_not_be_joined_run_alone() -> None:
    text = config(decoder_inputs(), LOGITS, replace(FACTS, joined=False), device="cuda")
    assert parse(text).max_batch_size == 8 and not parse(text).HasField("dynamic_batching")
    assert "Each request runs alone" in text
    assert parse(config(decoder_inputs(), LOGITS, FACTS, device="cuda")).HasField("dynamic_batching")


def test_an_encoder_is_batched_along_a_dimension_that_the_config_leaves_out() -> None:
    read = parse(config(ENCODER, HIDDEN, FACTS))
    assert (read.name, read.backend, read.platform, read.max_batch_size) == (
        "tiny",
        "onnxruntime",
        "onnxruntime_onnx",
        8,
    )
    assert [(i.name, type_name(i.data_type), list(i.dims)) for i in read.input] == [
        (i.name, "TYPE_INT64", [-1]) for i in ENCODER
    ]
    assert [(type_name(o.data_type), list(o.dims)) for o in read.output] == [
        ("TYPE_FP16", [-1, 32]),
        ("TYPE_FP32", [32]),
    ]
    assert (
        list(read.dynamic_batching.preferred_batch_size) == [4, 8]
        and read.dynamic_batching.max_queue_delay_microseconds == 1000
    )
    assert read.instance_group[0].kind == proto.ModelInstanceGroup.KIND_CPU
    assert [w.name for w in read.model_warmup] == ["request"]


def test_tensorrt_plans_and_cuda_run_on_the_gpu() -> None:
    plan = parse(config(ENCODER, HIDDEN, FACTS, "model.plan"))
    assert (plan.backend, plan.platform, plan.instance_group[0].kind) == (
        "tensorrt",
        "tensorrt_plan",
        proto.ModelInstanceGroup.KIND_GPU,
    )
    assert (
        parse(config(ENCODER, HIDDEN, FACTS, device="cuda")).instance_group[0].kind == proto.ModelInstanceGroup.KIND_GPU
    )


def test_cuda_is_told_its_settings_and_warms_up_every_number_of_tokens_that_kernels_are_chosen_for() -> None:
    settings = {"use_tf32": "0", "session.use_device_allocator_for_initializers": "1"}
    read = parse(config(decoder_inputs(), LOGITS, FACTS, device="cuda", settings=settings))
    (cuda,) = read.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    assert read.parameters["session.use_device_allocator_for_initializers"].string_value == "1"
    names = [w.name for w in read.model_warmup]
    assert names == ["prefill", "decode", *(f"{2**n} tokens" for n in range(8))]  # a context of 128
    longest = read.model_warmup[-1].inputs
    assert list(longest["input_ids"].dims) == [128] and list(longest["past_key_values.0.key"].dims)[1] == 0
    plain = parse(config(decoder_inputs(), LOGITS, FACTS))
    assert not plain.optimization.ByteSize() and [w.name for w in plain.model_warmup] == ["prefill", "decode"]


@pytest.mark.parametrize(
    "outputs",
    [
        (Input("loads", torch.int64, ("experts",)),),
        (Input("mean", torch.float32, ()),),
        (Input("one", torch.float32, (1, 4)),),
    ],
)
def test_what_shares_no_batch_dimension_is_served_one_by_one(outputs: tuple[Input, ...]) -> None:
    assert is_batched((*ENCODER, *HIDDEN)) and not is_batched((*ENCODER, *outputs))
    read = parse(config(ENCODER, outputs, FACTS))
    assert read.max_batch_size == 0 and not read.HasField("dynamic_batching")
    assert list(read.input[0].dims) == [-1, -1] and list(read.model_warmup[0].inputs["input_ids"].dims) == [1, 32]


def test_tensors_without_other_dimensions_are_reshaped() -> None:
    labels = Input("labels", torch.int32, ("batch",))
    read = parse(config((*ENCODER, labels), (Input("score", torch.float32, ("batch",)),), FACTS))
    assert (
        list(read.input[3].dims) == [1]
        and read.input[3].HasField("reshape")
        and list(read.input[3].reshape.shape) == []
    )
    assert read.output[0].HasField("reshape") and list(read.model_warmup[0].inputs["labels"].dims) == [1]


def test_a_decoder_warms_up_on_a_prompt_and_on_a_token_after_it() -> None:
    read = parse(config(decoder_inputs(), LOGITS, replace(FACTS, context=20)))
    sizes = {w.name: {name: list(i.dims) for name, i in w.inputs.items()} for w in read.model_warmup}
    assert [sizes["prefill"][n] for n in ("input_ids", "attention_mask", "past_key_values.0.key")] == [
        [10],
        [10],
        [2, 0, 8],
    ]
    assert [sizes["decode"][n] for n in ("input_ids", "attention_mask", "past_key_values.1.value")] == [
        [1],
        [11],
        [2, 10, 8],
    ]


def test_a_server_is_told_what_it_does_not_check_and_warms_up_inside_of_it() -> None:
    window = Assumptions((Condition("past_sequence + sequence <= 6"),), (Values("input_ids", 0, 95),))
    text = config(decoder_inputs(), LOGITS, replace(FACTS, context=20).assuming(window))
    assert "past_sequence + sequence <= 6, 0 <= input_ids <= 95; Triton does not check that" in text
    sizes = {w.name: next(iter(w.inputs["attention_mask"].dims)) for w in parse(text).model_warmup}
    assert sizes == {"prefill": 3, "decode": 4}


# ---------------------------------------------------------------------- the folder
@pytest.fixture(scope="module")
def repository(speaking: Path, speaking_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real decoder's files as a repository, by its own signature."""
    from moec.backends.onnxruntime import Onnxruntime
    from moec.compiler.open import open_source

    folder = tmp_path_factory.mktemp("repository") / "models"
    shutil.copytree(
        speaking_engine, folder, ignore=shutil.ignore_patterns("moec.json", "report.html", "genai_config.json")
    )
    source = open_source(speaking)
    write(folder, source.inputs, Onnxruntime().outputs(folder), source.facts())
    return folder


@pytest.fixture(scope="module")
def session(repository: Path) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(str(repository / "speaking-llama/1/model.onnx"), providers=["CPUExecutionProvider"])


def test_a_repository_holds_one_model_with_one_version(repository: Path) -> None:
    assert [p.name for p in repository.iterdir()] == ["speaking-llama"]
    model = repository / "speaking-llama"
    assert sorted(p.name for p in model.iterdir()) == ["1", "config.pbtxt", "warmup"]
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"} <= {
        p.name for p in (model / "1").iterdir()
    }
    assert parse((model / "config.pbtxt").read_text()).name == model.name  # else Triton refuses to load it


def test_names_types_and_sizes_are_the_models_own(repository: Path, session: Any) -> None:
    read = parse((repository / "speaking-llama/config.pbtxt").read_text())
    for listed, real in ((read.input, session.get_inputs()), (read.output, session.get_outputs())):
        found = [(t.name, ORT[type_name(t.data_type)], [-1, *t.dims]) for t in listed]
        assert found == [(r.name, r.type, [d if isinstance(d, int) else -1 for d in r.shape]) for r in real]


def test_the_warm_up_requests_run(repository: Path, session: Any) -> None:
    """As Triton makes them: a batch of one, zeros or the start of a file, empty tensors where a dimension is 0."""
    model = repository / "speaking-llama"
    for sample in parse((model / "config.pbtxt").read_text()).model_warmup:
        feeds = {}
        for name, spec in sample.inputs.items():
            shape, dtype = (1, *spec.dims), NUMPY[type_name(spec.data_type)]
            data = (
                (model / "warmup" / spec.input_data_file).read_bytes()
                if spec.input_data_file
                else bytes(4 * 8 * 64 * 8)
            )
            count = int(np.prod(shape))
            assert len(data) >= count * np.dtype(dtype).itemsize
            feeds[name] = np.frombuffer(data, dtype, count).reshape(shape)
        logits, *presents = session.run(None, feeds)
        assert feeds["attention_mask"].min() == 1 and np.isfinite(logits).all()
        assert all(p.shape[2] == feeds["attention_mask"].shape[1] for p in presents)


def test_one_masked_token_stands_for_an_empty_cache(session: Any) -> None:
    """What the comment in config.pbtxt promises to clients that cannot send empty tensors."""
    caches, ids = [i.name for i in session.get_inputs()[2:]], np.array([[5, 9, 3]])

    def logits(past: int, masked: int) -> Any:
        mask = np.concatenate([np.full((1, past), masked), np.ones((1, 3))], 1).astype(np.int64)
        return session.run(
            ["logits"],
            {"input_ids": ids, "attention_mask": mask, **{c: np.zeros((1, 2, past, 8), np.float32) for c in caches}},
        )[0]

    assert np.allclose(logits(1, 0), logits(0, 0), atol=1e-5)
    assert not np.allclose(logits(1, 1), logits(0, 0), atol=1e-2)
