"""A KServe InferenceService beside Triton's model repository: `inference_service.yaml`, for `kubectl apply -f`.

It asks for KServe's own runtime `kserve-tritonserver`, which starts Triton on what it downloads from `storageUri`; so
the folder is uploaded as it is, and the file says where. The form is `serving.kserve.io/v1beta1`.
"""

from __future__ import annotations

import re
from pathlib import Path

FILE = "inference_service.yaml"
PLACE = "pvc://CLAIM/FOLDER"
_LONGEST = 63 - len("-predictor")  # of a name in Kubernetes, a DNS label, to which KServe appends that


def write(folder: Path, name: str, device: str) -> None:
    """Write the file into a model repository. `device`: `cpu` or `cuda`, where the engine is to run."""
    memory_bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    (folder / FILE).write_text(service(name, device, memory_bytes), encoding="utf-8")


def service(name: str, device: str, engine_bytes: int) -> str:
    """The text of the file.

    Args:
        name: of the model, which becomes the service's, in small letters, digits and hyphens.
        device: `cpu` or `cuda`.
        engine_bytes: of the engine's files; the container asks for twice that and 2 GiB, Triton's own included.
    """
    memory = -(-2 * engine_bytes // 2**30) + 2
    lines = [f'memory: "{memory}Gi"', *(['nvidia.com/gpu: "1"'] if device == "cuda" else [])]
    needed = "\n".join(f"          {line}" for line in lines)
    return f"""\
# Upload this folder, write its place after storageUri (pvc://, s3://, gs://, https://, oci://), and
# `kubectl apply -f {FILE}`. The service speaks the open inference protocol, version 2.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: "{label(name)}"
spec:
  predictor:
    model:
      modelFormat:
        name: triton
        version: "2"
      runtime: kserve-tritonserver
      protocolVersion: v2
      storageUri: {PLACE}
      resources:
        requests:
{needed}
        limits:
{needed}
"""


def label(name: str) -> str:
    """A name as Kubernetes takes it: small letters, digits and hyphens, a letter first."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    found = found if found[:1].isalpha() else f"model-{found}"
    return found[:_LONGEST].strip("-")
