"""The tensors that a model's forward takes beside the engine's inputs, and why the engine may do without each.

A caller of the task that the model was published for must get the same numbers from the engine. So an argument is an
input of the engine, or one of the kinds in the tables here, or the user asks to leave it out, or moec refuses.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moec.errors import MoecError
from moec.frontend.account import FLAG, LeaveOut, LeftOut, cut
from moec.huggingface.states.vision_language_call import FEATURES, PLACES
from moec.program.decoder_signature import IDS, TYPES

# what a name says, first match first; whole names, as patterns
_KINDS = (
    (r".*labels?(_mask)?|start_positions|end_positions|is_impossible|cls_index|p_mask", "only a loss needs it"),
    (
        r"bool_masked_pos|perm_mask|target_mapping|mask_time_indices|sampled_negative_indices",
        "only pretraining hides parts of its input",
    ),
    (r"(decoder_|encoder_)?inputs_embeds|per_layer_inputs", "stands in the place of token ids"),
    (r"(mm_)?encoder_outputs", "stands in the place of the encoder, which the engine runs"),
    (r"(encoder_)?past_key_values|cache\w*|mems|state", "is the state of earlier calls"),
    (r"(decoder_)?position_ids", "the model counts positions itself"),
    (r"(decoder_|cross_attn_)?head_mask", "switches attention heads off, for research"),
    (r"decoder_attention_mask", "the decoder's text is given whole, or continued by its own tokens"),
    (r"logits_to_keep|num_logits_to_keep", "all logits are given"),
    (r"lengths|input_mask", "attention_mask says it"),
    (r"question_lengths|question_positions", "the model finds the question by its tokens"),
    (r"pixel_mask", "the images of a batch have one size, so none is padded"),
)
_FLAGS = re.compile(r"output_\w+|return_\w+|use_\w+|interpolate_\w+|training|kwargs|args|self")
_MEDIA = re.compile(r"(high_res_|image_|conditional_)?pixel_values\w*|(audio_)?input_features|input_values|image")
_SAYS_MORE = re.compile(
    r"image|video|audio|pixel|grid|(^|_)mm_|visual|vision|patch|spatial|aspect|feature|frame"
    r"|^token_type_ids$|^input_values"
)
DESCRIBES_IMAGES = re.compile(r"^(?!.*(video|audio|pixel_values)).*(image|pixel|grid|patch|spatial|aspect)")
_MAKES_ITSELF = re.compile(r"For(SequenceClassification|QuestionAnswering)$")


def tensor_arguments(model: Any) -> list[str]:
    """Names of the arguments of a model's forward that are tensors; without annotations, all but known switches."""
    found = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or _FLAGS.fullmatch(name):
            continue
        annotation = parameter.annotation
        if annotation is parameter.empty or "Tensor" in str(annotation):
            found.append(name)
    return found


def takes_media(model: Any) -> bool:
    """Whether a model's forward takes images or sounds."""
    return any(_MEDIA.fullmatch(name) for name in (model.main_input_name, *tensor_arguments(model)))


def makes_decoder_ids(model: Any) -> bool:
    """Whether an encoder-decoder has a task for which it makes the decoder's tokens of the encoder's by itself."""
    return bool(model.config.is_encoder_decoder and _MAKES_ITSELF.search(type(model).__name__))


def left_out_inputs(
    model: Any, kept: Iterable[str], leave_out: LeaveOut, otherwise: Callable[[str], str] = lambda _: ""
) -> tuple[LeftOut, ...]:
    """The tensors of a model's forward that are no inputs of the engine, each with the reason.

    Args:
        model: a `PreTrainedModel`.
        kept: names of the engine's inputs.
        leave_out: what the user asked to do without.
        otherwise: the reason for a name, where there is no other; may be empty.

    Raises:
        MoecError: M216 for one without a reason.
    """
    kept = set(kept)
    names = [name for name in tensor_arguments(model) if name not in kept]
    asked = [name for name in names if name in leave_out]
    media = [name for name in names if _MEDIA.fullmatch(name)]
    seen = [name for name in kept if _MEDIA.fullmatch(name)]
    gone = [m for m in media if m in asked] if set(media) <= set(asked) else []
    reasons = {
        n: "you asked for it" if n in asked else _reason(n, model, _left_out_with(n, gone, seen)) or otherwise(n)
        for n in names
    }
    unexplained = [name for name, why in reasons.items() if not why]
    if unexplained:
        raise untaken(model, unexplained)
    return tuple(LeftOut("input", name, why, name in asked) for name, why in reasons.items())


def _left_out_with(name: str, gone: Sequence[str], seen: Sequence[str]) -> str:
    """What an input would describe that is left out: videos, where images are kept; else whatever there is."""
    if not seen:
        return "images, video or sound" if gone else ""
    return "videos" if "video" in name and any("video" in m for m in gone) else ""


def untaken(model: Any, names: list[str]) -> MoecError:
    """M216 for inputs that the engine would be without; the way out leaves them out."""
    media = [name for name in names if _MEDIA.fullmatch(name)]
    kind = type(model).__name__
    what = f"{kind} also takes {cut(names, 5)}, which the engine would not have"
    fix = f"to compile it for inputs without, pass {FLAG} {','.join(media or names)}"
    if FEATURES in dir(model) and model.main_input_name == IDS:
        fix += f"; for text alone, {FLAG} 'pixel_values*'; for the features of its images alone, {FLAG} {IDS}"
    return MoecError("M216", what, f"forward of {kind}", fix)


def _reason(name: str, model: Any, media_gone: str) -> str:
    """Why an engine may be without this argument; empty where nothing says so. `media_gone`: what is left out that it
    would describe."""
    config = model.config.get_text_config()
    if media_gone and _SAYS_MORE.search(name):
        return f"describes {media_gone}, which are left out"
    if name == "attention_mask" and model.main_input_name != IDS and IDS not in tensor_arguments(model):
        return "no part of an image or a sound is padding"
    if name == TYPES and int(_number(config, "type_vocab_size")) <= 1 and not _merges_images(model):
        return "the config counts no types of tokens"
    if name in ("encoder_hidden_states", "encoder_attention_mask") and not getattr(
        config, "add_cross_attention", False
    ):
        return "the config has no cross-attention"
    if name == "decoder_input_ids" and makes_decoder_ids(model):
        return "the model makes it of input_ids"
    if name == "langs" and int(_number(config, "n_langs")) <= 1:
        return "the config has one language"
    if name == "task_type_ids" and not getattr(config, "use_task_id", False):
        return "the config has no tasks"
    return next((why for pattern, why in _KINDS if re.fullmatch(pattern, name)), "")


def _merges_images(model: Any) -> bool:
    """Whether a model puts images in the place of tokens: there, types say which tokens see each other both ways."""
    return any(hasattr(module, PLACES) for module in model.modules())


def _number(config: Any, name: str) -> float:
    value = getattr(config, name, 0)
    return value if isinstance(value, int | float) else 0
