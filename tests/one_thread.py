"""ONNX Runtime with one thread, as PyTorch has in `conftest.py`: pytest runs a worker a core, and threads that wait for
work spin, so that two workers with two threads each take twice the time of both cores."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest

ALL_CORES = ("test_conformance.py",)  # as users have them: each model of the zoo, from end to end


class OneThread:
    """Sessions for which nobody says a number of threads have one, but in tests of `ALL_CORES`."""

    def __init__(self) -> None:
        self._item: pytest.Item | None = None

    def before(self, item: pytest.Item) -> None:
        """To be called before the fixtures of a test are made."""
        self._item = item
        runtime = sys.modules.get("onnxruntime")  # most tests need none
        kind = getattr(runtime, "InferenceSession", None)
        if kind is not None and not hasattr(kind.__init__, "__wrapped__"):
            kind.__init__ = self._with_one(kind.__init__)

    def _with_one(self, real: Any) -> Any:
        @functools.wraps(real)
        def init(session: Any, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
            if self._item is None or self._item.path.name not in ALL_CORES:
                sess_options = sess_options or sys.modules["onnxruntime"].SessionOptions()
                sess_options.intra_op_num_threads = sess_options.intra_op_num_threads or 1
            real(session, model, sess_options, *args, **kwargs)

        return init
