"""Hooks of `mkdocs build`: pages from files above docs/, links that leave the site, and names of columns in tables.

README.md and CONTRIBUTING.md become pages as they are, so that nothing is written twice. In a checkout a link may
lead to any file, but the site has pages only, so such a link becomes the file's path.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# The files outside docs/ that become pages, and the pages' names.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
HEADING_CELL = re.compile(r"<th\b[^>]*>(.*?)</th>", re.DOTALL)
ROW = re.compile(r"<tr>.*?</tr>", re.DOTALL)
CELL = re.compile(r"<td\b")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages whose files are outside docs/."""
    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=rewrite(content, folder="")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adapt the links of pages whose files are in docs/."""
    uri: str = page.file.src_uri
    return markdown if uri in PAGES.values() else rewrite(markdown, folder="docs")


def on_page_content(page_html: str, **_: Any) -> str:
    """Give each cell of a table its column's name, which a narrow screen shows in place of the table's head."""
    return TABLE.sub(lambda match: labelled(match.group()), page_html)


def labelled(table: str) -> str:
    """Return a table's HTML with `data-label` in each cell below a named column."""
    names = [html.escape(re.sub(r"<[^>]+>", "", cell).strip(), quote=True) for cell in HEADING_CELL.findall(table)]

    def row(match: re.Match[str]) -> str:
        columns = iter(names)

        def cell(_: re.Match[str]) -> str:
            name = next(columns, "")
            return f'<td data-label="{name}"' if name else "<td"

        return CELL.sub(cell, match.group())

    return ROW.sub(row, table)


def rewrite(markdown: str, folder: str) -> str:
    """Return a page's text with relative links and images as the site needs them.

    Args:
        markdown: the text of a file.
        folder: the file's folder in the repository, to which its links are relative.
    """

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in path or not path:
            return match.group()
        place = posixpath.normpath(posixpath.join(folder, path))
        found = PAGES.get(place) or (place.removeprefix("docs/") if re.fullmatch(r"docs/[^/]+\.md", place) else None)
        if found is None:
            return text if text == place else f"{text} (`{place}`)"
        return f"[{text}]({found}{hash_}{anchor})"

    def image(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, match[2]))
        return f"![{match[1]}]({place.removeprefix('docs/')})"

    return IMAGE.sub(image, LINK.sub(link, markdown))
