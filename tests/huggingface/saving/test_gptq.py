"""A quantized program goes into GPTQ's form and comes back with its own codes; a wrong file is told from a right one;
GPTQModel reads the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moec import load, open_source
from moec.errors import MoecError
from moec.huggingface.saving.gptq import require_kept, require_words
from moec.huggingface.saving.half_precision import Rounding
from moec.huggingface.source import HuggingFaceSource
from moec.program.program import Program
from moec.weights.lazy import from_tensor
from moec.weights.weight import PackedWeight
from tests.command_line import Cli
from tests.huggingface import packed
from tests.huggingface.conftest import Saved

SavedProgram = tuple[HuggingFaceSource, Program, Path]
EXACT = 2e-5  # of the logits' standard deviation
TOLERANCE = 3e-3  # the same of a dense model, where scales got 16 bits; a mixture may send a token to other experts
CASES = [
    ("mixtral", "quantize(bits=4, group=16)"),
    ("qwen3_moe", "quantize(bits=2, group=16, experts=16, lm_head=16)"),
    ("mixtral", "quantize(bits=8, group=16, symmetric=False, rules={'*attn*': {'bits': 4, 'symmetric': True}})"),
    ("llama", "quantize(bits=4, group=16, rules={'*.0.self_attn.o_proj': 16, '*.1.mlp.*': 8}, lm_head=16)"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def made(request: pytest.FixtureRequest, saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> SavedProgram:
    """A source, its quantized program, and the folder that it was saved in; each made once."""
    name, text = request.param
    folder = tmp_path_factory.mktemp("gptq") / "out"
    return (*packed.write(saved(name), text, folder, "gptq"), folder)


def in_half(program: Program) -> Program:
    """A copy whose scales have 16 bits, as the form has them."""
    copy = program.clone()
    for name in [n for n in copy.weights if n.endswith("_scale")]:
        copy.weights[name] = from_tensor(copy.weights[name].load().half().float(), name)
    return copy


def deviation(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.std())


def test_round_trip(made: SavedProgram, tmp_path: Path) -> None:
    source, program, folder = made
    back = open_source(str(folder))
    again = back.capture()
    half = in_half(program)
    assert packed.same_bytes(half, again) == set()
    wanted = packed.logits_of(half.run, source)
    assert deviation(packed.logits_of(again.run, back), wanted) < EXACT
    assert deviation(packed.logits_of(back.reference(), back), wanted) < EXACT
    assert deviation(packed.logits_of(source.reference(), source), wanted) > 100 * EXACT  # it was quantized
    packed.save_hf(again, tmp_path / "again", back, hf_format="gptq")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.slow
def test_a_compile_writes_what_its_engine_computes(saved: Saved, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "how.toml").write_text('hf_format = "gptq"\nmax_kl = 9.0\ntolerance = 9.0\n')
    passes, out, engine = "quantize(bits=4, group=16, lm_head=16)", tmp_path / "out", tmp_path / "engine"
    given = ("--config", tmp_path / "how.toml", "--pass", passes, "--save-hf", out, "--no-cache")
    cli("compile", saved("llama"), *given, "-o", engine)
    assert "scales are rounded to 16 bits, by which a number moves at most" in cli.err
    assert packed.config_of(out)["quant_method"] == "gptq"
    back = open_source(str(out), cache=False)
    run = load(engine)
    assert deviation(packed.logits_of(back.reference(), back), packed.logits_of(run, back)) < TOLERANCE
    untouched = open_source(str(saved("llama")), cache=False)
    assert deviation(packed.logits_of(untouched.reference(), back), packed.logits_of(run, back)) > 10 * TOLERANCE


def test_an_unknown_form_is_refused(saved: Saved, tmp_path: Path, cli: Cli) -> None:
    given = ("--save-hf", tmp_path / "out", "--hf-format", "awq", "-o", tmp_path / "engine")
    assert cli.json("compile", saved("llama"), *given, status=2)["error"]["code"] == "M201"
    with pytest.raises(MoecError, match="no form 'awq'") as caught:
        packed.write(saved("llama"), "quantize(bits=4, group=16)", tmp_path / "out", "awq")
    assert caught.value.code == "M201" and "gptq" in caught.value.fix


def swapped(words: Tensor) -> Tensor:
    """The numbers of 4 bits in the other order within each byte."""
    return (words & 0x0F0F0F0F) << 4 | (words >> 4 & 0x0F0F0F0F)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "qzeros": lambda words: words + 1,
    "qweight": swapped,
    "scales": lambda scales: scales.flatten().reshape(scales.shape[::-1]).t().contiguous(),
}


def test_a_wrong_file_is_seen(saved: Saved, tmp_path: Path) -> None:
    text, place = "quantize(bits=4, group=16, symmetric=False)", tmp_path / "out"
    source, program = packed.write(saved("llama"), text, place, "gptq")
    stored, wanted = packed.tensors(place), packed.logits_of(program.run, source)
    for part, wrong in {"": lambda t: t, **WRONG}.items():
        changed = {n: wrong(t) if "down_proj" in n and n.endswith(part) else t for n, t in stored.items()}
        assert sum(not torch.equal(t, stored[n]) for n, t in changed.items()) == (2 if part else 0)
        save_file(changed, place / "model.safetensors", {"format": "pt"})
        back = open_source(str(place))
        assert (deviation(packed.logits_of(back.reference(), back), wanted) > 2 * TOLERANCE) is bool(part), part


def test_scales_in_16_bits_are_the_programs_own_bit_for_bit(saved: Saved, tmp_path: Path) -> None:
    text = "quantize(bits=4, group=16)"
    _, program = packed.write(saved("mixtral"), text, tmp_path / "out", "gptq", torch.float16)
    assert packed.same_bytes(program, open_source(str(tmp_path / "out")).capture(torch.float16)) == set()


@pytest.mark.serving
def test_gptqmodel_reads_the_same(made: SavedProgram) -> None:
    """Each packed matrix in GPTQModel's own layer, whose kernel is PyTorch's."""
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    _, _, folder = made
    config = QuantizeConfig.from_quant_config(packed.config_of(folder))
    ours = open_source(str(folder)).origin.checkpoint.weights  # type: ignore[attr-defined]
    stored = packed.tensors(folder)
    names = [n.removesuffix(".qweight") for n in stored if n.endswith(".qweight")]
    assert {f"{name}.weight" for name in names} == {n for n, w in ours.items() if w.coded is not None}
    for name in names:
        bits, group, sym = (config.dynamic_get(name, k, getattr(config, k)) for k in ("bits", "group_size", "sym"))
        out, width = ours[f"{name}.weight"].shape
        layer = TorchLinear(bits, group, sym, False, width, out, format=config.format)
        layer.load_state_dict({n: stored[f"{name}.{n}"] for n in ("qweight", "qzeros", "scales", "g_idx")})
        if config.format == "gptq":
            convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
        assert torch.equal(layer.eval().dequantize_weight().t(), ours[f"{name}.weight"].load()), name
    plain = [n.removesuffix(".weight") for n, t in stored.items() if n.endswith(".weight") and t.dim() == 2]
    assert {n for n in plain if config.dynamic_get(n) is not False} <= {"model.embed_tokens", "lm_head"}


REFUSED = [
    ("mixtral", "quantize(bits=4, group=16, rules={'*.q_proj': 8})", "computed as one", "self_attn"),
    ("llama", "quantize(format=fp8, bits=8)", "small floats", "fp8"),
    ("llama", "upcycle(experts=2, top_k=1)", "no matrix of it is quantized", "GPTQ"),
]


@pytest.mark.parametrize(("name", "text", "words", "where"), REFUSED)
def test_what_the_form_cannot_hold_is_refused(
    name: str, text: str, words: str, where: str, saved: Saved, tmp_path: Path
) -> None:
    with pytest.raises(MoecError) as caught:
        packed.write(saved(name), text, tmp_path / "out", "gptq")
    found = caught.value
    assert found.code == "M206" and words.replace("computed", "compute") in found.what and where in found.what
    assert found.fix and [*tmp_path.iterdir()] == []


def matrix(shape: tuple[int, ...], bits: int, groups: int) -> PackedWeight:
    *rows, width = shape
    codes = from_tensor(torch.zeros(*rows, width * bits // 8, dtype=torch.uint8), "codes")
    return PackedWeight(codes, from_tensor(torch.ones(*rows, groups), "scale"), None, bits)


@pytest.mark.parametrize(
    ("name", "shape", "bits", "groups", "words", "fix"),
    [
        ("lm_head.weight", (101, 64), 8, 2, "a side of 101", "lm_head=16"),
        ("a.0.mlp.up_proj.weight", (32, 60), 4, 2, "a side of 60", "rules={'*.mlp.*': 16}"),
        ("a.0.mlp.down_proj.weight", (32, 64), 4, 3, "3 groups", "rules={'*.down_proj': 16}"),
        ("a.0.mlp.experts.3.up_proj.weight", (20, 64), 2, 2, "a side of 20", "rules={'*.experts.*': 16}"),
        ("a.0.mlp.experts.up_proj", (2, 32, 64), 4, 2, "no matrix", "16"),
    ],
)
def test_what_fills_no_words_is_refused(
    name: str, shape: tuple[int, ...], bits: int, groups: int, words: str, fix: str
) -> None:
    with pytest.raises(MoecError, match=words) as caught:
        require_words(name, matrix(shape, bits, groups), "model")
    assert caught.value.code == "M206" and fix in caught.value.fix
    require_words("a.b.weight", matrix((32, 64), bits, 2), "model")


def test_scales_that_16_bits_do_not_hold_are_refused(saved: Saved, tmp_path: Path) -> None:
    source, name = open_source(str(saved("llama"))), "model.layers.1.mlp.down_proj.weight"
    captured = source.capture()
    for factor, words in ((1e7, "larger than 16 bits hold"), (1e-9, "more than half a step")):
        program = captured.clone()
        program.weights[name] = from_tensor(program.weights[name].load() * factor, name)
        for text, fails in (("", True), (", rules={'*.down_proj': 16}", False)):  # the way out that it names
            quantized = packed.Pipeline.parse(f"quantize(bits=4, group=16{text})").run(program.clone())[0]
            out = tmp_path / f"{factor}{fails}"
            if not fails:
                packed.save_hf(quantized, out, source, hf_format="gptq")
                continue
            with pytest.raises(MoecError, match=words) as caught:
                packed.save_hf(quantized, out, source, hf_format="gptq")
            assert caught.value.code == "M203" and "rules={'*.down_proj': 16}" in caught.value.fix and not out.exists()
    require_kept(Rounding())
