"""Puts the kernels for CPUs into wheels, where a C++ compiler is there. All else stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
from moec.errors import MoecError
from moec.kernels.cpu.building import LIBRARY, build


def library(build_lib: str) -> Path:
    return Path(build_lib, "moec", "kernels", "cpu", LIBRARY)


class WithKernels(build_py):
    """Compiles the library beside its sources. Without a compiler the wheel is one without it, for any processor."""

    def run(self) -> None:
        super().run()
        if self.editable_mode or sys.platform != "linux":  # in a checkout `make kernels` compiles it
            return
        library(self.build_lib).unlink(missing_ok=True)  # of an earlier build
        try:
            build(library(self.build_lib))
        except (MoecError, OSError) as error:
            self.warn(f"this wheel has no kernels for CPUs: {error}")


class ForThisProcessor(bdist_wheel):
    """Names the processor in the wheel's tag where the library is in it, and no version of Python: nothing of Python is
    linked."""

    def run(self) -> None:
        self.run_command("build_py")
        if library(self.get_finalized_command("build_py").build_lib).exists():
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True  # else the packages go where only pure ones lie
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


setup(cmdclass={"build_py": WithKernels, "bdist_wheel": ForThisProcessor})
