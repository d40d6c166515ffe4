"""Which code a model's files go through: followed by their imports, told by its content or a package's version."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers

from moec.frontend import imported_code
from moec.frontend.imported_code import code_of
from moec.frontend.plain_sizes import NotPlainError

FILES = {
    "own_net.py": "import json, torch\nfrom own_layers import norm\nfrom own_layers.deep.acts import act\n",
    "own_layers/__init__.py": "",
    "own_layers/norm.py": "from .sizes import SIZE\n",
    "own_layers/sizes.py": "SIZE = 3\n",
    "own_layers/deep/acts.py": "def act(x):\n    from .. import late\n    import own_other\n    return late.f(x)\n",
    "own_layers/late.py": "def f(x):\n    return x\n",
    "own_other.py": "raise RuntimeError('it was run')\n",
    "own_beside.py": "",
}
REACHED = [name for name in FILES if name != "own_beside.py"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_every_file_that_is_reached_counts_and_no_other(folder: Path) -> None:
    own = code_of(["own_net"])
    assert own == code_of(["own_net"]) and len(own) == len(REACHED)
    assert not any(name.startswith("own_") for name in sys.modules), "nothing is imported"
    for name in FILES:
        (folder / name).write_text(FILES[name] + "\n# another")
        assert (code_of(["own_net"]) != own) == (name in REACHED), name
        (folder / name).write_text(FILES[name])


def test_what_is_installed_goes_by_its_version_and_an_editable_package_by_its_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_of(["transformers.models.llama.modeling_llama"]) == [f"transformers {transformers.__version__}"]
    assert code_of(["torch.nn.modules", "json", "moec.version"]) == [], "in every key"
    for site, line in ((folder / "site", "own_layers "), (folder, "own_layers 1.0")):
        info = site / "own_layers-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own_layers\nVersion: 1.0\n")
        (info / "WHEEL").write_text("Wheel-Version: 1.0\n")
        monkeypatch.syspath_prepend(str(site))
        imported_code._distributions.cache_clear()
        assert line in {found if " 1.0" in found else found[:11] for found in code_of(["own_layers.norm"])}


def test_a_module_without_a_file_has_no_form() -> None:
    with pytest.raises(NotPlainError, match="made_up"):
        code_of(["made_up"])
