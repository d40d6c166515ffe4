"""The inputs that a model's engine is asked for: the model's own, as its config and its processor say them, without
what the user leaves out, and with what the user gives in their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from moec.errors import MoecError
from moec.frontend.domain import Domain
from moec.frontend.from_exported import Dynamic
from moec.frontend.refusals import say_inputs
from moec.huggingface.inputs.arguments import DESCRIBES_IMAGES, takes_media
from moec.huggingface.inputs.given import Given
from moec.huggingface.inputs.media import deciding
from moec.huggingface.inputs.processor import Prepared, prepared
from moec.huggingface.inputs.signature import Signature, features_signature, signature_of
from moec.huggingface.reading.folder import ModelFolder
from moec.huggingface.states.vision_language_call import FEATURES, image_token
from moec.program.program import Input


class Asked:
    """What a model is asked for.

    Args:
        origin: see `moec.huggingface.origin.Origin`.
        leave_out: names that the user does not want.
        given: samples. A model in memory has these inputs; those of a folder's model take the place of its own.
    """

    def __init__(self, origin: Any, leave_out: Container[str], given: Given | None) -> None:
        self._origin, self._leave_out, self._given = origin, leave_out, given
        self._folder = origin if isinstance(origin, ModelFolder) else None

    @cached_property
    def _made(self) -> tuple[Prepared | None, str]:
        """What the processor of a folder makes, and why there is nothing of the kind."""
        if self._folder is None or not takes_media(self._folder.template):
            return None, ""
        return prepared(self._folder.path, bool(self._folder.code))

    def signature(self, caches: Sequence[Input] = ()) -> Signature:
        """The inputs. Errors are those of `signature_of` and `Given.beside`."""
        model, given = self._origin.template, None if caches else self._given
        if given is not None and self._folder is None:
            return given.signature(model)
        made, path = None if caches else self._made[0], getattr(self._folder, "path", None)
        try:
            own = signature_of(model, caches, self._leave_out, path, made)
        except MoecError as error:
            if error.code != "M206" or given is None or model.main_input_name not in {*given.samples, *given.fixed}:
                raise
            own = Signature((), {})
        return given.beside(own, model) if given else own

    @cached_property
    def features(self) -> Signature:
        """What the model's encoder of images takes; with what is given in its place. Errors are those of
        `Given.beside`."""
        made, path = self._made[0], getattr(self._folder, "path", None)
        own = features_signature(self._origin.template, self._leave_out, path, made)
        return self._given.beside(own, self._origin.template) if self._given else own

    def otherwise(self, signature: Signature) -> Callable[[str], str]:
        """Why a tensor of the forward, by its name, is no input, where nothing else speaks for it; empty where nothing
        does."""
        return partial(self._otherwise, signature)

    def _otherwise(self, signature: Signature, name: str) -> str:
        if signature.method == FEATURES:
            return f"only the features of images are made ({FEATURES}), which do not hang on it"
        if self._given and self._folder is None:
            return "it is not among the inputs that were given"
        if signature.image is not None and name == "mm_token_type_ids":
            return f"images are found by their token, {image_token(self._origin.template)}"
        made = self._made[0]
        described = made is not None and DESCRIBES_IMAGES.search(name) and name not in made.runs[0]
        return f"{made.by} does not make it" if made is not None and described else ""

    def notes(self, signature: Signature) -> tuple[str, ...]:
        """What a user must know of where the inputs come from."""
        made, why = self._made
        if made is not None and any(i.name in made.runs[0] for i in signature.inputs):
            return (f"inputs as {made.by} makes them of drawn images and sounds",)
        return (f"the folder's processor was not run, so that inputs are as the config says: {why}",) if why else ()

    def _says_features(self) -> list[str]:
        """The tensors by which a model makes the features of images."""
        own = inspect.signature(getattr(self._origin.template, FEATURES, lambda: None)).parameters
        return [name for name, parameter in own.items() if "Tensor" in str(parameter.annotation)]

    def with_values(self, error: MoecError, signature: Signature, attempt: Callable[[Given], Any]) -> MoecError:
        """The refusal of a model whose sizes hang on the values of an input; the way out fixes them, where `attempt`
        could capture it so. Any other error is returned as it is."""
        made, values = self._made[0], deciding(signature.inputs, self._made[0])
        unsaid = [n for n in self._says_features() if n not in {*(i.name for i in signature.inputs), *signature.fixed}]
        if error.code == "M207" and made is None and signature.method == FEATURES and unsaid:
            what = f"what an image is to the decoder may hang on {', '.join(unsaid)}, of which nothing is known here"
            fix = f"put the checkpoint's processor beside it, or give each a value: --input '{unsaid[0]}=[[1,4,6]]'"
            return MoecError("M207", f"{what}; without, {error.what}", f"{FEATURES} of the model", fix)
        if error.code != "M207" or not values or made is None:
            return error
        what = f"sizes inside the model hang on the values of {', '.join(values)}, which an engine does not know before"
        names = {i.name for i in signature.inputs} - set(values)
        samples = {name: value for name, value in made.runs[0].items() if name in names}
        dims: Dynamic = {name: (None,) * value.dim() for name, value in samples.items()}
        try:
            attempt(Given(samples, dims, {}, values))
        except MoecError as other:
            return MoecError(error.code, f"{what}; where they are fixed, {other.what}", other.where, other.fix)
        said = [*map(_say_value, values, values.values()), _say_shapes(dims, samples)]
        fix = f"fix them; this was captured just now, for {made.counts[0]} drawn images: {' '.join(said)}"
        return MoecError(error.code, what, error.where, fix)


def _say_value(name: str, value: Tensor) -> str:
    return f"--input '{name}={value.tolist()}'".replace(", ", ",")


def _say_shapes(dims: Dynamic, samples: dict[str, Tensor]) -> str:
    return say_inputs(dims, samples, {name: Domain("number") for name in samples}).removeprefix("pass ")
