"""The code in CONTRIBUTING.md, run as it stands there: each block is put where it says, and used for real."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import moec
from moec import registry
from moec.errors import MoecError
from moec.proof.subject import Subject
from moec.proof.verification import prove
from moec.report.junit import junit
from moec.report.page import html
from moec.weights.lazy import from_tensor
from tests.moe_module import MoeModel, source_of
from tests.third_party import install
from tests.zoo import VOCAB, edit_config, save

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = {
    re.match(r"# (\S+)\n", block)[1]: block  # type: ignore[index]  # a block that names no file must fail here
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
}
PACKAGES = {
    "passes": "moec.passes",
    "backends": "moec.backends",
    "moec/huggingface/formats": "moec.huggingface.formats",
}
Place = Callable[[str], None]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """`place(path)`: the block of this file in the tree, for one test: its folder is part of the package's path."""
    before = set(sys.modules)

    def put(path: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(BLOCKS[path])
        package = importlib.import_module(PACKAGES[str(Path(path).parent)])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
        importlib.invalidate_caches()

    yield put
    for path in BLOCKS:
        name = path.removesuffix(".py").replace("/", ".")
        for module in {name, f"moec.{name}"} - before:
            sys.modules.pop(module, None)


# ---------------------------------------------------------------------- a pass
class Copies(nn.Module):
    """A model with three copies that nobody needs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(self.layer(x.clone()).clone()) + x).clone()


def captured() -> moec.Program:
    return moec.capture(Copies(), {"x": torch.randn(3, 8)}, {"x": ("batch", None)})


def test_the_pass_is_found_by_its_name_planned_and_run(place: Place) -> None:
    place("passes/drop_clone.py")
    assert "drop-clone" in registry.names("passes")
    pipeline, program = moec.Pipeline.parse("drop-clone(limit=2)"), captured()
    assert moec.Pipeline.of([{"name": "drop-clone", "limit": 2}]) == pipeline
    (plan,) = pipeline.plan(program)
    done, (step,) = pipeline.run(program)
    assert plan.least == plan.most == step.rewrites == 2 and plan.program.text() == done.text()
    assert [m["reason"] for m in step.misses] == ["limit=2 is reached"] == [m.reason for m in plan.misses]
    x = torch.randn(5, 8)
    assert torch.equal(done.run(x=x)["output"], program.run(x=x)["output"])
    assert not moec.Pipeline.parse("drop-clone").run(program)[0].nodes(torch.ops.aten.clone.default)


def test_the_pass_is_part_of_a_compile(place: Place, tmp_path: Path) -> None:
    place("passes/drop_clone.py")
    sample = {"x": torch.randn(3, 8)}
    report = moec.compile(Copies(), inputs=sample, pipeline="drop-clone", out=tmp_path / "engine")
    assert report.ok and (report.steps[0]["name"], report.steps[0]["rewrites"]) == ("drop-clone", 3)
    with pytest.raises(MoecError, match="drop-clone changed nothing"):
        moec.compile(nn.Linear(8, 2), inputs={"input": sample["x"]}, pipeline="drop-clone", out=tmp_path / "none")


# ---------------------------------------------------------------------- a backend
def test_the_backend_compiles_proves_and_loads(place: Place, tmp_path: Path) -> None:
    place("backends/pytorch.py")
    source = source_of(MoeModel().eval())
    report = moec.compile(source, target="pytorch", out=tmp_path / "engine")
    assert report.ok and [b["kernel"] for b in report.facts["blocks"]] == ["moec.moe.default"] * 2
    engine = moec.load(tmp_path / "engine")
    ids = source.sample({"batch": 2, "sequence": 7}, seed=5)
    assert torch.allclose(engine(**ids)["logits"], source.reference()(**ids)["logits"], atol=1e-5)
    moec.compile(source, target="onnxruntime", out=tmp_path / "other")
    kinds = {name: registry.find("backends", name)() for name in ("pytorch", "onnxruntime")}
    assert kinds["pytorch"].outputs(tmp_path / "engine") == kinds["onnxruntime"].outputs(tmp_path / "other")


def test_the_backend_takes_a_decoder_with_its_cache(place: Place, mixtral: Path, tmp_path: Path) -> None:
    place("backends/pytorch.py")
    report = moec.compile(mixtral, target="pytorch", out=tmp_path / "engine")
    assert report.ok and report.layout == "plain"
    assert moec.verify(tmp_path / "engine").ok


def test_the_backend_refuses_what_it_does_not_know(place: Place, tmp_path: Path) -> None:
    place("backends/pytorch.py")
    for target in ("pytorch:cuda", "pytorch:precision=fp16"):
        with pytest.raises(MoecError, match="pytorch knows no") as caught:
            moec.compile(source_of(MoeModel()), target=target, out=tmp_path / "engine")
        assert caught.value.code == "M208"


def test_a_wrong_engine_of_the_backend_is_not_published(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place("backends/pytorch.py")
    kind = registry.find("backends", "pytorch")
    load = kind.load

    def spoiled(self: moec.Backend, folder: Path, target: moec.Target, prepack: bool = True) -> moec.Engine:
        engine = load(self, folder, target, prepack)
        run = engine.run
        engine.run = lambda inputs: {k: v * 1.01 for k, v in run(inputs).items()}
        return engine

    monkeypatch.setattr(kind, "load", spoiled)
    with pytest.raises(MoecError) as caught:
        moec.compile(source_of(MoeModel()), target="pytorch", out=tmp_path / "engine")
    assert caught.value.code == "M101" and not (tmp_path / "engine").exists()


# ---------------------------------------------------------------------- a checkpoint format
def in_rows8(folder: Path, to: Path) -> dict[str, Tensor]:
    """Write a folder's linear layers in the form of the example; returns all weights as they are then."""
    stored, written, values = load_file(folder / "model.safetensors"), {}, {}
    for name, value in stored.items():
        values[name] = written[name] = value
        if value.dim() == 2 and ("_proj" in name or ".experts." in name):
            scale = value.abs().amax(1, keepdim=True) / 127
            codes = (value / scale).round()
            del written[name]
            written |= {f"{name}_q": codes.to(torch.int8), f"{name}_scale": scale}
            values[name] = codes * scale
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    edit_config(to, quantization_config={"quant_method": "rows8"})
    save_file(written, to / "model.safetensors", {"format": "pt"})
    return values


def transformers_logits(folder: Path, state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """What transformers computes with these weights."""
    import transformers

    plain = folder.parent / "plain"
    plain.mkdir(exist_ok=True)
    (plain / "config.json").write_text((folder / "config.json").read_text())
    save_file(state, plain / "model.safetensors", {"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: Tensor = model(ids).logits
    return logits


def test_the_checkpoint_format_is_read_and_stays_packed(place: Place, tmp_path: Path) -> None:
    plain, folder = Path(save("mixtral", tmp_path / "mixtral", intermediate_size=64)), tmp_path / "packed"
    values = in_rows8(plain, folder)
    with pytest.raises(MoecError, match="rows8") as caught:
        moec.open_source(folder)
    assert caught.value.code == "M206"
    place("moec/huggingface/formats/rows8.py")
    program = moec.open_source(folder, cache=False).capture()
    assert len(program.nodes(torch.ops.moec.dequantize.default)) == 2 * (4 + 2)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, VOCAB, (2, 9)))
    got = program.run(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
    want = transformers_logits(plain, values, ids)
    assert (got - want).abs().max() / want.std() < 1e-4
    wrong = transformers_logits(plain, load_file(plain / "model.safetensors"), ids)  # the numbers before rounding
    assert (got - wrong).abs().max() / want.std() > 1e-3
    assert moec.compile(folder, out=tmp_path / "engine").ok


def test_the_checkpoint_format_says_what_is_wrong(place: Place, tmp_path: Path) -> None:
    place("moec/huggingface/formats/rows8.py")
    folder = tmp_path / "packed"
    in_rows8(Path(save("mixtral", tmp_path / "mixtral")), folder)
    stored = load_file(folder / "model.safetensors")
    lost = next(name for name in stored if name.endswith("_scale"))
    save_file({n: t for n, t in stored.items() if n != lost}, folder / "model.safetensors")
    with pytest.raises(MoecError, match="has no scale") as caught:
        moec.open_source(folder)
    assert caught.value.code == "M205"
    edit_config(folder, quantization_config={"quant_method": "rows8", "bits": 4})
    with pytest.raises(MoecError, match="4 bits") as caught:
        moec.open_source(folder)
    assert caught.value.code == "M206"


# ---------------------------------------------------------------------- a source
def entry_of(group: str) -> str:
    """The entry point that the text shows for a group."""
    (entry,) = re.findall(rf'^```toml\n\[project.entry-points."moec.{group}"\]\n(.*?)\n```$', TEXT, flags=re.MULTILINE)
    return str(entry).replace('"', "")


def test_the_source_is_opened_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "their_package.py"
    program = captured()
    moec.save_program(program, tmp_path / "program")
    with pytest.raises(MoecError):
        moec.open_source(tmp_path / "program")
    name = package.removesuffix(".py")
    install(tmp_path, monkeypatch, BLOCKS[package], name, sources=entry_of("sources"))
    source = moec.open_source(tmp_path / "program")
    assert type(source).__name__ == "StoredProgram" and source.inputs == program.inputs
    report = moec.compile(tmp_path / "program", out=tmp_path / "engine")
    assert report.ok and set(report.source_hashes) == {p.name for p in (tmp_path / "program").iterdir()}
    x = torch.randn(5, 8)
    assert torch.allclose(moec.load(tmp_path / "engine")(x=x)["output"], Copies.forward(Copies(), x), atol=1e-5)


# ---------------------------------------------------------------------- a metric
def test_the_metric_is_part_of_every_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, BLOCKS["their_metric.py"], "their_metric", checks=entry_of("checks"))
    source = source_of(MoeModel().eval())
    report = moec.compile(source, out=tmp_path / "engine")
    check = next(c for c in report.proof.checks if c.name == "likeliest")
    assert check.ok and "The likeliest element" in html(report) and "likeliest" in junit("engine", report.proof)
    assert moec.Report.read(tmp_path / "engine" / "moec.json").proof.find(type(check)) is not None
    program = source.capture()
    wrong = program.clone()
    wrong.weights["head.weight"] = from_tensor(program.weights["head.weight"].load().flip(0), "flipped")
    proof = prove(Subject(source, program, program), moec.EagerEngine(wrong), [type(check)])
    assert not proof.ok and [c.name for c in proof.checks] == ["likeliest"]


def test_every_block_is_run() -> None:
    used = set(re.findall(r'^    place\("(.+?)"\)', Path(__file__).read_text(), flags=re.MULTILINE))
    assert used | {"their_package.py", "their_metric.py"} == set(BLOCKS)
