"""A Hugging Face model directory, or a hub id in the local cache: config, class, weights."""

from __future__ import annotations

import difflib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.frontend.snapshot import Snapshot
from moec.huggingface.formats.compressed_tensors import in_float32
from moec.huggingface.reading import skeleton
from moec.huggingface.reading.checkpoint import Checkpoint, read_checkpoint
from moec.huggingface.reading.conversion import convert
from moec.huggingface.reading.quantized import decode, decoder_of
from moec.weights.lazy import Weight

# the files that decide what a model is; what else lies beside them is only copied
_READ = ("config.json", "generation_config.json", "*.index.json", "*.safetensors", "pytorch_model*.bin", "*.py")


class ModelFolder:
    """A model that is stored in a directory. Opening reads config.json and the headers of the weight files.

    Args:
        text: a directory, or a hub id that the local cache holds (nothing is downloaded).
        trust_remote_code: let transformers run Python files that came with the model.
        allow_pickle: read `pytorch_model.bin` (with `weights_only`).

    Raises:
        MoecError: M204 no such model, M205 broken weights, M206 unknown architecture, M209 code or pickles without
            permission.
    """

    def __init__(self, text: str, trust_remote_code: bool = False, allow_pickle: bool = False) -> None:
        self.path = _resolve(text)
        self.snapshot = Snapshot.of(path for pattern in _READ for path in self.path.glob(pattern))
        raw = _read_config(self.path)
        decoder = decoder_of(raw, self.path)
        remote = raw.get("auto_map") if trust_remote_code else None
        if not remote:
            _check_architecture(raw, self.path)
        self.config = _config(self.path, bool(remote))
        self.model_class = _remote_class(raw["auto_map"], self.path) if remote else _class(raw, self.config, self.path)
        self.checkpoint: Checkpoint = decode(read_checkpoint(self.path, allow_pickle), decoder)
        self.quantized = decoder is not None

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights as stored."""
        return self.checkpoint.size_bytes

    @property
    def loaded_bytes(self) -> int:
        """Memory that `loaded` takes: of a quantized checkpoint the decoded tensors and the model's own, beside each
        other."""
        if not self.quantized:
            return self.size_bytes
        return 2 * sum(math.prod(w.shape) * 4 for w in self.checkpoint.weights.values())

    @cached_property
    def template(self) -> Any:
        """The model without weights, in float32, for its signature."""
        return skeleton.build(self.model_class, self.config, torch.float32)

    def hashes(self) -> dict[str, str]:
        """SHA-256 by file name."""
        return self.checkpoint.hashes()

    def captured(self, dtype: torch.dtype) -> tuple[Any, dict[str, Weight]]:
        """A private model on the meta device and its lazy weights in `dtype`."""
        model = skeleton.build(self.model_class, self.config, dtype)
        weights = convert(model, self.checkpoint.weights)
        skeleton.tie(model, weights)
        return model, weights

    def loaded(self) -> Any:
        """The untouched model with its weights, in float32, with transformers' own experts.

        Of a checkpoint that is quantized, the weights are decoded first, since transformers itself would ask for the
        format's library.
        """
        kwargs = {
            "config": self.config,
            "dtype": torch.float32,
            "experts_implementation": "eager",
            "local_files_only": True,
        }
        if not self.quantized:
            return self.model_class.from_pretrained(str(self.path), **kwargs).eval()
        state = {name: in_float32(weight) for name, weight in self.checkpoint.weights.items()}
        return self.model_class.from_pretrained(None, state_dict=state, **kwargs).eval()


def _resolve(text: str) -> Path:
    if Path(text).is_dir():
        return Path(text)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, local_files_only=True))
    except Exception as error:  # the hub library has a class of its own for each way of not being there
        raise MoecError(
            "M204",
            f"{text!r} is neither a directory nor a model in the local Hugging Face cache (moec downloads nothing)",
            text,
            f"check the path, or run: hf download {text}",
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise MoecError(
            "M204",
            "the folder has no config.json, so it is no Hugging Face model",
            str(folder),
            "name the folder that holds config.json",
        )
    try:
        raw = json.loads(path.read_text())
        assert isinstance(raw, dict)
    except (ValueError, AssertionError) as error:
        raise MoecError(
            "M204", f"config.json is not a JSON object: {error}", str(path), "download the file again"
        ) from error
    return raw


def _check_architecture(raw: dict[str, Any], folder: Path) -> None:
    """Raise M209 when only code from the folder knows this model, M206 when nothing does."""
    import transformers

    known, where, kind = set(transformers.CONFIG_MAPPING.keys()), str(folder / "config.json"), raw.get("model_type")
    names = raw.get("architectures") or []
    if kind in known and all(hasattr(transformers, n) for n in names[:1]):
        return
    if raw.get("auto_map"):
        raise MoecError(
            "M209",
            f"{kind!r} needs Python code from the model's own folder",
            where,
            "read that code, then pass --trust-remote-code",
        )
    if kind in known:
        raise MoecError(
            "M206",
            f"transformers {transformers.__version__} has no class {names[0]!r}",
            where,
            "correct `architectures`, or upgrade transformers",
        )
    near = difflib.get_close_matches(str(kind), sorted(known), n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise MoecError(
        "M206",
        f"transformers {transformers.__version__} knows no architecture {kind!r}",
        where,
        f"{hint}upgrade transformers if it is new",
    )


def _config(folder: Path, remote: bool) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote, local_files_only=True)
    except Exception as error:  # a config's own validation may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MoecError(
            "M204",
            f"config.json is not a valid configuration: {reason}",
            str(folder / "config.json"),
            "correct the entry it names",
        ) from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are decoded here, or refused
    return config


def _class(raw: dict[str, Any], config: Any, folder: Path) -> Any:
    """The class that config.json names, else the architecture's bare model."""
    import transformers

    names = raw.get("architectures") or []
    if names:
        return getattr(transformers, names[0])
    try:
        return transformers.AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise MoecError(
            "M206",
            f"{config.model_type!r} has no bare model",
            str(folder / "config.json"),
            "add `architectures` to config.json",
        ) from error


def _remote_class(auto_map: dict[str, str], folder: Path) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    models = [key for key in auto_map if key.startswith("AutoModel")]
    if not models:
        raise MoecError(
            "M206", "auto_map names no model class", str(folder / "config.json"), "add an AutoModel… entry to it"
        )
    key = "AutoModelForCausalLM" if "AutoModelForCausalLM" in models else models[0]
    return get_class_from_dynamic_module(auto_map[key], str(folder), local_files_only=True)
