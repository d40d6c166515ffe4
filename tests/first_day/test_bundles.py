"""The memory checker's words, and what the first day takes along."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.first_day.day import rows_of

CHECKER = """#!/bin/sh
# compute-sanitizer's words, around the command that it is given: --tool NAME --error-exitcode N COMMAND
tool=$2; shift 4; "$@"
echo "========= COMPUTE-SANITIZER"
{complaint}
if [ $tool = memcheck ]
then echo "========= ERROR SUMMARY: {errors} errors"
else echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
fi
"""


@pytest.mark.parametrize(
    ("complaint", "errors"), [("", 0), ("echo '========= Invalid __global__ read of size 16 bytes'", 2)]
)
def test_the_checker_s_summary_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str, errors: int
) -> None:
    """No checker is here: a script says its words, and runs `true` in place of the kernels."""
    import first_day_sanitizer
    from first_day_rows import run

    script = tmp_path / "compute-sanitizer"
    script.write_text(CHECKER.format(complaint=complaint, errors=errors))
    script.chmod(0o755)
    found = {"stage": "kernels", "state": "done", "cases": ["a"], "setting": {}, "rows": [], "notes": {}}
    monkeypatch.setattr(first_day_sanitizer, "read", lambda path: found)
    monkeypatch.setattr(first_day_sanitizer.sys, "executable", "true")
    rows = rows_of(tmp_path)
    state, reason = run(rows, lambda rows: first_day_sanitizer.sanitizer(rows, "cpu", (str(script),)))
    assert state == ("wrong" if errors else "done")
    assert not errors or "memcheck Invalid __global__ read of size 16 bytes: 2 errors" in reason


def test_without_a_checker_or_its_summary_nothing_is_claimed(tmp_path: Path) -> None:
    import first_day_sanitizer
    from first_day_rows import run

    state, reason = run(
        rows_of(tmp_path), lambda rows: first_day_sanitizer.sanitizer(rows, "cpu", ("no-such-program",))
    )
    assert (state, reason) == ("absent", "compute-sanitizer is not on this machine")
    with pytest.raises(ValueError, match="no summary"):
        first_day_sanitizer.errors_of("========= COMPUTE-SANITIZER\nDevice not supported")


def fat_binary(*images: tuple[int, int, bytes]) -> bytes:
    """kind, sm, code of each image, as nvcc lays them into `.nv_fatbin`."""
    import struct

    body = b""
    for kind, sm, code in images:
        header = struct.pack("<HHIQIIHHIIQ", kind, 0x101, 64, len(code), 0, 0, 0, sm // 10, sm, 0, 0)
        body += header.ljust(64, b"\0") + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_one_architecture_s_machine_code_stays() -> None:
    from first_day_pack import Image, images, keep

    binary = fat_binary((2, 80, b"a" * 8), (2, 90, b"b" * 16), (1, 90, b"p" * 8))
    library = bytearray(b"\x7fELF" + b"\x50\xed\x55\xba" + b"not one" + binary + fat_binary((2, 90, b"c" * 8)) + b"end")
    found = list(images(bytes(library)))
    assert [(i.kind, i.sm, i.size) for i in found] == [(2, 80, 8), (2, 90, 16), (1, 90, 8), (2, 90, 8)]
    assert isinstance(found[0], Image) and keep(library, 90) == {90: 24}
    assert library.count(b"a") == library.count(b"p") == 0
    assert b"b" * 16 in library and b"c" * 8 in library and library.endswith(b"end")
    with pytest.raises(SystemExit, match="no code for sm_70"):
        keep(library, 70)


@pytest.mark.parametrize("compressed", [False, True])
def test_code_of_small_floats_alone_goes(compressed: bool) -> None:
    from first_day_pack import keep

    def image(*kernels: str) -> bytes:
        code = b"\x7fELF" + b"".join(b".text." + name.encode() + bytes(8) for name in kernels)
        return (
            subprocess.run(["zstd", "-cq"], input=code, capture_output=True, check=True).stdout if compressed else code
        )

    if compressed and not shutil.which("zstd"):
        pytest.skip("the program zstd is not on this machine")
    small, mixed, none = image("gemm_e4m3", "moe_nv_fp4"), image("gemm_e4m3", "gemm_half"), image()
    library = bytearray(b"".join(fat_binary((2, 90, code)) for code in (small, mixed, none)))
    assert keep(library, 90) == {90: len(mixed) + len(none)}
    assert small not in library and mixed in library


def test_wheels_of_a_bundle_are_unpacked_and_moec_is_whole(tmp_path: Path) -> None:
    from first_day import moec_in, unpack

    with zipfile.ZipFile(tmp_path / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "VALUE = 5\n")
    site = tmp_path / "site"
    unpack([tmp_path], site)
    moec_in(site)
    code = (
        "from importlib.util import find_spec\nimport moec.backends, moec.passes, thing\n"
        "assert find_spec('moec.backends.onnxruntime') and find_spec('moec.passes.fuse_moe')\n"
        "print(moec.__file__, thing.VALUE)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    assert done.stdout == f"{site / 'moec' / '__init__.py'} 5\n", done.stderr


def test_a_bundle_that_is_too_large_is_refused(tmp_path: Path) -> None:
    from first_day_pack import LIMIT_BYTES, check_size, tree_bytes

    with (tmp_path / "large").open("wb") as file:
        file.truncate(LIMIT_BYTES - tree_bytes() - 1)
    assert check_size(tmp_path) == LIMIT_BYTES - 1
    with (tmp_path / "more").open("wb") as file:
        file.truncate(2)
    with pytest.raises(SystemExit, match="more than 64"):
        check_size(tmp_path)
