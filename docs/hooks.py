"""What mkdocs does beside rendering docs/: pages of the top level join the site, and links to them are turned.

In the checkout these pages link to ``docs/x.md``, and pages of docs/ to ``../X.md``; in the files both stay so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File of the top level -> page of the site."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the top level."""
    top = Path(config["docs_dir"]).parent
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(top / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between docs/ and the top level to where the pages lie in the site."""
    for name, target in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({target}").replace(f"]({name}", f"]({target}")
    if page.file.src_uri in PAGES.values():
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    return markdown
