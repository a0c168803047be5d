"""What `mkdocs build` does besides: pages from files above docs/, and links that leave the site.

README.md and CONTRIBUTING.md become pages as they are, so that nothing is written twice. In a checkout a link may
lead to any file; the site has pages only, so there such a link becomes the file's path.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# File above docs/ -> page.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=rewrite(content, folder="")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend the links of pages that lie in docs/."""
    uri: str = page.file.src_uri
    return markdown if uri in PAGES.values() else rewrite(markdown, folder="docs")


def rewrite(markdown: str, folder: str) -> str:
    """Relative links as the site needs them.

    Args:
        markdown: a file's text.
        folder: where the file lies in the repository; its links are relative to it.
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
