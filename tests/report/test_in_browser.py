"""The page in a real browser: charts are there and inside their frames, nothing scrolls sideways on a telephone, light
and dark can be read, and nothing goes wrong.

Frames of the page at several widths stand in one document, whose script measures them and writes down what it found.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from moec.planning.estimate import estimate
from moec.planning.load import Load
from moec.planning.serving import Asked
from moec.proof.checks.text import TextQuality
from moec.report.artefacts import Artefact
from moec.report.page import html
from moec.report.plan_page import plan_page
from moec.report.size import Sizes
from moec.timing.decoders import bench_decoders
from moec.timing.export import exported
from tests.planning import configs
from tests.planning.test_advice import shape
from tests.report.test_report import INSIDE, QUALITY, make, with_check
from tests.report.test_speed import SPEED
from tests.timing.test_decoders import Sleeper

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1100)
MEASURE = """
const found = [...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.documentElement;
  const style = frame.contentWindow.getComputedStyle(page.body);
  const svgs = [...page.querySelectorAll("svg")].map(svg => {
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const marks = [...svg.querySelectorAll("rect, circle, path, polyline, polygon, text")].map(mark => mark.getBBox());
    return {width: box.width, height: box.height, marks: marks.length,
      over: Math.max(...marks.map(b => Math.max(view.x - b.x, b.x + b.width - view.x - view.width,
                                                view.y - b.y, b.y + b.height - view.y - view.height)))};
  });
  return {page: frame.title, width: frame.width, scroll: root.scrollWidth, client: root.clientWidth, svgs,
    ink: style.color, paper: style.backgroundColor};
});
document.body.innerHTML = "<pre id=found>" + JSON.stringify(found) + "</pre>";
"""


def pages() -> dict[str, str]:
    """A page with everything on it, the worst names that a user may have, and one of a benchmark."""
    long = "model.language_model.a_very_long_name_of_a_stack_of_layers.which_goes_on."
    layers = replace(INSIDE, layers=tuple(replace(x, module=f"{long}{x.module}") for x in INSIDE.layers))
    layers = replace(layers, blocks=tuple(replace(x, module=long) for x in INSIDE.blocks))
    full = with_check(make(), TextQuality(replace(QUALITY, agreement=layers)))
    file = Artefact("a/file/with/a_long_name_that_has_no_place_to_break.onnx.data", "ab" * 32, 2**21)
    source = "some/folder/of/somebody/" + "x" * 90
    full = replace(full, source=source, artefacts=(file,), size=Sizes(10**6, 2**23, 10**6, 10**5, 2, (8,), (2,)))
    full = replace(full, source_hashes={"config.json": "cd" * 32})
    bench = bench_decoders([Sleeper("a", 0, []), Sleeper("b", 0, [])], {"sequence": 2}, max_tokens=3, runs=2)
    return {"full": html(full, [SPEED]), "plain": html(make()), "bench": exported(bench, ".html"), **plans()}


def plans() -> dict[str, str]:
    """A plan of a mixture with a long name, and one of a dense model beside it."""
    with TemporaryDirectory() as folder:
        mixtral, llama = (shape(Path(folder), config) for config in (configs.MIXTRAL, configs.LLAMA_70B))
    named = replace(mixtral, name="AMixtureOfExpertsWhoseNameHasNoPlaceToBreak" * 2)
    asked = (("bf16", "int4-g128-zero"), ("h200", "rtxpro6000", "l4"), (1, 8, 64), 8192)
    load = Load("load.json", layers=((0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0),) * 32)
    one = estimate(named, *asked, ranks=(2, 8), asked=Asked(load=load))
    both = estimate(llama, ("int4",), ("h200",), (1, 1024), 4096, versus=mixtral)
    return {"plan": plan_page(one, "a/folder/" + "x" * 90), "plan of two": plan_page(both)}


def measured(tmp_path: Path, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """What the browser found of each page at each width, and what it complained of."""
    frames = "".join(
        f'<iframe title="{name}" width="{width}" height="900" srcdoc="{escape(page)}"></iframe>'
        for name, page in pages().items()
        for width in WIDTHS
    )
    file = tmp_path / "frames.html"
    head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    file.write_text(f"{head}<body>{frames}<script>onload = () => {{{MEASURE}}}</script>")
    common = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run")
    where = (f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", file.as_uri())
    assert BROWSER is not None
    ran = subprocess.run([BROWSER, *common, *flags, *where], capture_output=True, text=True, timeout=300)
    text = re.search(r'<pre id="found">(.*?)</pre>', ran.stdout, re.S)
    assert text, ran.stderr[-2000:]
    return json.loads(unescape(text[1])), "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.1)."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to look at the page with")
@pytest.mark.parametrize("flags", [(), ("--force-dark-mode",)], ids=["light", "dark"])
def test_the_page_in_a_browser(flags: tuple[str, ...], tmp_path: Path) -> None:
    found, complaints = measured(tmp_path, *flags)
    assert complaints == "" and len(found) == 5 * len(WIDTHS)
    drawn = {frame["page"]: len(frame["svgs"]) for frame in found}
    assert drawn["full"] >= 9 and drawn["plain"] >= 2 and drawn["bench"] == 2
    assert drawn["plan"] == 10 and drawn["plan of two"] == 5
    for frame in found:
        place = f"{frame['page']} at {frame['width']}"
        assert frame["scroll"] <= frame["client"], f"{place} scrolls sideways"
        for svg in frame["svgs"]:
            assert svg["width"] > 200 and svg["height"] > 30 and svg["marks"] > 0, place
            assert svg["over"] <= 4, f"{place}: a chart is drawn beyond its frame by {svg['over']}"
        ink, paper = luminance(frame["ink"]), luminance(frame["paper"])
        assert (ink > paper) == bool(flags), f"{place} is {frame['ink']} on {frame['paper']}"
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 7
