"""A model that nobody has, from sizes written by hand: counted as a usual decoder, and said to be no more than that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from moec.errors import MoecError
from moec.planning.shape import Mixture, Part, Shape, State, Tensor

TOP_K = (  # what transformers' configs and modules call the experts that a token uses
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "experts_per_token", "num_selected_experts",
    "moe_top_k", "top_k_experts", "num_active_experts", "topk", "top_k",  # the last one is also a sampler's setting
)  # fmt: skip
_OTHER = re.compile(  # entries that name parts which are in no usual decoder
    r"\w*(linear_attn|latent_moe|ssm|mamba|conv_|compress|hybrid|altup|laurel|lru)\w*|layers?_types?|layers_block_type"
    r"|block_configs|sparse_attention\w*|\w*expert_hidden_size|dense_intermediate_size|\w*_per_layer\w*|attn_res_\w+"
    r"|encoder_\w*layers|index_head_dim|attention_output_gate"
)
NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("d_model", "n_embd"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "vocab_size": (),
    "intermediate_size": ("ffn_dim", "n_inner", "ffn_hidden_size", "d_ff"),
    "num_key_value_heads": ("n_kv_heads", "num_kv_heads"),
    "head_dim": (),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": ("expert_intermediate_size",),
    "n_shared_experts": ("num_shared_experts",),
    "shared_expert_intermediate_size": ("shared_intermediate_size",),
    "first_k_dense_replace": (),
    "q_lora_rank": (), "kv_lora_rank": (), "qk_nope_head_dim": (), "qk_rope_head_dim": (), "v_head_dim": (),
    "sliding_window": (),
    "max_position_embeddings": ("n_positions", "max_seq_len"),
    "num_nextn_predict_layers": (),
}  # fmt: skip
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MAY_DIFFER = ("max_position_embeddings", "max_seq_len", "n_positions", "topk", "top_k")  # positions, a sampler's
_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def written_shape(raw: Mapping[str, Any], where: str, reason: str = "") -> Shape:
    """The shape of a decoder of these sizes: grouped-query attention, or multi-head latent attention where
    `kv_lora_rank` is there; feed-forward networks with a gate (`"gated": false` for those without); two norms a layer;
    biases of queries, keys and values with `"attention_bias": true`. Attention or layers of another kind are refused.

    Args:
        raw: sizes, called as in transformers' configs; `moec_name` and `moec_source` say what it is and where the
            sizes come from (`rumour`, a paper's name).
        where: the file, for errors.
        reason: why it is not counted as transformers builds it; empty for a config that names no architecture.

    Raises:
        MoecError: M204 for sizes that are missing, are no counts, are misspelt, contradict each other, or do not fit
            together.
    """
    other = [key for key, value in raw.items() if value and _OTHER.fullmatch(key)]
    if other:
        what = f"{', '.join(other[:4])}: parts of the model that the formula of a usual decoder does not know"
        raise MoecError("M204", what, where, "write a config.json without them: it counts a usual decoder")
    _check_names(raw, where)
    return _Decoder(_read(raw, where), raw, where).shape(reason)


def _check_names(raw: Mapping[str, Any], where: str) -> None:
    """Raises M204 for a name with a letter too few or too many, which would be passed over, and for two names of one
    size that differ."""
    known = [name for main, others in NAMES.items() for name in (main, *others)]
    for key, value in raw.items():
        near = "" if key in known or value is None else next((name for name in known if _like(key, name)), "")
        if near:
            raise MoecError("M204", f"{key} is no name of a size", where, f"did you mean {near}?")
    for main, others in NAMES.items():
        said = {name: raw[name] for name in (main, *others) if raw.get(name) and name not in _MAY_DIFFER}
        if len(set(map(str, said.values()))) > 1:
            what = " but ".join(f"{name} = {value}" for name, value in said.items())
            raise MoecError("M204", what, where, f"say it once, as {next(iter(said))}")


def _like(word: str, other: str) -> bool:
    """Whether two names differ in one part, and there in about a letter: other parts are other things
    (`swa_num_attention_heads`)."""
    if word.replace("_", "") == other.replace("_", ""):
        return True
    parts, others = word.split("_"), other.split("_")
    unlike = [(a, b) for a, b in zip(parts, others, strict=False) if a != b]
    if len(parts) != len(others) or len(unlike) != 1 or min(map(len, unlike[0])) < 4:
        return False
    return SequenceMatcher(None, *unlike[0]).ratio() >= 0.8


def _read(raw: Mapping[str, Any], where: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, others in NAMES.items():
        key = next((key for key in (name, *others) if raw.get(key) is not None), None)
        if key is None:
            continue
        value = raw[key]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            what = f"{key} = {str(raw[key])[:40]} is no count"
            raise MoecError("M204", what, where, f"write {key} as a whole number")
        found[name] = value
    lacking = [name for name in _NEEDED if not found.get(name)]
    experts = found.get("num_experts", 0)
    if not found.get("intermediate_size") and not (experts and found.get("moe_intermediate_size")):
        lacking.append("moe_intermediate_size" if experts else "intermediate_size")
    if experts and not found.get("num_experts_per_tok"):
        lacking.append("num_experts_per_tok")
    if found.get("kv_lora_rank"):
        lacking += [name for name in _LATENT if not found.get(name)]
    if lacking:
        what = f"the config does not say {', '.join(lacking)}, so there is nothing to count"
        raise MoecError("M204", what, where, f"add {', '.join(lacking)}, or a model_type that transformers knows")
    return found


@dataclass(frozen=True)
class _Decoder:
    sizes: Mapping[str, int]
    raw: Mapping[str, Any]
    where: str

    def __post_init__(self) -> None:
        heads, kv = self.sizes["num_attention_heads"], self._kv
        if not self.sizes.get("head_dim") and not self._latent and self.sizes["hidden_size"] % heads:
            self._refuse(f"{heads} heads do not divide a hidden_size of {self.sizes['hidden_size']}", "say head_dim")
        if heads % kv:
            what = f"{kv} heads of keys do not divide {heads} heads of queries"
            self._refuse(what, "correct num_key_value_heads")
        experts, top_k = self.sizes.get("num_experts", 0), self.sizes.get("num_experts_per_tok", 0)
        if experts and top_k > experts:
            self._refuse(f"a token uses {top_k} of {experts} experts", "correct num_experts_per_tok")
        if self.sizes.get("first_k_dense_replace", 0) > self.sizes["num_hidden_layers"]:
            self._refuse("more layers are dense than there are", "correct first_k_dense_replace")

    def _refuse(self, what: str, fix: str) -> None:
        raise MoecError("M204", what, self.where, fix)

    @property
    def _kv(self) -> int:
        return self.sizes.get("num_key_value_heads") or self.sizes["num_attention_heads"]

    @property
    def _latent(self) -> bool:
        return bool(self.sizes.get("kv_lora_rank"))

    @property
    def _head(self) -> int:
        return self.sizes.get("head_dim") or self.sizes["hidden_size"] // self.sizes["num_attention_heads"]

    @property
    def _matrices(self) -> tuple[str, ...]:
        return ("gate_proj", "up_proj") if self.raw.get("gated", True) else ("up_proj",)

    def shape(self, reason: str) -> Shape:
        """See `written_shape`."""
        s = self.sizes
        layers = range(s["num_hidden_layers"])
        tensors = [Tensor("model.embed_tokens.weight", (s["vocab_size"], s["hidden_size"]), "input embedding")]
        for number in layers:
            tensors += self._layer(number)
        tensors.append(Tensor("model.norm.weight", (s["hidden_size"],), "norm"))
        if self.raw.get("tie_word_embeddings"):
            tensors[0] = Tensor(tensors[0].name, tensors[0].shape, "output head")
        else:
            tensors.append(Tensor("lm_head.weight", (s["vocab_size"], s["hidden_size"]), "output head"))
        mixtures = [m for number in layers for m in self._mixture(number)]
        name = str(self.raw.get("moec_name") or next(iter(self.raw.get("architectures") or ()), "a decoder"))
        states = (self._state(),) * len(layers)
        longest = s.get("max_position_embeddings", 0)
        return Shape(
            name, tuple(tensors), tuple(mixtures), states, s["hidden_size"], len(layers), s["vocab_size"],
            s["num_attention_heads"], s.get("v_head_dim") or self._head, longest, self._predicting(tensors),
            notes=(self._note(name, reason),),
        )  # fmt: skip

    def _predicting(self, tensors: Sequence[Tensor]) -> int:
        """Parameters of layers for multi-token prediction, each like the last one; see `moec.huggingface.shape`."""
        last, hidden = f"model.layers.{self.sizes['num_hidden_layers'] - 1}.", self.sizes["hidden_size"]
        layer = sum(t.count for t in tensors if t.name.startswith(last))
        return self.sizes.get("num_nextn_predict_layers", 0) * (layer + 2 * hidden**2 + 3 * hidden)

    def _note(self, name: str, reason: str) -> str:
        source = str(self.raw.get("moec_source") or "")
        said = f" ({source})" if source else ""
        why = reason or f"{name}: sizes written by hand{said}, not a checkpoint"
        return f"{why}; counted by the formula of a usual decoder"

    def _state(self) -> State:
        s = self.sizes
        if self._latent:
            return State("compressed keys and values", s["kv_lora_rank"] + s["qk_rope_head_dim"])
        window = s.get("sliding_window", 0) if self.raw.get("use_sliding_window", True) else 0
        return State("keys and values", 2 * self._kv * self._head, window=window)

    # ------------------------------------------------------------------ a layer
    def _layer(self, number: int) -> Iterator[Tensor]:
        hidden, path = self.sizes["hidden_size"], f"model.layers.{number}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield Tensor(f"{path}.{name}.weight", (hidden,), "norm")
        for name, shape in self._attention():
            part: Part = "norm" if len(shape) == 1 else "attention"
            yield Tensor(f"{path}.self_attn.{name}.weight", shape, part)
            if self.raw.get("attention_bias") and name in ("q_proj", "k_proj", "v_proj"):
                yield Tensor(f"{path}.self_attn.{name}.bias", shape[:1], part)
        if not self._mixture(number):
            yield from self._ffn(f"{path}.mlp", self.sizes["intermediate_size"], "dense FFN")
            return
        experts = self.sizes["num_experts"]
        yield Tensor(f"{path}.mlp.gate.weight", (experts, hidden), "router")
        rows = len(self._matrices) * self._width
        yield Tensor(f"{path}.mlp.experts.gate_up_proj", (experts, rows, hidden), "routed experts")
        yield Tensor(f"{path}.mlp.experts.down_proj", (experts, hidden, self._width), "routed experts")
        shared = self.sizes.get("shared_expert_intermediate_size") or 0
        shared = shared or self.sizes.get("n_shared_experts", 0) * self._width
        if shared:
            yield from self._ffn(f"{path}.mlp.shared_experts", shared, "shared experts")

    def _attention(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        s, hidden, heads = self.sizes, self.sizes["hidden_size"], self.sizes["num_attention_heads"]
        if not self._latent:
            yield "q_proj", (heads * self._head, hidden)
            yield "k_proj", (self._kv * self._head, hidden)
            yield "v_proj", (self._kv * self._head, hidden)
            yield "o_proj", (hidden, heads * self._head)
            return
        nope, rope, value = (s[name] for name in _LATENT)
        rank, queries = s.get("q_lora_rank", 0), heads * (nope + rope)
        if rank:
            yield "q_a_proj", (rank, hidden)
            yield "q_a_layernorm", (rank,)
        yield "q_b_proj" if rank else "q_proj", (queries, rank or hidden)
        yield "kv_a_proj_with_mqa", (s["kv_lora_rank"] + rope, hidden)
        yield "kv_a_layernorm", (s["kv_lora_rank"],)
        yield "kv_b_proj", (heads * (nope + value), s["kv_lora_rank"])
        yield "o_proj", (hidden, heads * value)

    def _ffn(self, path: str, width: int, part: Part) -> Iterator[Tensor]:
        hidden = self.sizes["hidden_size"]
        for name in self._matrices:
            yield Tensor(f"{path}.{name}.weight", (width, hidden), part)
        yield Tensor(f"{path}.down_proj.weight", (hidden, width), part)

    @property
    def _width(self) -> int:
        return self.sizes.get("moe_intermediate_size") or self.sizes["intermediate_size"]

    def _mixture(self, number: int) -> tuple[Mixture, ...]:
        experts = self.sizes.get("num_experts", 0)
        if not experts or number < self.sizes.get("first_k_dense_replace", 0):
            return ()
        hidden, rows = self.sizes["hidden_size"], len(self._matrices) + 1
        parameters = experts * rows * self._width * hidden
        top_k = self.sizes["num_experts_per_tok"]
        return (Mixture(f"model.layers.{number}.mlp.experts", experts, top_k, parameters, hidden, self._width),)
