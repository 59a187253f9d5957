"""The HTML report: whole, self-contained, harmless, and drawn by a real browser where there is one."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

import trtkp
from trtkp.comparison import Comparison
from trtkp.comparison.files import check_target
from trtkp.comparison.report import render, write_report
from trtkp.errors import InputError, JobError

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Text, scripts by id, and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.elements: list[str] = []
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append(tag)
        self.addresses += [found[key] or "" for key in ("src", "href", "srcset", "data", "action") if key in found]
        self._script = (found.get("id") or "") if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> dict[str, Any]:
        return {
            name.removesuffix("-figure"): json.loads(text)
            for name, text in self.scripts.items()
            if name.endswith("-figure")
        }


@pytest.fixture(scope="module")
def report(comparison: Comparison) -> str:
    return render(comparison, command="trtkp compare dense kep --html x.html")


def test_it_holds_everything_and_loads_nothing(report: str) -> None:
    page = Page(report)
    assert page.addresses
    assert {address.split(":")[0] for address in page.addresses} == {"data"}
    assert "default-src 'none'" in report
    assert "import(" not in page.scripts[""]
    assert gzip.decompress(b64decode(page.scripts["plotly"])).decode() == get_plotlyjs()
    assert len(report) < 2.5e6


def test_figures_are_plots_that_plotly_knows(report: str, comparison: Comparison) -> None:
    figures = Page(report).figures
    assert list(figures) == ["quality", "speed-up", "throughput", "where", "layers"]
    for figure in figures.values():
        made = go.Figure(figure)  # validates every attribute
        assert made.data
        assert "template" not in figure["layout"] or len(json.dumps(figure["layout"]["template"])) < 2000
    quality = figures["quality"]["data"]
    assert [trace["name"] for trace in quality] == [entry.label for entry in comparison.entries]
    assert [trace["y"] for trace in quality] == [[100 * (entry.accuracy or 0)] for entry in comparison.entries]
    assert [trace["x"] for trace in quality] == [[entry.latencies[-1].timing.median_ms] for entry in comparison.entries]
    bars = [trace for trace in figures["speed-up"]["data"] if trace["type"] == "bar"]
    for trace, entry in zip(bars, comparison.entries[1:], strict=True):
        for i, latency in enumerate(entry.latencies):
            ratio = latency.speed_up
            assert trace["y"][i] == ratio.value
            assert trace["y"][i] + trace["error_y"]["array"][i] == pytest.approx(ratio.high)
            assert trace["y"][i] - trace["error_y"]["arrayminus"][i] == pytest.approx(ratio.low)
    bounds = {t["name"]: t["y"][0] for t in figures["speed-up"]["data"] if t["type"] == "scatter"}
    assert bounds == {
        f"bound of {e.label}": e.costs.bound for e in comparison.entries if e.costs is not None and e.costs.bound != 1
    }
    assert figures["layers"]["data"][0]["y"] == ["w0", "w1", "w2", "fc"]
    assert len(figures["layers"]["data"]) == 2 * len(comparison.entries)


def test_text_says_what_was_done(report: str, comparison: Comparison) -> None:
    text = Page(report).text
    for entry in comparison.entries:
        assert entry.label in text
    assert "trtkp compare dense kep --html x.html" in text
    assert "all 21 samples of data.npz" in text
    assert "opened 5 times. Each time it was warmed up with 1 rounds" in text
    assert "8 rounds per batch size" in text
    assert comparison.environment["onnxruntime"] in text
    assert comparison.entries[1].command is not None
    assert comparison.entries[1].command in text
    assert "index 304 B (paper 1 B)" in text


def test_density_maps_are_pictures_of_the_index_sets(report: str, comparison: Comparison) -> None:
    pictures = [address for address in Page(report).addresses if address.startswith("data:image/png;base64,")]
    images = [Image.open(io.BytesIO(b64decode(picture.split(",")[1]))) for picture in pictures]
    maps = [one for entry in comparison.entries for one in entry.density_maps]
    assert len(maps) == 5
    cells = [array for one in maps for array in (one.cells, one.taps)]
    for image, array in zip(images, cells, strict=True):
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB"))
        assert colours.shape[:2] == array.shape
        # one colour for one value, brighter for more
        brightness = colours.astype(float) @ [0.3, 0.59, 0.11]
        values = np.unique(array)
        shades = [brightness[array == value] for value in values]
        assert all(np.ptp(shade) == 0 for shade in shades)
        assert all(np.diff([shade[0] for shade in shades]) > 0)


def test_without_labels_and_profile(comparison: Comparison) -> None:
    entries = tuple(replace(entry, accuracy=None, layers=None, notes=("why <not>",)) for entry in comparison.entries)
    page = Page(render(replace(comparison, entries=entries[:2], batches=(8,))))
    assert list(page.figures) == ["quality", "speed-up"]
    assert page.figures["quality"]["layout"]["yaxis"]["type"] == "log"
    assert all(value > 0 for trace in page.figures["quality"]["data"] for value in trace["y"])
    assert "dense: why <not>." in page.text


def test_names_cannot_become_markup(comparison: Comparison) -> None:
    hostile = tuple(
        replace(
            entry,
            name=HOSTILE,
            label=f"{HOSTILE}{i}",
            settings={HOSTILE: HOSTILE},
            command=HOSTILE,
            layers=entry.layers
            and replace(entry.layers, layers=tuple(replace(one, name=HOSTILE) for one in entry.layers.layers)),
            density_maps=tuple(replace(one, layer=HOSTILE) for one in entry.density_maps),
            notes=(HOSTILE,),
        )
        for i, entry in enumerate(comparison.entries)
    )
    plain, text = Page(render(comparison)), render(replace(comparison, entries=hostile, data=HOSTILE), command=HOSTILE)
    page = Page(text)
    assert page.elements.count("script") == plain.elements.count("script")
    assert page.elements.count("img") == plain.elements.count("img")
    assert page.addresses == plain.addresses
    assert "<img src=x" not in text
    for figure in page.figures.values():  # plotly itself reads markup in texts
        for trace in figure["data"]:
            assert "<" not in trace.get("name", "")
            assert "<img" not in trace["hovertemplate"]


def test_written_whole_or_not_at_all(comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    assert write_report(comparison, target) == target
    before = target.read_text(encoding="utf-8")
    assert before.rstrip().endswith("</html>")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trtkp.files.os.fsync", full)
    with pytest.raises(JobError, match=r"report\.html: cannot be written \(No space left on device\)"):
        trtkp.write_report(comparison, target)
    assert target.read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_places_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kep").mkdir()
    (tmp_path / "net.onnx").touch()
    with pytest.raises(InputError, match="kep: is a directory"):
        check_target(tmp_path / "kep")
    with pytest.raises(InputError, match="its directory does not exist"):
        check_target(tmp_path / "no" / "x.html")
    for place in ("kep/x.html", "net.onnx"):
        with pytest.raises(InputError, match="would overwrite"):
            check_target(tmp_path / place, [tmp_path / "kep", tmp_path / "net.onnx"])
    monkeypatch.setattr("trtkp.comparison.files.os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="cannot be written"):
        check_target(tmp_path / "x.html")


def test_missing_package_names_the_extra(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkp.machine.packages.importable", lambda module: module != "plotly")
    with pytest.raises(JobError, match=r"a report needs plotly; pip install 'trtkp\[report\]'"):
        render(comparison)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="package playwright is not installed: no browser test")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome"))
    program = next(filter(None, found), None)
    if program is None:
        pytest.skip("no Chromium or Chrome on PATH: the report is not opened in a browser (apt-get install chromium)")
    with sync.sync_playwright() as playwright:
        # without its sandbox, which containers do not allow: it opens our own file only
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "scheme", "width"), [(2, "light", 1200), (2, "dark", 400), (5, "dark", 1200), (5, "light", 360)]
)
def test_in_a_browser(
    browser: Any, comparison: Comparison, tmp_path: Path, count: int, scheme: str, width: int
) -> None:
    path = write_report(replace(comparison, entries=comparison.entries[:count]), tmp_path / "report.html")
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
    messages: list[str] = []
    view = context.new_page()
    view.on("console", lambda message: messages.append(message.text))
    view.on("pageerror", lambda error: messages.append(str(error)))
    view.on("request", lambda request: messages.append(request.url) if request.url != path.as_uri() else None)
    view.goto(path.as_uri())
    view.wait_for_function(
        "document.documentElement.dataset.drawn || document.documentElement.dataset.failed", timeout=60_000
    )
    assert view.evaluate("document.documentElement.dataset.failed") is None
    assert [message for message in messages if not message.startswith("data:")] == []
    plots = view.locator(".plot")
    assert plots.count() == 5
    for i in range(plots.count()):
        plot = plots.nth(i)
        assert plot.locator("svg.main-svg").count() > 0
        assert plot.locator(".bars path, .scatterlayer path").count() > 0
        box = plot.locator("svg.main-svg").first.bounding_box()
        assert 0.8 * (width if width < 1080 else 1040) < box["width"] + 40 <= width + 40
    # nothing but wide tables scrolls sideways, and those in their own frame
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    ink = [int(part) for part in re.findall(r"\d+", view.evaluate("getComputedStyle(document.body).color"))]
    paper = [int(p) for p in re.findall(r"\d+", view.evaluate("getComputedStyle(document.body).backgroundColor"))]
    assert (sum(ink) > sum(paper)) == (scheme == "dark")
    assert (
        view.evaluate("document.querySelector('#where .xtick text').style.fill") == f"rgb({', '.join(map(str, ink))})"
    )
    # the other scheme arrives while the page is open
    view.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
    view.wait_for_function(
        "(before) => document.querySelector('#where .xtick text').style.fill !== before",
        arg=f"rgb({', '.join(map(str, ink))})",
        timeout=10_000,
    )
    context.close()
