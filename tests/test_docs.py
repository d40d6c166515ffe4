"""The documentation is true: every command and snippet runs, every link, flag and name exists.

A block that cannot run here says why in a comment before it; such blocks are the skips of this file.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from moec.cli import main
from moec.errors import MoecError
from moec.files.kept import FOLDER
from moec.proof.verification import CHECKS
from moec.targets.backend import find_backend
from moec.targets.target import Target
from tests.byte_tokenizer import write_tokenizer
from tests.page_names import problems_of_code, problems_of_flags
from tests.pages import CONTRIBUTING, PAGES, ROOT, FencedBlock, anchors, blocks, links, prose, spans
from tests.test_house import ROOMS
from tests.whole_zoo import architecture
from tests.zoo import build
from tests.zoo_table import GROUPS

VOCABULARY = 259  # every byte and three special tokens
EVERY_PAGE = [*PAGES, CONTRIBUTING]
BROKEN = " " * 11  # where a page goes on with a line of output that is longer than a page is wide
LETTERS = [chr(c) for c in (*range(32, 127), *range(192, 256))]  # the text has tokens of many kinds
SHELLS, RUN = ("bash", "console"), ("bash", "console", "python")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_run(block: FencedBlock) -> bool:
    """CONTRIBUTING's snippets have a test of their own: here only its commands are run."""
    languages = SHELLS if block.page == CONTRIBUTING else RUN
    return block.language in languages and block.marker in ("", "needs") and not absent(block)


def absent(block: FencedBlock) -> str:
    """Why a block cannot run here; empty when it can."""
    if block.marker == "not run":
        return block.value
    if block.marker == "needs":
        with contextlib.suppress(MoecError):
            find_backend(Target.parse(block.value))
            return ""
        return f"needs {block.value}, which is not here"
    return ""


ALL_BLOCKS = [block for page in EVERY_PAGE for block in blocks(page)]
NOT_RUN = [block for block in ALL_BLOCKS if block.marker in ("not run", "needs")]


# ---------------------------------------------------------------------- commands and snippets
@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name: three models with a tokenizer, and a text. The layers of two add little to what they are
    given, as trained layers do, so that passes which cost a trained model little cost these little."""
    folder = tmp_path_factory.mktemp("docs")
    for name, kind in (("mixtral", "mixtral"), ("llama", "llama"), ("minilm", "bert")):
        model = build(kind, vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128)
        with torch.no_grad():
            for weight, value in model.named_parameters():
                if kind != "bert" and ("o_proj" in weight or "down_proj" in weight or "embed" in weight):
                    value.mul_(5.0 if "embed" in weight else 0.02)
        model.save_pretrained(folder / name)  # type: ignore[operator]  # a PreTrainedModel
        write_tokenizer(folder / name, VOCABULARY)
    (folder / "text.txt").write_text("".join(random.Random(0).choices(LETTERS, k=5000)))
    return folder


class Reader:
    """Somebody who follows a page in a folder of their own. Engines that another page compiled with the same command
    are copied."""

    engines: dict[tuple[str, ...], Path]

    def __init__(self, folder: Path, models: Path, engines: dict[tuple[str, ...], Path]) -> None:
        self.folder, self.engines, self.namespace, self.printed = folder, engines, {"__name__": "page"}, ""
        for path in models.iterdir():
            (folder / path.name).symlink_to(path)
        (folder / ".bin").mkdir()
        shim = folder / ".bin" / "moec"
        shim.write_text('#!/bin/sh\nfor argument; do printf "%s\\0" "$argument"; done > "$RECORD"\n')
        shim.chmod(0o755)

    def follow(self, block: FencedBlock) -> None:
        """Do what a block says; fails where that fails."""
        with contextlib.chdir(self.folder):
            if block.language == "python":
                exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), self.namespace)
                return
            self.printed = ""
            for command in block.commands():
                self.run(command, block.place)

    def run(self, command: str, place: str) -> None:
        """Run one command in this process, with the arguments that a shell makes of it."""
        assert command.startswith("moec "), f"{place}: {command!r} is not run; say why before the block"
        record = self.folder / ".bin" / "record"
        where = {"RECORD": str(record), "PATH": f"{record.parent}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-euc", command], env={**os.environ, **where}, check=True)
        arguments = record.read_text().split("\0")[:-1]
        out, key = _cut_out(arguments)
        if key in self.engines:
            shutil.copytree(self.engines[key], out, dirs_exist_ok=True)
            return
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
            main(arguments)
        self.printed += said.getvalue()
        assert not stop.value.code, f"{place}: {command}\n{said.getvalue()}"
        if key:
            self.engines[key] = self.folder / out

    def compare(self, block: FencedBlock) -> None:
        """What a page shows was printed: the same first words, in order; figures and breaks of lines may differ."""
        printed = iter([line.split()[0] for line in self.printed.splitlines() if line.split()])
        for line in (line for line in block.text.splitlines() if not line.startswith(BROKEN)):
            assert line.split()[0] in printed, f"{block.place}: {line!r} is not what was printed:\n{self.printed}"


def _cut_out(arguments: list[str]) -> tuple[str, tuple[str, ...]]:
    """The folder that a compile writes, and the command without it where nothing but that folder comes of it."""
    place = next((i for i, a in enumerate(arguments) if a in ("-o", "--out")), None)
    if arguments[0] != "compile" or place is None or {"--from", "--dump", "--save-hf", "--save-gguf"} & set(arguments):
        return "", ()
    shared = any(a in ("mixtral/", "llama/") for a in arguments) and not any(a.endswith(".toml") for a in arguments)
    return arguments[place + 1], tuple(arguments[:place] + arguments[place + 2 :]) if shared else ()


@pytest.fixture
def keeping(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader of all pages keeps by default: captures and weights of the models that they name."""
    monkeypatch.setenv(FOLDER, str(models.with_name(f"{models.name}-kept")))


@pytest.fixture(scope="module")
def engines() -> dict[tuple[str, ...], Path]:
    return {}


@pytest.mark.slow
@pytest.mark.usefixtures("keeping")
@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_a_page_does_what_it_says(
    page: Path, models: Path, engines: dict[tuple[str, ...], Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    reader = Reader(tmp_path, models, engines)
    for block in blocks(page):
        if block.marker == "file":
            (tmp_path / block.value).write_text(block.text)
        elif block.marker == "output of the block above":
            reader.compare(block)
        elif is_run(block):
            reader.follow(block)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda b: b.place)
def test_a_block_that_is_not_run(block: FencedBlock) -> None:
    """One skip a block, with its reason; one whose need is here is run with its page."""
    if reason := absent(block):
        pytest.skip(reason)
    assert is_run(block)


# ---------------------------------------------------------------------- form
def problems_of_block(block: FencedBlock) -> list[str]:
    """Why nobody would notice if this block were wrong."""
    if not block.language:
        return ["the block has no language"]
    if block.marker == "not run" and not block.value:
        return ["the block does not say why it is not run"]
    elsewhere = block.marker == "file" or (block.page == CONTRIBUTING and block.language not in SHELLS)
    known = (block.language,) if elsewhere else (*RUN, "text")
    found = [] if block.language in known else [f"no test runs {block.language}; name its file or say why not"]
    if block.language in SHELLS:
        found += [p for c in block.commands() for p in problems_of_flags(c.split("  #")[0]) if c.startswith("moec ")]
    return found


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_every_block_is_tested_or_says_why_not(page: Path) -> None:
    assert [f"{b.place}: {p}" for b in blocks(page) for p in problems_of_block(b)] == []
    assert page.read_text().count("```") == 2 * len(blocks(page))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_lines_fit(page: Path) -> None:
    assert [(n, len(line)) for n, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 120] == []


def problems_of_links(page: Path) -> list[str]:
    """Links that lead nowhere."""
    found = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert problems_of_links(page) == []


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_exist(page: Path) -> None:
    assert [p for span in spans(page) for p in problems_of_code(span)] == []


def test_flags_in_contributing_exist() -> None:
    named = [s for s in spans(CONTRIBUTING) if s.startswith(("moec ", "--"))]
    assert [p for span in named for p in problems_of_flags(span)] == []


def test_the_table_of_models_has_every_model() -> None:
    """It is measured by `python -m tests.zoo_table`; here, that no model is missing and each has one place."""
    table = re.search(
        r"<!-- support table -->\n(.*)<!-- end of support table -->", prose(ROOT / "docs/models.md"), re.S
    )
    assert table is not None
    named = re.findall(r"^(?:\| |- )(\w+)(?= \|| \()", table[1], re.M)
    every = [architecture(name) for names in GROUPS.values() for name in names()]
    assert sorted(named) == sorted(every)


def test_other_pages_count_models_as_the_table_does() -> None:
    table = prose(ROOT / "docs/models.md")
    right = re.search(r"(\d+) of \d+ models are right", table)
    mixtures = table.partition("| Mixtures of experts |")[2].partition("\n\n")[0].count("\n| ")
    assert right is not None and f"moec shows {right[1]} in" in prose(ROOT / "docs/beside.md")
    assert f"| models | {mixtures} of " in prose(ROOT / "README.md")


def test_the_rooms_are_those_of_the_house() -> None:
    text = prose(ROOT / "docs/architecture.md").partition("| room |")[2].partition("\n\n")[0]
    named = [n for row in text.splitlines()[2:] for n in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert named == [room for room in ROOMS if room != "__main__"]


def test_the_table_of_checks_has_every_check() -> None:
    text = prose(ROOT / "docs/trust.md").partition("| check |")[2].partition("\n\n")[0]
    named = [row.split("|")[1].strip() for row in text.splitlines()[2:]]
    assert named == [check.name for check in CHECKS]


def test_the_table_of_features_marks_each() -> None:
    text = prose(ROOT / "docs/features.md").partition("| # |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in text.splitlines()[2:]]
    assert [row[0] for row in rows] == [str(n) for n in range(1, 26)]
    assert {row[2] for row in rows} <= {"yes", "in part", "no"} and all(len(row) == 4 for row in rows)


def test_the_table_of_claims_says_what_the_sections_find() -> None:
    text = prose(ROOT / "docs/claims.md")
    said = Counter(row.split("|")[2].split(":")[0].split(",")[0].strip() for row in re.findall(r'^\| ".*', text, re.M))
    found = Counter(word.lower() for word in re.findall(r"\*\*(Wrong|True|Depends|In part|Supported)", text))
    assert said == found and sum(said.values()) == 24


def test_the_index_names_every_page() -> None:
    listed = set(links(ROOT / "docs/README.md"))
    assert listed == {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"}


# ---------------------------------------------------------------------- wrong pages are seen
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("```\nmoec doctor\n```\n", "no language"),
        ("```toml\nseed = 1\n```\n", "no test runs toml"),
        ("```bash\nmoec compile mixtral/ --fast\n```\n", "no --fast"),
        ("<!-- not run -->\n```bash\nmake test\n```\n", "does not say why"),
    ],
)
def test_a_wrong_block_is_seen(text: str, what: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert any(what in p for block in blocks(page) for p in problems_of_block(block))


@pytest.mark.parametrize(
    "code",
    [
        "moec compiel", "moec verify --passes", "--no-such-flag", "quantize(bit=4)", "onnxruntime:tpu", "M999",
        "moec.engine.Engine", "moec.execution.generation.no_such", "tests/test_no_such.py",
    ],
)  # fmt: skip
def test_a_wrong_name_is_seen(code: str) -> None:
    assert problems_of_code(code) != []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A head\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md) [b](other.md#a-head) [c](none.md) [d](other.md#none)")
    assert problems_of_links(page) == ["none.md", "other.md#none"]


def test_a_wrong_command_and_a_wrong_output_are_seen(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "read").mkdir()
    reader = Reader(tmp_path / "read", tmp_path / "models", {})
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nmoec explain M101\nmoec explain no-such-pass\n```\n```bash\nls\n```\n```text\nM102 x\n```\n"
    )
    wrong, other, output = blocks(page)
    with pytest.raises(AssertionError, match="M202"):
        reader.follow(wrong)
    with pytest.raises(AssertionError, match="say why"):
        reader.follow(other)
    reader.printed = "M101 (exit status 1)\n"
    with pytest.raises(AssertionError, match="not what was printed"):
        reader.compare(output)
