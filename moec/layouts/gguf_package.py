"""The package `gguf` of llama.cpp, which an extra of moec installs."""

from __future__ import annotations

from moec.errors import MoecError


def require_package() -> None:
    """Raise M301 where the package `gguf` is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        what = "GGUF files are written and read with the package gguf, which is not installed"
        raise MoecError("M301", what, "gguf", "pip install 'moec[gguf]'") from error
