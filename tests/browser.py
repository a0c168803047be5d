"""Headless Chromium, as a reader of reports would use a browser."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The page lies in a frame as wide as a phone; a script beside it, for the page allows none, reads how wide it came out.
FRAME = """<!DOCTYPE html><iframe id="page" width="390" height="800" src="{address}"></iframe><p id="width"></p><script>
const page = document.getElementById("page");
page.onload = () => document.getElementById("width").textContent = page.contentDocument.documentElement.scrollWidth;
</script>"""


def check_page(report: Path, folder: Path, *words: str) -> None:
    """A report opens, shows the words, fits a phone's width and can be printed; skipped without a browser.

    Args:
        report: an HTML file.
        folder: an empty one, for what the browser writes.
        words: shown on the page.
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
    frame.write_text(FRAME.format(address=report.as_uri()))
    measured = call("--disable-web-security", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    width = re.search(r'<p id="width">(\d+)</p>', measured)
    assert width, measured
    assert int(width[1]) <= 390, "a phone's reader would have to scroll sideways"
