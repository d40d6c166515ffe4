"""The documentation as a site: it is built, every link in it leads somewhere, and it shows what the pages say."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from moec import registry
from moec.cli import VERBS
from moec.compiler.options import SETTINGS
from moec.errors import CODES
from tests.made_once import made_once
from tests.pages import PAGES, ROOT

SCRIPTS = ROOT / "docs" / "scripts"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it: a warning ends that."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install .[docs]")

    def build(out: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)],
            cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "site", build)


def text_of(page: Path) -> str:
    """What one reads of a page."""
    return re.sub(r"<[^>]+>", "", page.read_text())


@pytest.mark.slow
def test_the_site_has_every_page(site: Path) -> None:
    names = {page.stem for page in PAGES if page.parent.name == "docs"} - {"README"} | {"index"}
    assert names <= {page.stem for page in site.glob("*.html")}
    assert (site / "project/CONTRIBUTING.html").exists() and (site / "project/examples/ci/engines.yml").exists()


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"?(https?:[^\s\">]+)"
    found = {link for page in site.rglob("*.html") for link in re.findall(loaded, page.read_text())}
    assert {link for link in found if "squidfunk.github.io" not in link} == set()


@pytest.mark.slow
def test_the_reference_has_every_name(site: Path) -> None:
    import moec.training

    said = {page.stem: text_of(page) for page in (site / "reference").glob("*.html")}
    assert all(f"moec {verb}" in said["cli"] for verb in VERBS) and "--max-kl FLOAT" in said["cli"]
    assert all(setting.key in said["settings"] for setting in SETTINGS.values())
    assert all(name in said["passes"] for name in registry.names("passes")) and "granularity" in said["passes"]
    assert all(name in said["targets"] for name in registry.names("backends")) and "precision" in said["targets"]
    assert all(code in said["errors"] for code in CODES)
    assert [name for name in moec.__all__ if not name.startswith("__") and name not in said["python"]] == []
    assert [name for name in moec.training.__all__ if name not in said["python"]] == []
    assert "it appears only when everything went well" in " ".join(said["python"].split())


@pytest.mark.slow
def test_what_the_pages_say_for_github_is_read_here_too(site: Path) -> None:
    compile_page = (site / "compile.html").read_text()
    assert '<span class="filename">my_model.py</span>' in compile_page and "```" not in text_of(site / "compile.html")
    assert "precision=fp32|fp16" in text_of(site / "compile.html")
    assert 'href="project/SECURITY.html"' in (site / "trust.html").read_text()
    assert 'href="../README.html' not in (site / "project/CONTRIBUTING.html").read_text()


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install .[docs]")
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return importlib.import_module("hooks")


def test_lists_go_as_deep_as_markdown_wants(hooks: ModuleType) -> None:
    text = "- a\n  b\n\n  ```python\n  if x:\n      y\n  ```\n  - c\n\nd\n  e\n"
    assert hooks.lists(text) == ("- a\n    b\n\n    ```python\n    if x:\n        y\n    ```\n    - c\n\nd\n  e\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a](none.md)", "none.md"),
        ("[a](other.md#none)", "#none"),
        ("[a](../moec/none.py)", "none.py"),
    ],
)
def test_a_dead_link_ends_the_build(
    hooks: ModuleType, text: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "README.md").write_text(f"# Pages\n\n{text}\n")
    (docs / "other.md").write_text("# Other\n")
    settings = {"docs_dir": str(docs), "site_dir": str(tmp_path / "site"), "nav": None, "plugins": [], "extra_css": []}
    with caplog.at_level(logging.WARNING), pytest.raises(Abort):
        build(load_config(str(ROOT / "mkdocs.yml"), **settings))
    assert said in caplog.text
