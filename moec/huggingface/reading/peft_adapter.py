"""An adapter that peft trained (LoRA and its kin), beside its base model or in a folder of its own.

peft itself merges it into the base model's weights, which is what is compiled. The proof compares with the model as
peft runs it, in which the adapter stands unmerged.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from moec.errors import MoecError
from moec.execution.memory import total_bytes
from moec.files.inside import read_inside, require_inside
from moec.files.regular import file_hash
from moec.frontend.account import FLAG, cut

ADAPTER = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TASKS = {  # of peft, and the ending of the class that transformers has for it
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


@dataclass(frozen=True)
class PeftAdapter:
    """A folder with an `adapter_config.json`, whose content is `config`, and the file of the adapter's tensors."""

    folder: Path
    config: dict[str, Any]
    weights: str

    @property
    def base(self) -> str:
        """What the adapter says that it was trained on: a folder or a hub id."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def kind(self) -> str:
        """LORA, and peft's other names."""
        return str(self.config.get("peft_type"))

    def note(self) -> str:
        """The adapter in a line."""
        targets = [t for name in ("target_modules", "target_parameters") for t in _listed(self.config.get(name))]
        rank = f" of rank {self.config['r']}" if "r" in self.config else ""
        return f"adapter: {self.kind}{rank} on {cut(sorted(targets), 8)}, merged by peft"

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the adapter's files by name."""
        return {name: file_hash(self.folder / name) for name in (ADAPTER, self.weights)}

    def check_task(self, model_class: Any) -> None:
        """Raise M217 when the adapter is of another task than the base model's class has a head for."""
        ending = _TASKS.get(str(self.config.get("task_type")), "")
        if ending and not model_class.__name__.endswith((ending, ending.replace("ForCausalLM", "LMHeadModel"))):
            what = f"the adapter is of task {self.config['task_type']}, and its base model is {model_class.__name__}"
            raise self._refusal(what, merging(self.folder, ending))

    def merged(self, base: Callable[[], Any], needed_bytes: int, ending: str) -> dict[str, Tensor]:
        """The base model's tensors with the adapter in them, float32, by the model's own names.

        Args:
            base: makes the base model, weights loaded.
            needed_bytes: memory that it takes; merging needs it twice.
            ending: of the model's class, such as `ForCausalLM`, for the command that merges it elsewhere.

        Raises:
            MoecError: M217 when peft cannot merge it, or there is too little memory.
        """
        if 2 * needed_bytes > total_bytes():
            what = f"merging the adapter takes {2 * needed_bytes / 2**30:.0f} GiB of memory, more than this machine has"
            raise self._refusal(what, merging(self.folder, ending))
        model = self.attach(base())
        try:
            merged = model.merge_and_unload(safe_merge=True)
        except Exception as error:  # each of peft's tuners has errors of its own
            raise self._unmergeable(error) from error
        return {name: value.detach() for name, value in merged.state_dict().items()}

    def attach(self, base: Any) -> Any:
        """A base model with the adapter beside its weights, as peft runs it.

        Raises:
            MoecError: M217 when peft cannot load the adapter, or does not find a place for each of its tensors, or the
                adapter is none of weights (virtual tokens are not).
        """
        from peft import PeftModel

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what peft and transformers say of missing tensors is asked for below
                model: Any = PeftModel.from_pretrained(base, str(self.folder))
                placed = model.load_adapter(str(self.folder), "default")
        except Exception as error:  # as above
            raise self._unmergeable(error) from error
        if not hasattr(model.base_model, "merge_and_unload"):
            raise self._unmergeable(TypeError("it does not change weights"))
        marked = model.base_model.prefix  # of the names of what an adapter of this type adds
        wrong = [*placed.unexpected_keys, *(name for name in placed.missing_keys if marked in name)]
        if wrong:
            what = f"the adapter and its base model do not fit: {cut(sorted(wrong))}"
            raise self._refusal(what, f"name the base model that it was trained on, or {self._without}")
        return model

    @property
    def _without(self) -> str:
        return f"compile the base model alone: {FLAG} {ADAPTER}"

    def _unmergeable(self, error: Exception) -> MoecError:
        reason = (str(error).splitlines() or [""])[0][:200]
        what = f"peft cannot merge an adapter of type {self.kind}: {type(error).__name__}: {reason}"
        return self._refusal(what, self._without)

    def _refusal(self, what: str, fix: str) -> MoecError:
        return MoecError("M217", what, str(self.folder / ADAPTER), fix)


def unwrapped(model: Any) -> Any:
    """The transformers model within a `PeftModel`, its adapter in place and unmerged; any other model as it is.

    Raises M217 where the adapter is outside of that model, as virtual tokens are.
    """
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return model
    if not hasattr(model.base_model, "merge_and_unload"):
        what, fix = (
            "its adapter adds to the input, not to weights",
            "compile model.get_base_model() alone",
        )
        raise MoecError("M217", what, type(model).__name__, fix)
    return model.get_base_model()


def merging(folder: Path, ending: str) -> str:
    """The command that merges an adapter with peft alone."""
    name = f"AutoPeftModel{ending}"
    code = (
        f"from peft import {name} as M; M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('merged')"
    )
    return f'merge it first, then compile ./merged: python -c "{code}"'


def adapter_in(folder: Path, allow_pickle: bool) -> PeftAdapter:
    """The adapter of a folder with an `adapter_config.json`.

    Raises:
        MoecError: M204 when its files are broken, missing or links out of the folder, M209 for a pickle without
            permission, M217 for one that asks for code, M301 without peft.
    """
    path = folder / ADAPTER
    try:
        config = json.loads(read_inside(path, folder))
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise MoecError("M204", f"{ADAPTER} is not a JSON object", str(path), "download the file again") from error
    weights = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise MoecError("M204", f"the adapter has no {_WEIGHTS[0]}", str(folder), "download the file")
    require_inside(folder / weights, folder)
    if weights.endswith(".bin") and not allow_pickle:
        fix = "convert it to safetensors, or pass --allow-pickle (it is then loaded with weights_only=True)"
        raise MoecError("M209", f"the adapter is a pickle, {weights}", str(folder / weights), fix)
    if config.get("megatron_config"):  # peft would import the module that the file names
        fix = f"remove megatron_config, or compile the base model alone: {FLAG} {ADAPTER}"
        raise MoecError("M217", "the adapter asks for a module of Megatron to be imported", str(path), fix)
    if find_spec("peft") is None:
        fix = f"pip install 'moec[peft]'; or compile the base model alone: {FLAG} {ADAPTER}"
        raise MoecError("M301", "the folder holds an adapter, and peft, which reads it, is missing", str(path), fix)
    return PeftAdapter(folder, config, weights)


def _listed(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)] if value else []
