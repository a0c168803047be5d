"""Hooks for `mkdocs build`: make pages from files outside docs/, and adapt links that leave the site.

README.md and CONTRIBUTING.md become pages without any copy in docs/. In a checkout a link may lead to any file. The
site contains only pages, so a link to any other file is replaced by that file's path.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# The files outside docs/ that become pages, and the pages' names.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


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


def rewrite(markdown: str, folder: str) -> str:
    """Return the text with its relative links adapted to the site.

    Args:
        markdown: the text of a file.
        folder: the file's folder in the repository, to which its links are relative.
    """

    def one(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in path or not path:
            return match.group()
        place = posixpath.normpath(posixpath.join(folder, path))
        found = PAGES.get(place) or (place.removeprefix("docs/") if re.fullmatch(r"docs/[^/]+\.md", place) else None)
        if found is None:
            return text if text == place else f"{text} (`{place}`)"
        return f"[{text}]({found}{hash_}{anchor})"

    return LINK.sub(one, markdown)
