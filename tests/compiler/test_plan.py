"""Planning a model, whichever source it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.compiler.plan import plan
from moec.errors import MoecError
from tests.planning import configs


def test_a_context_beyond_the_positions_is_never_assumed(tmp_path: Path) -> None:
    short = configs.LLAMA_1B | {"max_position_embeddings": 512}
    assert plan(configs.write(tmp_path, short)).situations[0].context == 512
    assert plan(configs.write(tmp_path, configs.LLAMA_1B)).situations[0].context == 4096


def test_code_is_not_run_to_plan_it(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('ran')")
    with pytest.raises(MoecError, match="M201") as refused:
        plan(f"{tmp_path / 'model.py'}:make")
    assert "moec inspect" in refused.value.fix
