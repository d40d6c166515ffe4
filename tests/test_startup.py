"""What a start does not wait for: packages that others import and moec does not use, and searches for garbage."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import moec
from moec.cli import VERBS
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


HELP = """
import sys
from moec.cli import VERBS, main
for arguments in ([], ["--help"], ["--version"], ["completion", "bash"], ["ls"], *([verb, "--help"] for verb in VERBS)):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments
    print("slow:", arguments, [name for name in ("torch", "transformers", "sympy") if name in sys.modules])
"""


def test_no_help_and_no_list_imports_what_takes_seconds() -> None:
    said = [line for line in _printed(HELP).splitlines() if line.startswith("slow:")]
    assert len(said) == 5 + len(VERBS)
    assert [line for line in said if not line.endswith(" []")] == []


# what a command did and has imported; the counters are there before moec is
DONE = """
import sys
from collections import Counter
import torch.export
done, unused, verb = Counter(), sys.argv[1].split(), sys.argv[2]

def count(owner, name):
    real = getattr(owner, name)
    def counted(*args, **keywords):
        done[name] += 1
        return real(*args, **keywords)
    setattr(owner, name, counted)

count(torch.export, "export")
if verb == "compile":
    import onnxruntime
    count(onnxruntime.InferenceSession, "__init__")
from moec.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert not end.code
print("done:", done["export"], done["__init__"], [name for name in unused if name in sys.modules])
"""
NEVER = "scipy.optimize networkx torch.distributed.checkpoint pandas matplotlib"


# what was left out works when somebody needs it
AFTERWARDS = """
from transformers.loss.loss_for_object_detection import linear_sum_assignment
from torch._functorch._activation_checkpointing import graph_info_provider
from transformers.distributed.checkpoint import HuggingFaceStorageReader
assert HuggingFaceStorageReader("a folder").path.name == "a folder"
print(linear_sum_assignment([[1, 0], [0, 1]])[1].tolist(), graph_info_provider.nx.DiGraph().size())
"""


def test_inspect_captures_once_and_imports_no_backend_no_solver_and_no_graph_library(mixtral: Path) -> None:
    unused = f"{NEVER} onnx onnxscript onnxruntime moec.compiler.compile moec.proof.verification moec.report.page"
    printed = _printed(DONE + AFTERWARDS, unused, "inspect", str(mixtral))
    assert printed.splitlines()[-2:] == ["done: 1 0 []", "[1, 0] 0"]


def test_inspect_of_a_model_that_was_captured_before_traces_nothing(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEC_CACHE_DIR", str(tmp_path))
    moec.inspect(str(mixtral))
    assert _printed(DONE, NEVER, "inspect", str(mixtral)).endswith("done: 0 0 []\n")


def test_a_compile_traces_twice_and_opens_one_session(mixtral: Path, tmp_path: Path) -> None:
    """The model, and the program that passes made of it; the proof and the report use one session of the engine."""
    assert "done: 2 1 []" in _printed(DONE, NEVER, "compile", str(mixtral), "-o", str(tmp_path / "engine"))


def _printed(code: str, *arguments: str) -> str:
    """What a Python program writes, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_torch_export_is_imported_first_of_all_and_without_networkx() -> None:
    """torch._dynamo asks where networkx lies; whatever imported it before would hide that."""
    code = (
        "from moec.frontend.export import import_export; import_export(); import sys; print('networkx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
