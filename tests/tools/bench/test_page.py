"""docs/performance.md and its siblings are what their JSON renders to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench.__main__ import page_of, read

DOCS = Path(__file__).parent.parent.parent.parent / "docs"


@pytest.mark.parametrize("name", ["performance", "performance-gpu", "performance-tiles"])
def test_the_published_page_is_rendered_from_the_published_result(name: str) -> None:
    source, page = DOCS / f"{name}.json", DOCS / f"{name}.md"
    assert source.exists() == page.exists(), "publish both, or neither"
    earlier = DOCS / f"{name}-before.json"
    rendered = page_of(read(source), read(earlier) if earlier.exists() else None) if source.exists() else ""
    published = page.read_text(encoding="utf-8") if page.exists() else ""
    assert published == rendered
    assert "a test run" not in published and "a rehearsal" not in published, "such runs say nothing about speed"
