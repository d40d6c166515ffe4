"""Models and engines that several tests share: made once for all workers, never changed."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.command_line import Cli
from tests.kept_captures import KeptCaptures
from tests.made_once import made_once, shared
from tests.one_thread import OneThread
from tests.zoo import save

os.environ["MOEC_CACHE_DIR"] = "off"  # a test that wants one names its own
KEPT, ONE_THREAD = KeptCaptures(), OneThread()
torch.set_num_threads(1)  # pytest runs one worker a core
gc.set_threshold(100_000, 10, 10)  # as in moec.startup; with this and `modules_stay` 5 % of the time, without 10 %


@pytest.fixture(scope="session", autouse=True)
def modules_stay() -> Iterator[None]:
    """Searches for garbage leave out what is here before the first test: modules and tests live to the end."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def captures_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests of what comes after a capture take those that were kept in this run, and keep theirs."""
    KEPT.folder = shared(tmp_path_factory) / "kept"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Both ask which test runs."""
    KEPT.before(item)
    ONE_THREAD.before(item)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process."""
    return Cli(capsys)


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Mixtral as a Hugging Face folder."""
    return made_once(tmp_path_factory, "models/mixtral", lambda path: save("mixtral", path))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random dense Llama as a Hugging Face folder."""
    return made_once(tmp_path_factory, "models/llama", lambda path: save("llama", path))


@pytest.fixture(scope="session")
def mixtral_engine(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `mixtral`."""
    import moec

    return made_once(tmp_path_factory, "engines/mixtral", lambda path: moec.compile(str(mixtral), out=path))


@pytest.fixture
def roofline_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as they are without the extra `moec[plan]`, so that figures in tests are those of the formulas."""
    monkeypatch.setattr("moec.planning.pace.tables", lambda *_: ())


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BART, an encoder and a decoder, as a Hugging Face folder."""
    from tests import encoder_decoders

    return made_once(tmp_path_factory, "models/bart", lambda path: encoder_decoders.save("bart", path))


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA with experts, a model of text and images, as a Hugging Face folder with its processor."""
    from tests import vision_language

    return made_once(tmp_path_factory, "models/llava", lambda path: vision_language.save("llava", path))


@pytest.fixture(scope="session")
def seeing_engine(seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `seeing`: three graphs."""
    import moec

    return made_once(tmp_path_factory, "engines/llava", lambda path: moec.compile(str(seeing), out=path))


@pytest.fixture(scope="session")
def translator_engine(translator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `translator`: two graphs."""
    import moec

    return made_once(tmp_path_factory, "engines/bart", lambda path: moec.compile(str(translator), out=path))


@pytest.fixture(scope="session")
def cpu_kernels_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """moec's kernels for CPUs, compiled from the sources here, once for each content of theirs; those that the
    environment names, where it does."""
    from moec.kernels.cpu.building import LIBRARY, build, compiler, stamp
    from moec.kernels.cpu.library import PLACE, require_library

    if os.environ.get(PLACE):
        return require_library()
    if not compiler():
        pytest.skip("needs a C++ compiler")
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    content = hashlib.sha256(f"{stamp()} {compiler()} {version}".encode()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"moec_cpu_kernels-{os.getuid()}-{content}" / LIBRARY  # for the next run, too

    def make(path: Path) -> None:
        if not kept.is_file():
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            build(kept)
        shutil.copy(kept, path)

    return made_once(tmp_path_factory, f"kernels/{LIBRARY}", make)


@pytest.fixture
def cpu_kernels(cpu_kernels_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where engines look for them."""
    from moec.kernels.cpu.library import PLACE

    monkeypatch.setenv(PLACE, str(cpu_kernels_file))
    return cpu_kernels_file
