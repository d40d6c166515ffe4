"""Each tensor of the files is used, or has a reason; what has none is refused, with a way out that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import moec
from moec import open_source
from moec.errors import MoecError
from moec.frontend.account import Account
from moec.huggingface.account import covering
from moec.progress import Progress
from tests import zoo
from tests.huggingface.conftest import Saved


def edit(folder: Path, drop: str = "", **more: Tensor) -> str:
    """Change the tensors of a folder."""
    file = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if name != drop}
    save_file({**kept, **{name.replace("__", "."): value for name, value in more.items()}}, file, {"format": "pt"})
    return str(folder)


def account(folder: str, **opening: Any) -> Account:
    return open_source(folder, **opening).account()


def refused(folder: str, code: str, **opening: Any) -> MoecError:
    with pytest.raises(MoecError) as caught:
        account(folder, **opening)
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize("name", [*zoo.moe_configs(), *zoo.dense_configs()])
def test_every_tensor_of_the_zoo_is_used(name: str, saved: Saved) -> None:
    found = account(str(saved(name)))
    assert found.used == found.tensors > 10 and not any(x.thing == "tensor" for x in found.left_out)
    assert found.model in found.declared


def test_a_tensor_that_nothing_uses_is_refused_and_the_way_out_works(copied: Saved) -> None:
    folder = edit(copied("bert"), cls__predictions__bias=torch.ones(4), cls__predictions__decoder__weight=torch.ones(4))
    error = refused(folder, "M215")
    assert "cls.predictions.bias" in error.what and "model.safetensors" in error.where
    pattern = re.search(r"--leave-out '([^']*)'", error.fix)
    assert pattern and pattern[1] == "cls.predictions.*"
    left = account(folder, leave_out=[pattern[1]]).left_out
    assert [x.name for x in left if x.asked] == ["cls.predictions.bias", "cls.predictions.decoder.weight"]


def test_leaving_out_what_is_used_is_refused(saved: Saved) -> None:
    assert "encoder" in refused(str(saved("bert")), "M201", leave_out=["encoder.*"]).what


def test_a_head_in_the_files_of_a_bare_model_is_refused(copied: Saved) -> None:
    folder = copied("llama")
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=3, tie_word_embeddings=False)
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    zoo.edit_config(folder, architectures=None)
    assert "score.weight" in refused(str(folder), "M215").what
    zoo.edit_config(folder, architectures=["LlamaForSequenceClassification"])  # the way out
    assert account(str(folder)).model == "LlamaForSequenceClassification"


def test_a_missing_tensor_would_be_random_and_is_refused(copied: Saved) -> None:
    error = refused(edit(copied("bert"), drop="pooler.dense.bias"), "M205")
    assert "pooler.dense.bias" in error.what and "architectures" in error.fix


def test_the_reference_asks_transformers_itself_what_is_missing(copied: Saved) -> None:
    source = open_source(edit(copied("bert"), drop="pooler.dense.bias"))
    with pytest.raises(MoecError, match=r"pooler\.dense\.bias"):
        source.reference()


def test_tied_weights_may_be_stored_once(saved: Saved, copied: Saved) -> None:
    assert account(str(saved("llama"))).used == account(str(saved("llama"))).tensors
    table = load_file(saved("llama") / "model.safetensors")["model.embed_tokens.weight"]
    assert account(edit(copied("llama"), lm_head__weight=table.clone())).tensors > account(str(saved("llama"))).tensors


def test_what_the_model_computes_is_explained_where_the_values_agree(copied: Saved) -> None:
    own = zoo.build("llama").model.rotary_emb.inv_freq  # type: ignore[union-attr]
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    found = account(edit(copied("llama"), **{name: own.clone()}))
    assert [x.why for x in found.left_out if x.thing == "tensor"] == ["the model computes it, with the same values"]


def test_a_table_of_other_values_is_not(copied: Saved) -> None:
    own = zoo.build("llama").model.rotary_emb.inv_freq  # type: ignore[union-attr]
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    assert "inv_freq" in refused(edit(copied("llama"), **{name: own * 1.1}), "M215").what


def test_layers_that_predict_further_tokens_are_explained(copied: Saved) -> None:
    folder = edit(copied("glm4_moe"), model__layers__2__eh_proj__weight=torch.ones(3))
    zoo.edit_config(folder, num_nextn_predict_layers=0)
    assert "eh_proj" in refused(folder, "M215").what
    zoo.edit_config(folder, num_nextn_predict_layers=1)
    assert "further tokens" in next(x.why for x in account(folder).left_out if x.thing == "tensor")


def test_pooling_of_another_library_is_said(copied: Saved) -> None:
    folder = copied("bert")
    (folder / "modules.json").write_text("[]")
    assert [x.name for x in account(str(folder)).left_out if x.thing == "file"] == ["modules.json"]


def test_patterns_cover_names_by_what_they_share() -> None:
    assert covering(["cls.a.x", "cls.a.y", "head", "mtp.b"]) == ["cls.a.*", "head", "mtp.b"]


def test_a_part_that_no_output_reads_is_said_once_it_is_known(copied: Saved) -> None:
    folder = copied("gpt2")
    config = transformers.AutoConfig.from_pretrained(folder, add_cross_attention=True)
    transformers.GPT2Model(config).save_pretrained(folder)
    source = open_source(str(folder), leave_out=["encoder_hidden_states,encoder_attention_mask"])
    before = source.account()
    assert not [x for x in before.left_out if x.thing == "tensor"]
    source.capture()
    unread = [x.name for x in source.account().left_out if x.thing == "tensor"]
    assert "h.1.crossattention.c_attn.weight" in unread and "h.1.attn.c_attn.weight" not in unread
    assert source.account().used == before.used - len(unread)


def test_the_account_is_printed_and_kept(copied: Saved, tmp_path: Path) -> None:
    class Lines(Progress):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def done(self, detail: str = "") -> None:
            self.lines.append(detail)

    progress, folder = Lines(), edit(copied("bert"), extra=torch.ones(2))
    report = moec.compile(folder, out=tmp_path / "engine", leave_out=["extra"], progress=progress)
    assert any("BertModel" in line for line in progress.lines)
    assert any("left out: tensor extra" in line for line in progress.lines)
    kept = moec.api.read_report(tmp_path / "engine")
    assert kept.account == report.account and kept.settings["leave_out"] == ["extra"]
    assert "extra" in (tmp_path / "engine" / "report.html").read_text()
    assert moec.verify(tmp_path / "engine").ok  # opens it with the same things left out
    kept.settings["leave_out"] = []
    (tmp_path / "engine" / "moec.json").write_text(kept.to_json())
    with pytest.raises(MoecError, match="extra"):
        moec.verify(tmp_path / "engine")
