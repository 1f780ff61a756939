"""docs/performance.md is what its JSON renders to."""

from __future__ import annotations

from pathlib import Path

from tools.bench import report
from tools.bench.__main__ import read

DOCS = Path(__file__).parent.parent.parent.parent / "docs"


def test_the_published_page_is_rendered_from_the_published_result() -> None:
    source, page = DOCS / "performance.json", DOCS / "performance.md"
    assert source.exists() == page.exists(), "publish both, or neither"
    rendered = report.page(read(source)) if source.exists() else ""
    published = page.read_text(encoding="utf-8") if page.exists() else ""
    assert published == rendered
    assert "a test run" not in published, "a quick run says nothing about speed"
