"""Pictures of a report and of the documentation's site in a browser: light, dark, on a telephone and printed.

A small model is drawn, compiled with a preset and timed; its report and the site, as `make docs` builds it, are opened
in Chromium without a window. What it prints as PDF, `pdftoppm` of poppler turns into a picture.

usage: python docs/scripts/screenshots.py [NAME …]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

DOCS = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "chromium")
TELEPHONE, COLOURS, PAPER_DPI = 390, 128, 64
Take = Callable[[Path, Path], None]
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")


def browse(*flags: str, profile: Path) -> None:
    """Run the browser once. Raises CalledProcessError when it fails."""
    common = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
    settled = ("--virtual-time-budget=8000", f"--user-data-dir={profile}")
    subprocess.run([BROWSER, *common, *settled, *flags], check=True, capture_output=True, timeout=300)


def screen(page: str, out: Path, width: int, height: int, dark: bool = False) -> None:
    """A page on a screen. A window is never as narrow as a telephone, so the page stands in a frame of that width."""
    with TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        sizes = f'width="{width}" height="{height}" style="border:0"'
        scheme = '<meta name="color-scheme" content="light dark">'
        frame.write_text(
            f'<!doctype html>{scheme}<body style="margin:0"><iframe src="{escape(page)}" {sizes}></iframe>'
        )
        shot = Path(folder) / "shot.png"
        window = f"--window-size={max(width, 600)},{height + 100}"
        browse(
            *(DARK if dark else ()), window, f"--screenshot={shot}", frame.as_uri(), profile=Path(folder) / "profile"
        )
        keep([shot], out, (width, height))


def paper(page: Path, out: Path, sheets: int = 2) -> None:
    """The first sheets of a page as it is printed, side by side."""
    with TemporaryDirectory() as folder:
        pdf = Path(folder) / "page.pdf"
        browse(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", page.as_uri(), profile=Path(folder) / "profile")
        prefix, most = Path(folder) / "sheet", ("-r", str(PAPER_DPI), "-l", str(sheets))
        subprocess.run(["pdftoppm", "-png", *most, str(pdf), str(prefix)], check=True)
        keep(sorted(Path(folder).glob("sheet*.png")), out)


def keep(pictures: list[Path], out: Path, size: tuple[int, int] | None = None) -> None:
    """Write pictures beside each other as one, cut to a size, with few colours."""
    from PIL import Image

    images = [Image.open(picture).convert("RGB") for picture in pictures]
    images = [image.crop((0, 0, *size)) if size else image for image in images]
    gap = 12 if len(images) > 1 else 0
    whole = Image.new("RGB", (sum(i.width + gap for i in images) - gap, max(i.height for i in images)), "#9e9e9e")
    for n, image in enumerate(images):
        whole.paste(image, (sum(i.width + gap for i in images[:n]), 0))
    few = whole.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # rare colours stay, too
    few.save(out, optimize=True)


def report(folder: Path) -> Path:
    """The report of a mixture that was made smaller, with its speed."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = MixtralForCausalLM(
        MixtralConfig(vocab_size=259, num_key_value_heads=2, max_position_embeddings=512, **sizes)
    )
    with torch.no_grad():  # layers add little to what they are given, as trained layers do
        for name, weight in model.named_parameters():
            weight.mul_(5.0 if "embed" in name else 0.3 if "o_proj" in name or "down_proj" in name else 1.0)
    model.save_pretrained(folder / "mixtral")
    for command in (
        ["compile", "mixtral/", "--config", "balanced", "-o", "engine/"],
        ["bench", "engine/", "--save"],
    ):
        subprocess.run([sys.executable, "-m", "moec", *command], check=True, cwd=folder, env=os.environ)
    return folder / "engine" / "report.html"


def site(folder: Path) -> Path:
    """The documentation's site."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder / "site")]
    subprocess.run(command, check=True, cwd=DOCS.parent, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder / "site"


def read(name: str, width: int, height: int, dark: bool = False) -> Take:
    """How a page of the site is shown: from a server, as readers have it."""

    def take(root: Path, out: Path) -> None:
        handler = partial(Quiet, directory=str(root))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            screen(f"http://127.0.0.1:{server.server_port}/{name}.html", out, width, height, dark)
            server.shutdown()

    return take


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


PICTURES: dict[str, tuple[Callable[[Path], Path], Take]] = {
    "report-light": (report, lambda page, out: screen(page.as_uri(), out, 1000, 1650)),
    "report-dark": (report, lambda page, out: screen(page.as_uri(), out, 1000, 1650, dark=True)),
    "report-narrow": (report, lambda page, out: screen(page.as_uri(), out, TELEPHONE, 1650)),
    "report-printed": (report, paper),
    "site-light": (site, read("index", 1280, 800)),
    "site-dark": (site, read("tutorial", 1280, 800, dark=True)),
    "site-narrow": (site, read("compile", TELEPHONE, 800)),
}

if __name__ == "__main__":
    asked, made = sys.argv[1:] or list(PICTURES), dict[Callable[[Path], Path], Path]()
    with TemporaryDirectory() as place:
        for each in asked:
            make, take = PICTURES[each]
            made[make] = made.get(make) or make(Path(place))
            take(made[make], DOCS / "pictures" / f"{each}.png")
            print(DOCS / "pictures" / f"{each}.png", (DOCS / "pictures" / f"{each}.png").stat().st_size // 1024, "KiB")
