"""Open reports in headless Chromium, as a reader would in a browser."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The page is shown in a frame as wide as a phone. The page allows no scripts, so a script beside the frame measures how
# wide the page becomes.
FRAME = """<!DOCTYPE html><iframe id="page" width="390" height="800" src="{address}"></iframe><p id="width"></p><script>
const page = document.getElementById("page");
page.onload = () => document.getElementById("width").textContent = page.contentDocument.documentElement.scrollWidth;
</script>"""


def check_page(report: Path, folder: Path, *words: str) -> None:
    """Check that a report opens, shows some words, fits the width of a phone and can be printed.

    The test is skipped if no browser is installed.

    Args:
        report: an HTML file.
        folder: an empty folder for the browser's files.
        words: words that the page must show.
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
    assert picture.stat().st_size > 20_000, "an empty page has only a few KB"
    call("--no-pdf-header-footer", f"--print-to-pdf={printed}", report.as_uri())
    assert printed.read_bytes().startswith(b"%PDF-")
    assert printed.stat().st_size > 10_000
    shown = call("--dump-dom", report.as_uri())
    assert not [word for word in words if word not in shown]
    frame.write_text(FRAME.format(address=report.as_uri()))
    measured = call("--disable-web-security", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    width = re.search(r'<p id="width">(\d+)</p>', measured)
    assert width, measured
    assert int(width[1]) <= 390, "a reader with a phone would have to scroll sideways"
