"""Which class a model folder is opened with: the one that its config.json names, from transformers or from the folder's
own code. Where config.json says two things, neither is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.registry import did_you_mean
from moec.startup import late

CONFIG = "config.json"


def check_permission(raw: dict[str, Any], folder: Path) -> None:
    """Raise M209 when only code from the folder knows this model, M206 when nothing does."""
    import transformers

    with late("scipy.optimize", "torch.distributed.checkpoint.hf_storage"):
        import transformers.modeling_utils
    known, where, kind = set(transformers.CONFIG_MAPPING.keys()), str(folder / CONFIG), raw.get("model_type")
    names, remote = declared(raw), remote_classes(raw)
    own = kind in known and all(hasattr(transformers, n) for n in names[:1])
    theirs = [n for n in remote if not hasattr(transformers, n)] if not set(names[:1]) & set(remote) else []
    if own and not theirs:
        return
    if raw.get("auto_map"):
        code = f"{theirs[0]!r} is" if theirs else f"{kind!r} needs"
        what = f"{code} Python code from the model's own folder"
        raise MoecError("M209", what, where, "read that code, then pass --trust-remote-code")
    if kind in known:
        what = f"transformers {transformers.__version__} has no class {names[0]!r}"
        raise MoecError("M206", what, where, "correct `architectures`, or upgrade transformers")
    hint, new = did_you_mean(str(kind), sorted(known), " "), "upgrade transformers if it is new"
    what = f"transformers {transformers.__version__} knows no architecture {kind!r}"
    raise MoecError("M206", what, where, f"{hint} {new}".strip())


def declared(raw: dict[str, Any]) -> list[str]:
    """The class names under `architectures`; one should be there."""
    names = raw.get("architectures") or []
    return [str(name) for name in names] if isinstance(names, list) else [str(names)]


def remote_classes(raw: dict[str, Any]) -> dict[str, str]:
    """Class name -> reference (`file.Class`) of each model class that `auto_map` names."""
    entries = raw.get("auto_map") or {}
    found = [v for k, v in entries.items() if k.startswith("AutoModel")] if isinstance(entries, dict) else []
    return {str(v).rpartition(".")[2]: str(v) for v in found}


def class_of(raw: dict[str, Any], config: Any, folder: Path, trusted: bool) -> Any:
    """The class to open the folder with.

    Args:
        raw: config.json. config: the same as transformers reads it.
        trusted: whether the folder's own code may be run.

    Raises:
        MoecError: M206 where nothing names a class, M215 where config.json names two that differ.
    """
    remote = remote_classes(raw) if trusted else {}
    return _remote(declared(raw), remote, folder) if remote else _own(declared(raw), config, folder)


def _own(names: list[str], config: Any, folder: Path) -> Any:
    """The class of transformers that config.json names, else the architecture's bare model."""
    import transformers

    if not names:
        try:
            return transformers.AutoModel._model_mapping[type(config)]
        except KeyError as error:
            what, fix = f"{config.model_type!r} has no bare model", "add `architectures` to config.json"
            raise MoecError("M206", what, str(folder / CONFIG), fix) from error
    found = getattr(transformers, names[0])
    wanted = getattr(found, "config_class", None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise _mismatch(f"{names[0]!r}, which `architectures` names, is no model", folder, "correct `architectures`")
    if wanted is not None and not isinstance(config, wanted):
        what = (
            f"`architectures` names {names[0]}, a model of {wanted.__name__}; `model_type` says {config.model_type!r}"
        )
        raise _mismatch(what, folder, "correct the one that is wrong; they belong to two different models")
    return found


def _remote(names: list[str], remote: dict[str, str], folder: Path) -> Any:
    """The class of the folder's own code that config.json names."""
    if not names:
        if len(remote) > 1:
            what = f"`auto_map` has {' and '.join(remote)}, and no `architectures` says which it is"
            raise _mismatch(what, folder, f'add "architectures": ["{next(iter(remote))}"], or another of them')
        names = list(remote)
    if names[0] in remote:
        return _import(remote[names[0]], folder)
    module = next(iter(remote.values())).rpartition(".")[0]
    try:  # the file that holds the others may hold it too
        return _import(f"{module}.{names[0]}", folder)
    except AttributeError:
        what = (
            f"`architectures` names {names[0]}, which is not in the folder's code: `auto_map` has {', '.join(remote)}"
        )
        fix = f'write the class that you use there: "architectures": ["{next(iter(remote))}"]'
        raise _mismatch(what, folder, fix) from None


def _import(reference: str, folder: Path) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(reference, str(folder), local_files_only=True)


def _mismatch(what: str, folder: Path, fix: str) -> MoecError:
    return MoecError("M215", what, str(folder / CONFIG), fix)
