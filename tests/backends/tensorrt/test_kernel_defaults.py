"""The table of GPUs on which `auto` takes moec's own kernels, and what a measurement does to it."""

from __future__ import annotations

from pathlib import Path

from moec.backends.tensorrt.kernel_defaults import FILE, KernelDefault, kernel_defaults
from moec.backends.tensorrt.policy import KERNELS


def test_there_is_an_entry_for_each_gpu_that_has_kernels_and_none_was_measured() -> None:
    table = kernel_defaults()
    assert set(table) == set(KERNELS)
    assert all(entry.taken and "not measured" in entry.origin for entry in table.values())


def test_a_measurement_flips_one(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(
        '[origins]\ncounted = "counted"\n[defaults]\nsm80 = { kernels = true, origin = "counted" }\n'
        'sm90 = { kernels = false, origin = "H200, TensorRT 11.4: 40 us, gathered 31 us" }\n'
    )
    assert kernel_defaults(tmp_path / FILE) == {
        80: KernelDefault(True, "counted"),
        90: KernelDefault(False, "H200, TensorRT 11.4: 40 us, gathered 31 us"),
    }
