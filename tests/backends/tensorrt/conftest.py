"""Processes that interpret or compile kernels, as the kernels' own tests have them."""

from tests.kernels.conftest import compiler, interpret  # noqa: F401  # fixtures
