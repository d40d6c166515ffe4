"""What a start does not wait for: packages that others import and moec does not use, and searches for garbage."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from moec.startup import RARELY, late, seldom_collected, swapped


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`slow`, with a function and a constant, and `user`, which imports both ways."""
    (tmp_path / "slow_package.py").write_text("LIMIT = 3\ndef double(x, by=2): return x * by\n")
    (tmp_path / "its_user.py").write_text(
        "import slow_package\nfrom slow_package import double\n"
        "def f(x: slow_package.Number) -> int: return double(x, by=2) + slow_package.LIMIT\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("slow_package", "its_user"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("packages")
def test_a_late_package_is_imported_when_it_is_first_used() -> None:
    with late("slow_package"):
        user = importlib.import_module("its_user")
    assert "slow_package" not in sys.modules
    assert user.f(4) == 4 * 2 + 3
    assert sys.modules["slow_package"].LIMIT == 3
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        user.slow_package.other  # noqa: B018


@pytest.mark.usefixtures("packages")
def test_a_package_that_is_here_is_left_alone() -> None:
    slow = importlib.import_module("slow_package")
    with late("slow_package"), pytest.raises(AttributeError, match="Number"):
        importlib.import_module("its_user")
    assert sys.modules["slow_package"] is slow


@pytest.mark.parametrize("before", [(700, 10, 10), (RARELY * 2, 5, 5), (0, 10, 10)])
def test_garbage_is_sought_rarely_within_and_as_before_afterwards(before: tuple[int, int, int]) -> None:
    own = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        with pytest.raises(KeyError), seldom_collected():
            assert gc.get_threshold() == (max(before[0], RARELY) if before[0] else 0, *before[1:])
            raise KeyError
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*own)


def test_a_value_is_another_one_within_and_itself_again_afterwards() -> None:
    class Owner:
        name = 1

    with pytest.raises(KeyError), swapped(Owner, "name", 2):
        assert Owner.name == 2
        raise KeyError
    assert Owner.name == 1
    with pytest.raises(AttributeError), swapped(Owner, "other", 2):
        pass
    assert not hasattr(Owner, "other")


INSPECT = """
import sys, torch
import moec
moec.inspect(sys.argv[1])
unused = [name for name in ("scipy.optimize", "networkx", "torch.distributed.checkpoint") if name in sys.modules]
from transformers.loss.loss_for_object_detection import linear_sum_assignment
from torch._functorch._activation_checkpointing import graph_info_provider
from transformers.distributed.checkpoint import HuggingFaceStorageReader
unused += [] if HuggingFaceStorageReader("a folder").path.name == "a folder" else ["no reader"]
print(unused, linear_sum_assignment([[1, 0], [0, 1]])[1].tolist(), graph_info_provider.nx.DiGraph().size())
"""


def test_inspect_imports_no_solver_and_no_graph_library_and_both_work_afterwards(mixtral: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INSPECT, str(mixtral)], capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[0] == "[] [1, 0] 0", done.stderr[-2000:]
