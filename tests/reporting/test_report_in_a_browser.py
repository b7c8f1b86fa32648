"""The report as Chromium shows it: sorted, filtered, nothing cut off or sticking out."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from prunezoo.reporting import papers
from prunezoo.reporting.pages.palette import COLOURS
from tests.support.synthetic_runs import SIZES

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="needs Chromium: apt-get install chromium")


def browse(page: Path, *options: str) -> str:
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-extensions",
    )
    command = [
        BROWSER,
        *flags,
        f"--user-data-dir={page.parent / 'profile'}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=50).stdout


PROBE = """<script>
addEventListener("load", () => {
  for (const closed of document.querySelectorAll("details")) closed.open = true;
  const table = document.querySelector("#runs table"), button = table.querySelectorAll("button")[1];
  const rows = () => [...table.tBodies[0].rows];
  const column = () => rows().map(row => parseFloat(row.cells[1].dataset.value));
  button.click(); const up = column();
  button.click(); const down = column();
  const first = table.tBodies[0].rows[0], frame = table.parentElement.getBoundingClientRect();
  const right = cell => cell.getBoundingClientRect().right;
  const seen = [...first.cells].slice(1).filter(cell => right(cell) <= frame.right);
  const clipped = [...document.querySelectorAll("figure svg text")].filter(text => {
    const t = text.getBoundingClientRect(), svg = text.ownerSVGElement.getBoundingClientRect();
    return t.left < svg.left - 1 || t.right > svg.right + 1;
  });
  document.title = JSON.stringify({
    up, down, wide: document.documentElement.scrollWidth, screen: innerWidth, seen: seen.length,
    small: Math.min(...[...document.querySelectorAll("figure svg")].map(s => s.clientWidth)),
    clipped: clipped.map(text => text.textContent),
  });
});
</script></body>"""


def probed(page: Path, folder: Path, probe: str, width: int) -> dict:
    copy = folder / "report.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    # virtual time: until the page's own timers are over
    options = ("--dump-dom", "--virtual-time-budget=5000", f"--window-size={width},900")
    text = browse(copy, *options)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text)[1]))


@needs_browser
@pytest.mark.parametrize("width", [1400, 500])  # 500 is the narrowest window that Chromium opens
def test_in_a_browser_tables_sort_and_nothing_sticks_out(page, tmp_path, width):
    title = probed(page, tmp_path, PROBE, width)
    assert title["up"] == sorted(title["up"])
    assert title["down"] == sorted(title["up"], reverse=True)
    assert len(set(title["up"])) > 4
    assert title["wide"] <= title["screen"]
    assert title["small"] > 250
    assert title["seen"] >= 2  # numbers of a row, without scrolling
    assert title["clipped"] == []


FILTER = """<script>
addEventListener("load", () => {
  const select = name => document.querySelector("select[name=" + name + "]");
  const choose = (name, value) => {
    select(name).value = value;
    select(name).dispatchEvent(new Event("change", {bubbles: true}));
  };
  const count = () => ({
    settings: document.querySelectorAll("section.of:not([hidden])").length,
    rows: document.querySelectorAll("tr[data-key]:not([hidden])").length,
    dim: document.querySelectorAll("figure .dim").length,
    tables: document.querySelectorAll("#papers details:not([hidden])").length,
  });
  const said = {whole: count()};
  choose("data", "CIFAR-10"); said.data = count();
  choose("paper", "PaT"); said.paper = count();
  document.querySelector("button[type=reset]").click();
  setTimeout(() => {
    said.reset = count();
    document.querySelector(".legend button").click(); said.method = count();
    document.title = JSON.stringify(said);
  }, 50);
});
</script></body>"""


@needs_browser
def test_in_a_browser_the_filter_shows_what_was_chosen(page, tmp_path):
    said = probed(page, tmp_path, FILTER, 1400)
    assert said["whole"] == said["reset"]
    assert said["whole"]["dim"] == 0
    assert said["data"]["settings"] == 1
    assert said["paper"]["settings"] == 0  # its runs are of no recipe of PaT's
    tables = [address for address in papers.tables() if address.startswith("pat/")]
    assert said["paper"]["tables"] == len(tables)
    assert said["method"]["rows"] == len(SIZES)
    assert said["method"]["dim"] > 0


@needs_browser
def test_a_screenshot_shows_figures_in_the_series_colours(page, tmp_path):
    shot = tmp_path / "page.png"
    browse(page, f"--screenshot={shot}", "--window-size=500,3000")
    with Image.open(shot) as image:
        colours = {c for _, c in image.convert("RGB").getcolors(2**24) or []}
    wanted = {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLOURS[:3]}
    assert wanted <= colours
