"""A process of its own for Triton's interpreter, which has to be chosen before Triton is imported, and then holds for
good."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import pytest

Interpret = Callable[..., Any]


@pytest.hookimpl(tryfirst=True)  # before pytest picks by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What only compiles has no numbers, and is marked so."""
    for item in items:
        if "compiler" in getattr(item, "fixturenames", ()):
            item.add_marker("compiled")


@pytest.fixture(scope="session")
def interpret() -> Iterator[Interpret]:
    """`interpret(function, *args, **kwargs)` calls an importable function where kernels run in the interpreter, on CPU
    tensors."""
    yield from _process({"TRITON_INTERPRET": "1"})


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpret]:
    """The same where kernels are compiled, into a cache of the session's own."""
    yield from _process({"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_INTERPRET": "0"})


def _process(variables: dict[str, str]) -> Iterator[Interpret]:
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_quiet)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        pool.submit(os.getpid).result()  # the process starts here, with the variables
    with pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def _quiet() -> None:
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # numpy's, where the interpreter computes with what masks hide
