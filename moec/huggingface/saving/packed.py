"""A quantized program as a checkpoint in the compressed-tensors form, which vLLM and other servers load: the same
integers and scales.

The architecture's own file names are used, its experts one by one. What the form has no place for is refused: moec
never rounds anew. The form allows more than vLLM's kernels read, which is 4 and 8 bits in groups of 32, 64 or 128, for
experts without zero points. Scales of symmetric grids may be negative, see `moec.quantization.rounding.encode`: reading
is a product, whose sign they carry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.errors import MoecError
from moec.huggingface.formats.compressed_tensors import FORMAT, METHOD, PACKED, SCALE, SHAPE, ZERO
from moec.huggingface.reading.conversion import collect
from moec.program.program import META, Program
from moec.recognition.weight_roles import PACKED as PACKED_HERE
from moec.recognition.weight_roles import weight_uses
from moec.weights import lazy
from moec.weights.lazy import Coded, Weight, decoded, from_tensor, rowwise, whole

ops = torch.ops.moec
_EXPERT = re.compile(r"(.*\.experts)\.\d+\.")
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # servers make one product of each of these
_OWN_LAYOUT = re.compile(r"(interleaved|up_gate|transpose\[1,2\])\(")  # what capture does to experts that lie otherwise
_FIX = "quantize everything in a layer alike, or compile without --save-hf"


@dataclass(frozen=True)
class Scheme:
    """How one module's weight is stored."""

    num_bits: int
    group_size: int
    symmetric: bool


def is_quantized(program: Program) -> bool:
    """Whether any weight of a program stands behind `moec::dequantize`."""
    return bool(program.nodes(ops.dequantize.default))


def refuse_floats(program: Program) -> None:
    """Raise M206 for weights in small floats, which are not written."""
    if program.nodes(ops.dequantize_float.default):
        raise _refuse(
            program,
            "its weights are small floats (fp8, nvfp4); moec writes integers of 2, 4 and 8 bits",
            "quantize with format=int",
        )


def with_plain_weights(program: Program) -> Program:
    """A copy in which every weight is read by its own name again; those that are packed know their codes
    (`Weight.coded`)."""
    plain = program.clone()
    for node in plain.nodes(ops.dequantize.default):
        packed, scale, zero = (plain.weight_of(a) for a in (*node.args, None)[:3])
        bits = node.kwargs["bits"]
        assert packed is not None and scale is not None and isinstance(bits, int)
        name = str(node.args[0].target).removesuffix(PACKED_HERE)  # type: ignore[union-attr]
        with plain.graph.inserting_before(node):
            node.replace_all_uses_with(
                plain.read_weight(plain.add_weight(name, decoded(Coded(packed, scale, zero, bits))))
            )
    plain.finish()
    return plain


# ---------------------------------------------------------------------- the model's own architecture
def plan_same(program: Program, model: Any) -> dict[str, Weight]:
    """Name in the files -> lazy weight, for a program that still has the architecture it was captured from.

    Args:
        program: with plain weights.
        model: the architecture on the meta device; its output is untied here where head and embedding have become
            different tensors.

    Raises:
        MoecError: M206 when a weight of the program has no place in the architecture, or stands in another layout
            there.
    """
    _refuse_mixed(program)
    state: dict[str, Tensor] = model.state_dict()
    table = _ends_named(program, model, state)
    stray = next(
        (u for u in weight_uses(program) if u.name not in table and table.get(_key(model, u.kind)) is not u.weight),
        None,
    )
    if stray is not None:
        raise _refuse(program, f"the weights {stray.name!r} have no place in {model.config.model_type}")
    stored: dict[str, Weight] = {}
    for key, names in _file_names(model, state).items():
        if key not in table:
            raise _refuse(program, f"the weight {key!r} of {model.config.model_type} is not in it")
        stored |= _spread(program, model, key, lazy.cast(table[key], state[key].dtype), names)
    return stored


def _refuse(program: Program, what: str, fix: str = _FIX) -> MoecError:
    return MoecError("M206", f"cannot save the program as a quantized checkpoint: {what}", program.source, fix)


def _refuse_mixed(program: Program) -> None:
    """Raise M206 where the experts of one layer have several widths."""
    for node in program.nodes(ops.experts.default):
        if any(program.weight_of(matrices) is None for matrices in node.args[3:5]):
            raise _refuse(
                program,
                f"the experts of {node.name} differ in width, and servers compute a layer's experts as one",
                "use one width a layer",
            )


def _key(model: Any, kind: str) -> str:
    """The name of the embedding or the head in the model's state; empty for other kinds."""
    module = {"embeddings": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}.get(kind)
    return (
        next((f"{name}.weight" for name, m in model.named_modules() if m is module), "") if module is not None else ""
    )


def _ends_named(program: Program, model: Any, state: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The program's weights by the model's names. A table that is shared may have one name, or have become two
    tensors."""
    table = {name: weight for name, weight in program.weights.items() if name in state}
    ends = {
        u.kind: u.weight for u in weight_uses(program) if u.kind in ("embeddings", "lm_head") and u.weight is not None
    }
    for kind, weight in ends.items():
        if _key(model, kind) in state:
            table[_key(model, kind)] = weight
    head, embedding = (table.get(_key(model, kind)) for kind in ("lm_head", "embeddings"))
    if head is not None and embedding is not None and (head is not embedding or head.coded is not None):
        model.config.tie_word_embeddings = False
    elif model.config.tie_word_embeddings and embedding is not None:
        table.setdefault(_key(model, "lm_head"), embedding)
    return table


def _file_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, list[list[str]]]:
    """Model name -> for each part that its rows are made of, the names in the files: one, or one for every expert."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    meta = {
        name: torch.empty(value.shape, dtype=value.dtype, device=META)
        for name, value in state.items()
        if name not in tied
    }
    files = {name: from_tensor(value, name) for name, value in revert_weight_conversion(model, meta).items()}
    found = {}
    for key, (converter, pieces) in collect(model, files, dict(state)).items():
        order = [p for p in converter.source_patterns if p in pieces] if converter else list(pieces)
        found[key] = [[w.origin for w in pieces[p]] for p in order]  # type: ignore[union-attr]
    return found


def _spread(program: Program, model: Any, key: str, weight: Weight, names: list[list[str]]) -> dict[str, Weight]:
    """One weight of the model under its names in the files. Of experts it is the captured layout, gate rows before up
    rows, that must be theirs."""
    own, single = _OWN_LAYOUT.search(weight.origin), sum(map(len, names)) == 1
    if len(weight.shape) == 3 and (single or own):
        raise _refuse(
            program,
            f"the files of {model.config.model_type} hold {key!r} in a layout of their own",
            "compile it without --save-hf",
        )
    if single:
        if weight.coded is not None and not isinstance(_owner(model, key), nn.Linear | nn.Embedding):
            raise _refuse(
                program,
                f"{key!r} is no linear layer in {model.config.model_type}'s files",
                "leave it as it is with a rule of 16 bits",
            )
        return {names[0][0]: weight}
    count, at = len(names[0]), 0
    found: dict[str, Weight] = {}
    if weight.shape[0] != count or any(len(part) != count for part in names) or weight.shape[1] % len(names):
        raise _refuse(
            program,
            f"{key!r} has shape {list(weight.shape)}, the files of {model.config.model_type} hold {count} experts",
        )
    height = weight.shape[1] // len(names)
    for part in names:
        found |= {name: lazy.rows(lazy.select(weight, e), at, at + height) for e, name in enumerate(part)}
        at += height
    return found


def _owner(model: Any, key: str) -> Any:
    return model.get_submodule(key.rpartition(".")[0])


def check_tied(program: Program, config: Any) -> None:
    """Raise M206 where a config ties head and embedding, and the program has made two tensors of them."""
    ends = {u.kind: u.weight for u in weight_uses(program) if u.kind in ("embeddings", "lm_head")}
    if config.tie_word_embeddings and len({id(w) for w in ends.values()}) > 1:
        raise _refuse(
            program,
            "its head is tied to its embedding, but only one of them is quantized",
            "quantize with embeddings and lm_head alike",
        )


# ---------------------------------------------------------------------- the form
def in_packed_form(config: Any, stored: Mapping[str, Weight], where: str) -> tuple[Any, dict[str, Weight]]:
    """A config that says how its weights are packed, and the tensors of the files. Raises M206, see
    `quantization_config`."""
    tables = frozenset(name for name in stored if name.endswith(("embed_tokens.weight", "wte.weight")))
    config.quantization_config = quantization_config(stored, tables, where)
    return config, packed_tensors(stored, tables)


def packed_tensors(stored: Mapping[str, Weight], tables: frozenset[str]) -> dict[str, Weight]:
    """The tensors of the files, those that are packed as four: integers, scales, zero points where there are any, and
    the shape.

    Args:
        stored: by name in the files.
        tables: names of embeddings, which are stored as the numbers that they stand for: servers look rows up in plain
            tables.
    """
    found: dict[str, Weight] = {}
    for name, weight in stored.items():
        coded = weight.coded
        if coded is None or name in tables:
            found[name] = weight
            continue
        found[name + PACKED] = rowwise("words", as_words, coded.packed)
        found[name + SCALE] = coded.scale
        if coded.zero is not None:
            found[name + ZERO] = whole(f"words[{coded.bits}]", _row_words(coded.bits), coded.zero)
        found[name + SHAPE] = from_tensor(torch.tensor(weight.shape), f"shape{list(weight.shape)}")
    return found


def as_words(codes: Tensor) -> Tensor:
    """uint8 `[…, n]` as int32 `[…, n/4]`, filled up with zeros."""
    full = F.pad(codes, (0, -codes.shape[-1] % 4))
    return (
        full.new_empty((*full.shape[:-1], full.shape[-1] // 4), dtype=torch.int32)
        if full.device == META
        else full.contiguous().view(torch.int32)
    )


def _row_words(bits: int) -> Any:
    def pack_rows(numbers: Tensor) -> Tensor:
        """uint8 `[out, n]` packed along `out` as int32 `[out*bits/32, n]`, lowest bits first."""
        many = 32 // bits
        full = F.pad(numbers, (0, 0, 0, -numbers.shape[0] % many)).to(torch.int64).reshape(-1, many, numbers.shape[1])
        shifts = torch.arange(0, 32, bits, device=numbers.device)
        return (full << shifts[:, None]).sum(1).to(torch.int32)

    return pack_rows


def quantization_config(stored: Mapping[str, Weight], tables: frozenset[str], where: str) -> dict[str, Any]:
    """What config.json has to say of `packed_tensors`.

    Raises:
        MoecError: M206 when modules that servers compute as one are stored differently.
    """
    modules = {
        name.removesuffix(".weight"): _scheme(w)
        for name, w in stored.items()
        if name.endswith(".weight") and len(w.shape) == 2 and name not in tables
    }
    _check_fused(modules, where)
    kinds = Counter(s for name, s in modules.items() if s is not None and _EXPERT.match(name)) or Counter(
        s for s in modules.values() if s is not None
    )
    first = kinds.most_common(1)[0][0]
    groups = [(first, ["Linear"])]
    others = sorted({s for s in modules.values() if s not in (None, first)}, key=str)
    groups = [
        (s, _targets([name for name, own in modules.items() if own == s])) for s in others if s is not None
    ] + groups  # names before classes
    head = [name for name in modules if name.endswith("lm_head")]
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {
            f"group_{i}": _group(s, names + [h for h in head if modules[h] == s and h not in names])
            for i, (s, names) in enumerate(groups)
        },
        "ignore": _targets([name for name, scheme in modules.items() if scheme is None]),
    }


def _scheme(weight: Weight) -> Scheme | None:
    coded = weight.coded
    return None if coded is None else Scheme(coded.bits, weight.shape[-1] // coded.scale.shape[-1], coded.zero is None)


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights = {
        **asdict(scheme),
        "type": "int",
        "strategy": "group",
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
    }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }


def _targets(names: list[str]) -> list[str]:
    """Modules by name, the experts of a layer by one pattern: servers know them under other names."""
    found = [re.sub(_EXPERT, lambda m: f"re:{re.escape(m[1])}\\..*|", name).partition("|")[0] for name in names]
    return list(dict.fromkeys(found))


def _check_fused(modules: Mapping[str, Scheme | None], where: str) -> None:
    together: dict[tuple[str, int], set[Scheme | None]] = {}
    for name, scheme in modules.items():
        experts, (path, _, leaf) = _EXPERT.match(name), name.rpartition(".")
        keys = [(experts[1], 0)] if experts else [(path, i) for i, fused in enumerate(_FUSED) if leaf in fused]
        for key in keys:
            together.setdefault(key, set()).add(scheme)
    for (path, _), schemes in together.items():
        if len(schemes) > 1:
            said = " and ".join(
                sorted(
                    "unquantized" if s is None else f"{s.num_bits} bits in groups of {s.group_size}" for s in schemes
                )
            )
            what = f"parts of {path} that servers compute as one are stored differently: {said}"
            raise MoecError("M206", f"cannot save the program as a quantized checkpoint: {what}", where, _FIX)
