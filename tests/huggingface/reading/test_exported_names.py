"""What the files of transformers export is found as transformers finds it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from transformers.utils import import_utils

import moec.huggingface  # noqa: F401  # it puts the faster function in
from moec.huggingface.reading.exported_names import from_last, quicken

MODELS = Path(import_utils.__file__).parent.parent / "models"


@pytest.fixture(scope="module")
def own() -> ModuleType:
    """transformers' own module once more, as it stands in its file."""
    spec = importlib.util.spec_from_file_location("transformers.utils.import_utils_again", import_utils.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_files_of_transformers_export_what_they_did(own: ModuleType) -> None:
    assert import_utils.fetch__all__.__module__ == from_last.__module__
    found = import_utils.create_import_structure_from_path(MODELS)
    assert found == own.create_import_structure_from_path(MODELS) and len(found) > 100
    scan = import_utils.create_import_structure_from_path
    before = scan.cache_info().misses
    assert scan(f"{MODELS}/__init__.py") == found and scan.cache_info().misses <= before + 1  # no folder is read again
    assert "MixtralForCausalLM" in own.fetch__all__((MODELS / "mixtral" / "modeling_mixtral.py").read_text())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1\n",
        'x = 1\n__all__ = ["A", "B"]\n',
        '__all__ = ["A"]',
        'A = 1\n__all__ = [\n    "A",\n    "B",\n]\ny = 2\n',
        '__all__ = ["A"]\n\n__all__ = ["B"]\n',
        'text = "in __all__"\n',
        'first = 1\n__all__ = ["A"]\n\x0c__all__ = ["B"]\n',
    ],
)
def test_names_are_found_from_the_last_line_that_lists_them(own: ModuleType, text: str) -> None:
    assert from_last(own.fetch__all__)(text) == own.fetch__all__(text)


def test_a_version_without_the_function_stays_as_it_is() -> None:
    quicken(other := ModuleType("of_another_version"))
    assert not {"fetch__all__", "create_import_structure_from_path"} & vars(other).keys()
