"""What a model's own card states (licence, languages, the model that it comes from), and how hubs call its task.

The card is the folder's README.md, whose head is YAML as the hub's documentation of model cards describes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.files.inside import read_inside
from moec.layouts.facts import CARD

# what stays true of a model that was converted; metrics and the like were measured on another
KEPT = ("license", "license_name", "license_link", "language", "base_model", "pipeline_tag")
# transformers' own table is in a module that imports its trainer
_HEADS = {
    "text-generation": "CAUSAL_LM",
    "fill-mask": "MASKED_LM",
    "text-classification": "SEQUENCE_CLASSIFICATION",
    "token-classification": "TOKEN_CLASSIFICATION",
    "question-answering": "QUESTION_ANSWERING",
    "image-classification": "IMAGE_CLASSIFICATION",
}
_POOLED = "modules.json"  # of sentence-transformers


def stated_of(model_class: str, folder: Path | None) -> dict[str, str | list[str]]:
    """Metadata of a model, by the names of hubs; what its card does not say is not there.

    Args:
        model_class: the name of a class of transformers, e.g. `MixtralForCausalLM`.
        folder: holds the model; None for one in memory, which has no card.
    """
    pooled = folder is not None and (folder / _POOLED).is_file()
    said = _card(folder) if folder is not None else {}
    found = {name: _texts(said[name]) for name in KEPT if said.get(name)}
    task = {"pipeline_tag": "sentence-similarity" if pooled else task_of(model_class)}
    return task | {name: value for name, value in found.items() if value}


def task_of(model_class: str) -> str:
    """The task of a model class as hubs call it; what has no head gives features."""
    from transformers.models.auto import modeling_auto

    classes = {task: getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES", {}) for task, head in _HEADS.items()}
    return next((task for task, names in classes.items() if model_class in names.values()), "feature-extraction")


def _card(folder: Path) -> dict[str, Any]:
    """The head of a card; nothing where there is none that can be read: it is only told, never needed."""
    from huggingface_hub import ModelCard

    try:
        data: Any = ModelCard(read_inside(folder / CARD, folder), ignore_metadata_errors=True).data
        return dict(data.to_dict())
    except (MoecError, OSError, ValueError):
        return {}
    except Exception as error:  # YAML's own errors, of a library that only the hub's client names
        if type(error).__module__.startswith("yaml"):
            return {}
        raise


def _texts(value: Any) -> str | list[str]:
    """A text, or a list of texts; nothing of another form."""
    if isinstance(value, str):
        return value
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else ""
