"""The documents against the code: links lead somewhere, command lines parse, the site is whole and loads nothing."""

import re
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from scripts.docs_hooks import IMAGE, LINK, PAGES, labelled, rewrite
from tests.command_lines import parse

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES_IN_DOCS = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES_IN_DOCS]
# An indented line that begins with it, or has a launcher before it, or code inside a line.
COMMAND = re.compile(r"^ {4}(?:accelerate launch [^\n]*?-m )?(mpcformer [^\n]+)$|`(mpcformer [^`\n]+)`", re.MULTILINE)
# An address cannot be wrapped.
ADDRESS = re.compile(r"https?://\S+|\]\([^)]+\)")
MAX_COLUMNS = 100
TARGET = re.compile(r"^ {4}make ([a-z-]+)|`make ([a-z-]+)`", re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def slug(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def anchors(path: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in path.read_text().splitlines() if re.match(r"#{1,6} ", line)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_relative_links_resolve(path: Path) -> None:
    for _, target in LINK.findall(path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_images_exist_and_say_what_they_show(path: Path) -> None:
    for text, target in IMAGE.findall(path.read_text()):
        assert (path.parent / target).is_file(), target
        assert len(text) > 10, target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_prose_is_wrapped(path: Path) -> None:
    fenced = False
    for line in path.read_text().splitlines():
        fenced ^= line.startswith("```")
        if not fenced and len(line) > MAX_COLUMNS and not line.startswith(("|", "    ", "![", "<!--")):
            assert len(ADDRESS.sub("", line)) <= MAX_COLUMNS, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_a_page_says_first_who_should_read_it(path: Path) -> None:
    title, _, first, *_ = path.read_text().splitlines()
    assert title.startswith("# ")
    assert first.startswith("This page is for "), first


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_drawings_are_images(path: Path) -> None:
    assert not re.search("[\u2500-\u257f\u25b2-\u25c4]", path.read_text()), "text art: draw an SVG in docs/figures"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_command_lines_parse(path: Path) -> None:
    for match in COMMAND.finditer(path.read_text()):
        line = match[1] or match[2]
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{line}: {getattr(error, 'message', error)}")


def test_the_check_notices_what_does_not_exist() -> None:
    parse("mpcformer certs init --party a --party b --out certs   # a comment")
    for line in (
        "mpcformer distil --teacher x",
        "mpcformer certs make --out certs",
        "mpcformer distill --no-such-option 1",
        "mpcformer distill --teacher",
        "mpcformer infer runs/student",
    ):
        with pytest.raises(Exception, match=r"(?i)no such|requires an argument|there is no command|belongs to no"):
            parse(line)
    (launched,) = COMMAND.finditer("    accelerate launch --multi_gpu -m mpcformer distil --out x")
    assert launched[1] == "mpcformer distil --out x"
    lines = [match[1] or match[2] for path in DOCUMENTS for match in COMMAND.finditer(path.read_text())]
    assert len(lines) > 40, "the pattern finds the documents' command lines"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {a or b for a, b in TARGET.findall(path.read_text())} <= targets


def test_every_page_is_in_the_nav() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [page for entry in nav for page in entry.values()]
    assert sorted(listed) == sorted([*PAGES.values(), *(path.name for path in PAGES_IN_DOCS)])


def test_links_are_rewritten_for_the_site() -> None:
    said = "[a](docs/results.md#x), [b](CONTRIBUTING.md), [c](https://example.org), [LICENSE](LICENSE)"
    assert rewrite(said, folder="") == "[a](results.md#x), [b](contributing.md), [c](https://example.org), LICENSE"
    said = "[a](results.md), [b](../README.md), [c](#x), [files](../parties/deploy)"
    assert rewrite(said, folder="docs") == "[a](results.md), [b](index.md), [c](#x), files (`parties/deploy`)"


def test_images_are_rewritten_for_the_site() -> None:
    assert rewrite("![a](docs/figures/x.svg)", folder="") == "![a](figures/x.svg)"
    assert rewrite("![a](figures/x.svg)", folder="docs") == "![a](figures/x.svg)"


def test_cells_of_tables_have_their_columns_names() -> None:
    table = (
        "<table><thead><tr><th></th><th>a <b>c</b></th></tr></thead>"
        '<tbody><tr><td>x</td><td style="y">1</td></tr></tbody></table>'
    )
    assert labelled(table) == table.replace('<td style="y">', '<td data-label="a c" style="y">')


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = list(tmp_path.rglob("*.html"))
    assert {page.stem for page in pages} >= {path.stem for path in PAGES_IN_DOCS} | {"index"}
    for page in pages:
        html = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?([^\"' >]+)", html)
        assert loaded
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)]
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text())
    assert (tmp_path / "search" / "search_index.json").is_file()
    # A browser lets no page that is opened from disk read a JSON file; it reads this one, by a shim that is ours.
    assert (tmp_path / "search" / "search_index.js").is_file()
    assert "javascripts/iframe-worker.js" in (tmp_path / "index.html").read_text()
