"""Open reports in headless Chromium, as a reader would."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The widths of a phone and of a common screen, in CSS pixels.
WIDTHS = (390, 1440)
# The report allows no script, so a page beside it shows it in one frame for each width and lists what is clipped there:
# the page or a table that scrolls sideways, and anything of a table or a figure that lies outside the frame.
FRAMES = """<!DOCTYPE html>{frames}<p id="clipped"></p><script>
const frames = [...document.querySelectorAll("iframe")], clipped = [];
let left = frames.length;
const note = (width, what, element) =>
  clipped.push(`${{width}}: ${{what}} ${{element.textContent.trim().slice(0, 60)}}`);
for (const frame of frames) frame.onload = () => {{
  const page = frame.contentDocument, width = frame.clientWidth;
  for (const element of page.querySelectorAll("html, .table, figure"))
    if (element.scrollWidth > element.clientWidth) note(width, "scrolls: " + element.tagName, element);
  for (const element of page.querySelectorAll("th, td, dt, dd, svg, svg text, svg rect, img")) {{
    const box = element.getBoundingClientRect();
    if (box.left < -0.5 || box.right > width + 0.5) note(width, "outside: " + element.tagName, element);
  }}
  if (--left === 0) document.getElementById("clipped").textContent = JSON.stringify(clipped);
}};
</script>"""


def check_page(report: Path, folder: Path, *words: str) -> None:
    """Check that a report opens, shows the words, can be printed, and clips nothing on a phone or a common screen.

    The test is skipped where no browser is installed.

    Args:
        report: an HTML file.
        folder: an empty folder for what the browser writes.
        words: texts that the page must show.
    """
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if not chromium:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    base = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]

    def call(*options: str) -> str:
        done = subprocess.run([*base, *options], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    picture, printed, frame = folder / "page.png", folder / "page.pdf", folder / "frame.html"
    call("--window-size=390,1600", f"--screenshot={picture}", report.as_uri())
    assert picture.stat().st_size > 20_000, "an empty page is a few KB"
    call("--no-pdf-header-footer", f"--print-to-pdf={printed}", report.as_uri())
    assert printed.read_bytes().startswith(b"%PDF-")
    assert printed.stat().st_size > 10_000
    shown = call("--dump-dom", report.as_uri())
    assert not [word for word in words if word not in shown]
    frames = "".join(
        f'<iframe width="{width}" height="800" style="border: 0" src="{report.as_uri()}"></iframe>' for width in WIDTHS
    )
    frame.write_text(FRAMES.format(frames=frames))
    measured = call("--disable-web-security", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    clipped = re.search(r'<p id="clipped">(\[.*?\])</p>', measured, re.DOTALL)
    assert clipped, measured
    assert json.loads(unescape(clipped[1])) == [], "a reader would have to scroll sideways"
