"""What backends declare of their targets: it can be asked without the backend, and says all that there is to say."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest

from moec import registry
from moec.targets.declared import Count, Declared, Option, declared_by


def test_what_an_option_takes_in_a_few_signs() -> None:
    speed, threads = Option(("fast", "slow"), "fast", "How fast."), Option(Count(high=8), "1", "How many.")
    assert (str(speed), speed.words, str(threads), threads.words) == ("fast|slow", ("fast", "slow"), "N", ())
    assert speed.takes("slow") and not speed.takes("8") and threads.takes("8") and not threads.takes("9")


@pytest.mark.parametrize("backend", registry.names("backends"))
def test_what_is_said_without_the_backend_is_what_the_backend_says(backend: str) -> None:
    cls = registry.find("backends", backend)
    assert declared_by(backend) == (cls.devices, cls.declared)
    for name, option in cls.declared.items():
        assert option.meaning.endswith(".") and option.default, name
        assert not option.words or option.default in option.words, name


def test_a_backend_of_another_package_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs:
        declared: ClassVar[Declared] = {"speed": Option(("fast",), "fast", "How fast.")}
        devices = ("moon",)

    monkeypatch.setattr(registry, "module", lambda group, name: sys)
    monkeypatch.setattr(registry, "find", lambda group, name: Theirs)
    assert declared_by("theirs") == (("moon",), Theirs.declared)


def test_no_torch_is_needed_for_it() -> None:
    code = (
        "import sys; from moec import registry; from moec.targets.declared import declared_by\n"
        "print(*(name for b in registry.names('backends') for name in declared_by(b)[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"precision", "tf32", "lowering", "refit"} <= set(done.stdout.split())
