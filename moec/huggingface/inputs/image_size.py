"""The pixels that a model takes: of the size that its config or its preprocessor fixes, else of any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.files.inside import read_inside
from moec.frontend.domain import Domain
from moec.huggingface.inputs.media import Found


def image_inputs(model: Any, images: Path | None) -> Found:
    """Pixels of the size that the config or the preprocessor fixes, else of any."""
    config = getattr(model.config, "vision_config", model.config)
    size = image_size(model, images)
    height, width = (size, size) if isinstance(size, int) else size or ("height", "width")
    shape = ("batch", int(getattr(config, "num_channels", 3)), height, width)
    return {"pixel_values": (Domain("number"), torch.float32, shape)}


def image_size(model: Any, images: Path | None) -> Any:
    """Height and width, or both as one number, that config or preprocessor bring every image to; None where neither
    says it."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None)
    return (tuple(size) if isinstance(size, list) else size) or _prepared_size(images)


def _prepared_size(images: Path | None) -> tuple[int, int] | None:
    """Height and width that a preprocessor brings every image to; None where it keeps proportions, or there is none."""
    path = images / "preprocessor_config.json" if images else None
    if path is None or not path.is_file():
        return None
    try:
        size = json.loads(read_inside(path, path.parent)).get("size")
    except (OSError, ValueError, AttributeError) as error:
        what = "preprocessor_config.json is not a JSON object"
        raise MoecError("M204", what, str(path), "download the file again, or remove it") from error
    fixed = isinstance(size, dict) and all(isinstance(size.get(k), int) and size[k] > 0 for k in ("height", "width"))
    return (size["height"], size["width"]) if fixed else None
