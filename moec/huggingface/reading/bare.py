"""A model from its config alone: every parameter on the meta device, no weight files asked for."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from moec.errors import MoecError
from moec.files.regular import read_bytes
from moec.huggingface.reading.config_sizes import built_from
from moec.huggingface.reading.folder import config_of, read_config, resolve
from moec.huggingface.reading.model_class import CONFIG, check_permission, class_of


def described(text: str) -> tuple[Any, Any]:
    """Class and config of the model that a config describes. Arguments and errors as those of `bare_model`."""
    path = Path(text)
    if path.suffix == ".gguf" and path.is_file():
        what = "a GGUF file is compiled, and is not planned: a plan reads a config.json"
        raise MoecError("M204", what, text, "plan the config.json of the engine that `moec compile` makes of it")
    return _from_file(path) if path.is_file() else _from_folder(resolve(text))


def bare_model(text: str) -> Any:
    """The `PreTrainedModel` that a config describes, in eval mode, with parameters and buffers on the meta device.

    Args:
        text: a config.json, a folder that holds one, or a hub id that the local cache holds. A folder's own code is
            never run.

    Raises:
        MoecError: M204 no such config or a wrong one, M206 an architecture that transformers does not know, M209 one
            that only the folder's own code knows, M215 a config that names two models.
    """
    return bare(*described(text), text)


def bare(model_class: Any, config: Any, text: str) -> Any:
    """The same of a class and a config; errors name `text`."""
    from transformers.initialization import no_init_weights

    with no_init_weights(), built_from(Path(text)), torch.device("meta"):
        model = model_class._from_config(deepcopy(config)).eval()
    model.tie_weights()  # which is left out where nothing is initialised
    return model


def _from_file(path: Path) -> tuple[Any, Any]:
    """transformers reads folders, and files by one name; an error names the user's file."""
    with TemporaryDirectory() as folder:
        try:
            (Path(folder) / CONFIG).write_bytes(read_bytes(path))
            return _from_folder(Path(folder))
        except OSError as error:
            what = f"the file cannot be read as a config: {error.strerror}"
            raise MoecError("M204", what, str(path), "name a config.json") from error
        except MoecError as error:
            raise MoecError(error.code, error.what, str(path), error.fix) from error


def _from_folder(folder: Path) -> tuple[Any, Any]:
    raw = read_config(folder)
    check_permission(raw, folder)
    config = config_of(folder, False)
    return class_of(raw, config, folder, False), config
