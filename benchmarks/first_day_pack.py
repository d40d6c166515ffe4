"""What the first day on a GPU takes along: two bundles that travel with the project's tree, each within 64 MiB.

usage: python benchmarks/first_day_pack.py [kernels] [engines] [onnxruntime] [--sm 90] [--python 3.12]

The machine that has the GPU reaches no package registry. It has PyTorch 2.11, Triton 3.6, transformers 5.17 and ONNX
Runtime for the CPU; what it lacks is packed here into `.gpu/`, which git ignores.

- `.gpu/kernels/`: transformers as this tree was proven with, since 5.17 has not all experts in its interface, and
  msgspec. `kernels` makes it.
- `.gpu/engines/`: msgspec, the graphs of small engines (`engines`; `first_day_engines.py`), and onnxruntime-gpu
  (`onnxruntime`). Its CUDA provider holds machine code for several architectures: the images of the others are
  overwritten with zeros, which compress to nothing. The driver takes the image whose header names the GPU. Gone as well
  are images whose kernels all compute with floats of 8 or 4 bits, more than half of what is left: on the stand-in no
  engine of the day launches one, neither in a prompt or a step nor when kernels are chosen.

Packing onnxruntime takes some three minutes, most of them in xz; the engines an hour of a busy core. Images are
compressed: the program `zstd` reads them.
"""

from __future__ import annotations

import argparse
import mmap
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the engines are those of the tests
PARTS = ["kernels", "engines", "onnxruntime"]
PACKED = ROOT / ".gpu"
LIMIT_BYTES = 64 * 2**20  # of the tree and what it takes along, in one call
RUNTIME, MSGSPEC, TRANSFORMERS = "onnxruntime-gpu==1.31.1", "msgspec==0.22.0", "transformers==5.23.0"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
# nothing of these is needed to run a model
LEFT_OUT = ("onnxruntime/transformers/", "onnxruntime/tools/", "onnxruntime/datasets/", "onnxruntime/quantization/")
LEFT_OUT_FILES = ("onnxruntime/capi/libonnxruntime.so.", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so")
MAGIC, ELF = 0xBA55ED50, 2  # of a fat binary; kind of an image that is machine code
ZSTD, KERNELS = b"\x28\xb5\x2f\xfd", re.compile(rb"\.text\.([\w$]+)")  # a compressed image; sections of kernels
SMALL_FLOATS = re.compile(rb"e4m3|e2m1|e5m2|nv_fp8|nv_fp4")


@dataclass(frozen=True)
class Image:
    """One architecture's code in a fat binary.

    Attributes:
        kind: 1 for PTX, 2 for machine code. sm: 90 for 9.0. start, size: bytes of its code in the file.
    """

    kind: int
    sm: int
    start: int
    size: int


def images(code: bytes | mmap.mmap) -> Iterator[Image]:
    """All images of all fat binaries in a library, in order."""
    at, magic = 0, struct.pack("<I", MAGIC)
    while (at := code.find(magic, at)) >= 0:
        version, header, size = struct.unpack_from("<HHQ", code, at + 4)
        if (version, header) != (1, 16):  # these four bytes happen elsewhere too
            at += 4
            continue
        entry, at = at + header, at + header + size
        while entry < at:
            kind, _, own, length = struct.unpack_from("<HHIQ", code, entry)
            (sm,) = struct.unpack_from("<I", code, entry + 28)
            yield Image(kind, sm, entry + own, length)
            entry += own + length


def is_needed(code: bytes) -> bool:
    """Whether an image has a kernel without floats of 8 or 4 bits, or none that it names."""
    if code.startswith(ZSTD):  # it may end in zeros, of which zstd complains once all is said
        code = subprocess.run(["zstd", "-dcq"], input=code, capture_output=True, check=False).stdout
        if not code.startswith(b"\x7fELF"):
            return True
    names = set(KERNELS.findall(code))
    return not names or not all(SMALL_FLOATS.search(name) for name in names)


def keep(code: bytearray | mmap.mmap, sm: int) -> Counter[int]:
    """Overwrite with zeros what is not machine code for this architecture, and what the day does not need of it;
    returns the bytes of each that stayed.

    Raises:
        SystemExit: nothing would stay.
    """
    found = list(images(code))
    own = [i for i in found if (i.kind, i.sm) == (ELF, sm)]
    if not own:
        raise SystemExit(f"no code for sm_{sm}; there is some for {sorted({i.sm for i in found})}")
    stay = [i for i in own if is_needed(bytes(code[i.start : i.start + i.size]))]
    if not stay:
        raise SystemExit(f"of the code for sm_{sm} nothing is needed, as its names have it")
    for image in found:
        if image not in stay:
            code[image.start : image.start + image.size] = bytes(image.size)
    kept: Counter[int] = Counter()
    for image in stay:
        kept[image.sm] += image.size
    return kept


def download(requirement: str, python: str, folder: Path) -> Path:
    """The wheel of a package for another Python, by pip."""
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (17, 27, 28)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    implementation = ["--implementation=cp", f"--python-version={python}", "-d", str(folder)]
    subprocess.run([*command, *implementation, requirement], check=True)
    return next(folder.glob(requirement.split("==")[0].replace("-", "_") + "*.whl"))


def pack_runtime(out: Path, sm: int, python: str) -> Path:
    """onnxruntime-gpu for one architecture as `onnxruntime.tar.xz`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        site = Path(work, "site")
        with zipfile.ZipFile(download(RUNTIME, python, Path(work))) as wheel:
            wheel.extractall(site, [n for n in wheel.namelist() if not n.startswith((*LEFT_OUT, *LEFT_OUT_FILES))])
        with (site / PROVIDER).open("r+b") as file, mmap.mmap(file.fileno(), 0) as code:
            for kept, size in keep(code, sm).items():
                print(f"sm_{kept}: {size / 2**20:.0f} MiB of machine code stay", file=sys.stderr)
        packed = out / "onnxruntime.tar.xz"
        with tarfile.open(packed, "w:xz", preset=9) as archive:
            for path in sorted(site.iterdir()):
                archive.add(path, path.name)
    return packed


def tree_bytes() -> int:
    """What travels anyway: all files that git knows."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    return sum((ROOT / name.decode()).stat().st_size for name in names if name)


def check_size(bundle: Path) -> int:
    """The bytes of a call that takes this bundle along. Raises SystemExit where they are too many."""
    total = tree_bytes() + sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file())
    if total > LIMIT_BYTES:
        raise SystemExit(f"{bundle} and the tree are {total / 2**20:.1f} MiB, more than {LIMIT_BYTES / 2**20:.0f}")
    print(f"{bundle}: {total / 2**20:.1f} MiB with the tree", file=sys.stderr)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="all by default")
    parser.add_argument("--sm", type=int, default=90, help="compute capability, 90 for 9.0")
    parser.add_argument("--python", default="3.12", help="the other machine's")
    options = parser.parse_args()
    if not shutil.which("zstd"):
        raise SystemExit("the program zstd is needed, which reads images of machine code: apt install zstd")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    kernels, engines = PACKED / "kernels", PACKED / "engines"
    for part in options.parts or PARTS:
        if part == "kernels":
            download(TRANSFORMERS, options.python, kernels)
        elif part == "engines":
            from first_day_engines import make_engines

            make_engines(engines)
        else:
            pack_runtime(engines, options.sm, options.python)
    for bundle in (b for b in (kernels, engines) if b.is_dir()):
        download(MSGSPEC, options.python, bundle)
        check_size(bundle)


if __name__ == "__main__":
    main()
