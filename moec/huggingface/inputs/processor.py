"""What the processor beside a checkpoint makes of drawn images and sounds: the inputs that its users call the model
with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from moec.files.inside import require_inside

FILES = ("processor_config.json", "preprocessor_config.json")
# (how many, height, width, seconds): two runs with nothing in common, so that what is equal in both is fixed
_DRAWN = ((2, 96, 128, 0.4), (3, 160, 112, 0.7))


@dataclass(frozen=True)
class Prepared:
    """What a processor made.

    Attributes:
        by: the classes that were run.
        runs: the tensors of each run by name; every run had another number of items, of other sizes.
        rate: samples of sound a second; 0 where it takes none.
        counts: images or sounds of each run.
    """

    by: str
    runs: tuple[Mapping[str, Tensor], ...]
    rate: int = 0
    counts: tuple[int, ...] = tuple(count for count, *_ in _DRAWN)


def prepared(folder: Path, remote: bool = False) -> tuple[Prepared | None, str]:
    """What the processor in a folder makes of drawn inputs; None where there is none that can be run, with the reason,
    which is empty where the folder has no files of one.

    Args:
        folder: of the checkpoint.
        remote: whether the folder's own code may be run; only transformers' classes are otherwise.

    Raises:
        MoecError: M204 for a file of it that leads out of the folder.
    """
    if not any((folder / name).is_file() for name in FILES):
        return None, ""
    for name in FILES:
        require_inside(folder / name, folder)
    with _quiet():
        parts, why = _loaded(folder, remote)
        runs = [_run(parts, *drawn) for drawn in _DRAWN] if parts else []
    if not runs or not all(made for made, _ in runs):
        return None, why or next((reason for _, reason in runs if reason), "it takes neither images nor sounds")
    names = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
    rate = next((int(part.sampling_rate) for part in parts if hasattr(part, "sampling_rate")), 0)
    return Prepared(names, tuple(made for made, _ in runs), rate), ""


def _loaded(folder: Path, remote: bool) -> tuple[list[Any], str]:
    """The parts of the folder's processor that take images or sounds; of one that cannot be loaded as a whole (videos
    need torchvision), those that can."""
    import transformers

    reasons: list[str] = []
    for names in (("AutoProcessor",), ("AutoImageProcessor", "AutoFeatureExtractor")):
        found: list[Any] = []
        for name in names:
            try:
                load = getattr(transformers, name).from_pretrained
                found += _parts(load(str(folder), trust_remote_code=remote, local_files_only=True))
            except Exception as error:  # whatever a class raises for files that are not its own
                reasons.append(_first_line(error))
        if found:
            return found, ""
    telling = (reason for reason in reasons if "custom code" in reason or "requires" in reason)
    return [], next(telling, next(iter(reasons), ""))


def _parts(processor: Any) -> list[Any]:
    """What takes images or sounds in a processor, or the processor itself. Text is read from the config: a tokenizer
    adds nothing to it."""
    from transformers import BaseImageProcessor, SequenceFeatureExtractor

    parts = [getattr(processor, name, None) for name in ("image_processor", "feature_extractor", "audio_processor")]
    return [part for part in (*parts, processor) if isinstance(part, BaseImageProcessor | SequenceFeatureExtractor)]


def _run(parts: Sequence[Any], count: int, height: int, width: int, seconds: float) -> tuple[dict[str, Tensor], str]:
    """The tensors that all parts make of so many drawn items; none where one of them fails, with the reason."""
    generator = np.random.default_rng(count)
    made: dict[str, Tensor] = {}
    for part in parts:
        rate = getattr(part, "sampling_rate", 0)
        try:
            if rate:
                sounds = _sounds(generator, count, int(rate * seconds))
                out = part(sounds, sampling_rate=rate, return_tensors="pt", **_padding(part))
            else:
                out = part(images=_images(generator, count, height, width), return_tensors="pt", **_own_ocr(part))
        except Exception as error:  # a class may ask for what is not installed
            return {}, f"{type(part).__name__}: {_first_line(error)}"
        made |= {name: value for name, value in out.items() if isinstance(value, Tensor) and name not in made}
    return made, ""


def _own_ocr(part: Any) -> dict[str, Any]:
    """Words and boxes are the caller's: a text recogniser is not asked for them."""
    return {"apply_ocr": False} if hasattr(part, "apply_ocr") else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _padding(part: Any) -> dict[str, Any]:
    """Sounds of a batch are padded as the extractor does it of itself, which some do to a length of their own; where it
    does not, to the longest."""
    own = hasattr(part, "chunk_length") or hasattr(part, "max_length")
    return {} if own or not hasattr(part, "padding_value") else {"padding": True}


def _images(generator: np.random.Generator, count: int, height: int, width: int) -> list[Any]:
    from PIL import Image

    drawn = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in drawn]


def _sounds(generator: np.random.Generator, count: int, samples: int) -> list[Any]:
    return list((generator.standard_normal((count, samples)) * 0.1).astype(np.float32))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers says of packages that make a processor faster."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
