"""A model from its config alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.huggingface.reading.bare import bare_model
from tests.planning import configs


def test_nothing_is_allocated_whatever_the_size(tmp_path: Path) -> None:
    model = bare_model(str(configs.write(tmp_path, configs.DEEPSEEK_V3)))  # 2.7 TB in float32
    assert all(value.is_meta for value in [*model.parameters(), *model.buffers()])


def test_a_folder_without_weights_does(tmp_path: Path) -> None:
    configs.write(tmp_path, configs.LLAMA_1B)
    model = bare_model(str(tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model_type": "mixtrol"}, "M206", "mixtral"),
        ({"hidden_size": "4096"}, "M204", "hidden_size"),
        ({"num_hidden_layers": 10**9}, "M204", "num_hidden_layers"),
        ({"architectures": ["BertModel"]}, "M215", "BertModel"),
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}, "M209", "--trust-remote-code"),
    ],
)
def test_a_wrong_config_is_refused_by_name(change: dict[str, object], code: str, words: str, tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.MIXTRAL | change)
    with pytest.raises(MoecError, match=code) as refused:
        bare_model(str(path))
    assert words in str(refused.value) and refused.value.where == str(path)


def test_no_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="M204"):
        bare_model(str(tmp_path))
