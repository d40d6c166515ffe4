"""Engines that several tests share: built once a worker, never changed."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.command_line import Cli
from tests.zoo import save

os.environ["MOEC_CACHE_DIR"] = "off"  # a test that wants one names its own
torch.set_num_threads(1)  # pytest runs one worker a core
gc.set_threshold(100_000, 10, 10)  # as in moec.startup; Python's own 700 costs a fifth of the tests


@pytest.fixture(scope="session", autouse=True)
def modules_stay() -> Iterator[None]:
    """Searches for garbage leave out what is here before the first test: modules and tests live to the end."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process."""
    return Cli(capsys)


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Mixtral as a Hugging Face folder."""
    return Path(save("mixtral", tmp_path_factory.mktemp("models") / "mixtral"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random dense Llama as a Hugging Face folder."""
    return Path(save("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="session")
def mixtral_engine(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `mixtral`."""
    import moec

    out = tmp_path_factory.mktemp("engines") / "mixtral"
    moec.compile(str(mixtral), out=out)
    return out


@pytest.fixture
def roofline_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as they are without the extra `moec[plan]`, so that figures in tests are those of the formulas."""
    monkeypatch.setattr("moec.planning.pace.tables", lambda *_: ())


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BART, an encoder and a decoder, as a Hugging Face folder."""
    from tests import encoder_decoders

    return encoder_decoders.save("bart", tmp_path_factory.mktemp("models") / "bart")


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA with experts, a model of text and images, as a Hugging Face folder with its processor."""
    from tests import vision_language

    return vision_language.save("llava", tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="session")
def seeing_engine(seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `seeing`: three graphs."""
    import moec

    out = tmp_path_factory.mktemp("engines") / "llava"
    moec.compile(str(seeing), out=out)
    return out


@pytest.fixture(scope="session")
def translator_engine(translator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `translator`: two graphs."""
    import moec

    out = tmp_path_factory.mktemp("engines") / "bart"
    moec.compile(str(translator), out=out)
    return out


@pytest.fixture(scope="session")
def cpu_kernels_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """moec's kernels for CPUs, compiled from the sources here, once for all workers; those that the environment names,
    where it does."""
    import fcntl

    from moec.kernels.cpu.building import LIBRARY, build, compiler
    from moec.kernels.cpu.library import PLACE, require_library

    if os.environ.get(PLACE):
        return require_library()
    if not compiler():
        pytest.skip("needs a C++ compiler")
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (folder / "kernels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder / LIBRARY if (folder / LIBRARY).exists() else build(folder / LIBRARY)


@pytest.fixture
def cpu_kernels(cpu_kernels_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where engines look for them."""
    from moec.kernels.cpu.library import PLACE

    monkeypatch.setenv(PLACE, str(cpu_kernels_file))
    return cpu_kernels_file
