"""KServe's InferenceService: valid YAML, a valid name, a GPU where one is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

import moec
from moec.layouts.kserve import FILE, label, service

NAME = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")


@pytest.mark.parametrize(
    "name", ["Mixtral-8x7B", "8x7b", "a" * 80, "meta_llama.Llama 3", "-", "x" * 52 + "-y", "true", "null"]
)
def test_names_are_those_that_kubernetes_takes(name: str) -> None:
    assert NAME.fullmatch(label(name))
    assert yaml.safe_load(service(name, "cpu", 1))["metadata"]["name"] == label(name)


def test_a_gpu_is_asked_for_where_the_engine_runs_on_one() -> None:
    found = {device: yaml.safe_load(service("Net", device, 3 * 2**30)) for device in ("cpu", "cuda")}
    resources = {d: f["spec"]["predictor"]["model"]["resources"] for d, f in found.items()}
    assert resources["cpu"] == {"requests": {"memory": "8Gi"}, "limits": {"memory": "8Gi"}}
    assert resources["cuda"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "1"}
    assert found["cpu"]["metadata"] == {"name": "net"} and found["cpu"]["kind"] == "InferenceService"


def test_it_lies_beside_the_repository_that_triton_serves(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n\ndef make():\n    return torch.nn.Linear(6, 5)\n")
    text, folder = f"{tmp_path / 'net.py'}:make", tmp_path / "served"
    report = moec.compile(text, inputs=["input=batch,6:float32"], out=folder, layout="kserve")
    said = yaml.safe_load((folder / FILE).read_text())
    model = said["spec"]["predictor"]["model"]
    assert said["metadata"]["name"] == "make" and model["runtime"] == "kserve-tritonserver"
    assert (folder / "make/config.pbtxt").is_file() and FILE in [a.name for a in report.artefacts]
    assert "kubectl apply" in (folder / "README.md").read_text()
    assert moec.load(folder)(input=torch.zeros(2, 6))
