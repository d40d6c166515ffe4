"""A Hugging Face model directory, or a hub id in the local cache: config, class, weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.files.inside import read_inside, require_inside
from moec.files.nearby import is_model, nearby
from moec.files.regular import file_hash
from moec.frontend.account import cut
from moec.frontend.snapshot import Snapshot
from moec.huggingface.formats.compressed_tensors import in_float32
from moec.huggingface.formats.modelopt import FILE
from moec.huggingface.reading import skeleton
from moec.huggingface.reading.checkpoint import Checkpoint, read_checkpoint
from moec.huggingface.reading.config_sizes import built_from, check_config, check_size
from moec.huggingface.reading.conversion import convert
from moec.huggingface.reading.model_class import CONFIG, check_permission, class_of
from moec.huggingface.reading.peft_adapter import ADAPTER, adapter_in
from moec.huggingface.reading.plausible import check_chosen
from moec.huggingface.reading.quantized import decode, decoder_of
from moec.weights.lazy import Weight, cast, from_tensor

GENERATION = "generation_config.json"
# the files that decide what a model is; what else lies beside them is only copied
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_READ = (
    "config.json",
    "adapter_config.json",
    "adapter_model.bin",
    "preprocessor_config.json",
    "processor_config.json",
    GENERATION,
    FILE,
    "*.index.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "*.py",
)


class ModelFolder:
    """A model that is stored in a directory. Opening reads config.json and the headers of the weight files.

    Args:
        text: a directory, or a hub id that the local cache holds (nothing is downloaded); that of an adapter stands for
            its base model with the adapter in it.
        trust_remote_code: let transformers run Python files that came with the model.
        allow_pickle: read `pytorch_model.bin` (with `weights_only`).
        leave_out: what the user does not want; an adapter's file may be among it.

    Raises:
        MoecError: M204 no such model, M205 broken weights, M206 unknown architecture, M209 code or pickles without
            permission, M215 a config that names two models, M217 or M301 an adapter that cannot be merged.
    """

    def __init__(
        self,
        text: str,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        leave_out: Container[str] = (),
    ) -> None:
        self.permissions = trust_remote_code, allow_pickle, leave_out
        self.path = resolve(text)
        self.hub = "" if Path(text).is_dir() else text  # as `resolve` looks
        self.snapshot = Snapshot.of(path for pattern in _READ for path in self.path.glob(pattern))
        adapted = (self.path / ADAPTER).is_file() and ADAPTER not in leave_out
        self.adapter = adapter_in(self.path, allow_pickle) if adapted else None
        if self.adapter is not None and not (self.path / CONFIG).exists():
            self.path = resolve(self.adapter.base)
            self.snapshot = self.snapshot.and_of(path for pattern in _READ for path in self.path.glob(pattern))
        require_inside(self.path / GENERATION, self.path)  # transformers reads it with the weights
        self.raw = read_config(self.path)
        decoder = decoder_of(self.raw, self.path)
        remote = trust_remote_code and bool(self.raw.get("auto_map"))
        if not remote:
            check_permission(self.raw, self.path)
        self.config = config_of(self.path, remote)
        self.model_class = class_of(self.raw, self.config, self.path, remote)
        if self.adapter is not None:
            self.adapter.check_task(self.model_class)
        self.checkpoint: Checkpoint = decode(read_checkpoint(self.path, allow_pickle), decoder)
        self.quantized = decoder is not None
        self.code = sorted(path.name for path in self.path.glob("*.py")) if remote else []
        if not remote:
            check_size(self.model_class, self.config, self.checkpoint.weights, self.path / CONFIG)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights as stored."""
        return self.checkpoint.size_bytes

    @property
    def loaded_bytes(self) -> int:
        """Memory that `loaded` takes, in float32 whatever is stored: of a quantized checkpoint, or one with an adapter,
        the decoded tensors and the model's own, beside each other."""
        return (2 if self.quantized or self.adapter is not None else 1) * self._float_bytes

    @property
    def _float_bytes(self) -> int:
        return sum(math.prod(w.shape) * 4 for w in self.checkpoint.weights.values())

    @property
    def beside(self) -> Path:
        """The folder of the files that belong to the model beside its weights: tokenizer, templates, licence."""
        return self.path

    @cached_property
    def template(self) -> Any:
        """The model without weights, in float32, for its signature."""
        with built_from(self.path / CONFIG):
            return skeleton.build(self.model_class, self.config, torch.float32)

    def hashes(self) -> dict[str, str]:
        """SHA-256 by file name, of the folder's own code too where it is run."""
        code = {name: file_hash(self.path / name) for name in self.code}
        return {**code, **self.checkpoint.hashes(), **(self.adapter.hashes() if self.adapter else {})}

    def captured(self, dtype: torch.dtype) -> tuple[Any, dict[str, Weight]]:
        """A private model on the meta device and its lazy weights in `dtype`."""
        with built_from(self.path / CONFIG):
            model = skeleton.build(self.model_class, self.config, dtype)
        weights = convert(model, self.checkpoint.weights) if self.adapter is None else self._adapted(model)
        skeleton.tie(model, weights)
        return model, weights

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Names of the model's tensors that the files do not give, which transformers would fill with random values."""
        model, weights = self.captured(torch.float32)
        patterns = model._keys_to_ignore_on_load_missing or ()
        names = [name for name in model.state_dict() if name not in weights]
        return tuple(name for name in names if not any(re.search(p, name) for p in patterns))

    def _adapted(self, model: Any) -> dict[str, Weight]:
        dtypes = {name: value.dtype for name, value in model.state_dict().items()}
        return {n: cast(from_tensor(v, n), dtypes[n]) for n, v in self._merged.items() if n in dtypes}

    @cached_property
    def _merged(self) -> dict[str, Tensor]:
        assert self.adapter is not None
        ending = re.sub(r"^.*?(?=For[A-Z]|$)", "", self.model_class.__name__) or "ForCausalLM"
        return self.adapter.merged(self._from_state, self._float_bytes, ending)

    def loaded(self) -> Any:
        """The untouched model with its weights, in float32, with transformers' own experts, its adapter unmerged.

        Of a checkpoint that is quantized, the weights are decoded first, since transformers itself would ask for the
        format's library. Raises M205 when transformers misses tensors in the files, M217 when peft has no place for the
        adapter's.
        """
        if self.adapter is not None:
            return self.adapter.attach(self._from_state()).get_base_model().eval()
        if self.quantized or (self.path / ADAPTER).is_file():  # which transformers would load by itself
            return self._from_state()
        with built_from(self.path / CONFIG):
            model, found = self.model_class.from_pretrained(
                str(self.path), output_loading_info=True, local_files_only=True, **self._kwargs
            )
        lacking = [*found["missing_keys"], *found["mismatched_keys"]]
        if lacking:
            raise lacks(sorted(map(str, lacking)), self.path)
        return model.eval()

    @property
    def _kwargs(self) -> dict[str, Any]:
        return {"config": self.config, "dtype": torch.float32, "experts_implementation": "eager"}

    def _from_state(self) -> Any:
        """The base model from tensors that are read, and decoded, here."""
        state = {name: in_float32(weight) for name, weight in self.checkpoint.weights.items()}
        return self.model_class.from_pretrained(None, state_dict=state, local_files_only=True, **self._kwargs).eval()


def lacks(names: Sequence[str], folder: Path) -> MoecError:
    """M205 for tensors that no file gives."""
    what = f"the files lack {cut(names)}, which transformers would fill with random values"
    fix = "download the whole checkpoint, or correct `architectures` in config.json to the class that was trained"
    return MoecError("M205", what, str(folder), fix)


def resolve(text: str) -> Path:
    """The directory that a text names: itself, or that of a hub id in the local cache. Raises M204."""
    if Path(text).is_dir():
        return Path(text)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, local_files_only=True))
    except Exception as error:  # the hub library has a class of its own for each way of not being there
        if Path(text).is_file():
            what = f"{text!r} is a file, and a Hugging Face model is the folder that holds it"
            python = f"name what makes the model, too: {text}:CALLABLE"
            fix = python if text.endswith(".py") else f"name the folder: {Path(text).parent}"
            raise MoecError("M204", what, text, fix) from error
        what = f"{text!r} is neither a directory nor a model in the local Hugging Face cache (moec downloads nothing)"
        download = f"check the path, or run: hf download {text}" if _HUB_ID.fullmatch(text) else "check the path"
        raise MoecError("M204", what, text, nearby(text, download, is_model)) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as plain data, its entries checked. Raises M204."""
    path = folder / "config.json"
    if not path.exists():
        raise MoecError(
            "M204",
            "the folder has no config.json, so it is no Hugging Face model",
            str(folder),
            "name the folder that holds config.json",
        )
    try:
        raw = json.loads(read_inside(path, folder))  # as transformers reads it: with Infinity and NaN
        assert isinstance(raw, dict), f"it holds a {type(raw).__name__}"
    except OSError as error:
        what = f"config.json cannot be read: {error.strerror}"
        raise MoecError("M204", what, str(path), "put a readable file there") from error
    except (ValueError, AssertionError, RecursionError) as error:
        raise MoecError(
            "M204",
            f"config.json is not a JSON object: {error}",
            str(path),
            "correct it there if it was written by hand, else download it again",
        ) from error
    check_config(raw, path)
    check_chosen(raw, str(path))
    return raw


def config_of(folder: Path, remote: bool) -> Any:
    """The same as transformers reads it, without what it says of quantization. Raises M204."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote, local_files_only=True)
    except Exception as error:  # a config's own validation may raise anything
        first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = f"{first} {others[0]}" if others and first.endswith(":") else first
        raise MoecError(
            "M204",
            f"config.json is not a valid configuration: {reason}",
            str(folder / "config.json"),
            "correct the entry it names",
        ) from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are decoded here, or refused
    return config
