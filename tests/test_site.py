"""The pages are built into a site: strictly, with every link leading somewhere, and nothing fetched from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import smet
from tests.pages import ROOT

FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""Elements whose address a browser fetches by itself."""


class Page(HTMLParser):
    """What one page of the site has and refers to."""

    def __init__(self, path: Path):
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, links, and what is fetched."""
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.places.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if FETCHED.get(tag) in given:
            self.fetched.append(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"a page of docs/ needs its line in mkdocs.yml, a link its target:\n{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """By path in the site."""
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    lost = []
    for name, page in pages.items():
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or name == "404.html":
                continue
            target = (site / name).parent.joinpath(unquote(parts.path)).resolve() if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            known = pages.get(target.relative_to(site).as_posix())
            if not target.is_file() or (place and known is not None and place not in known.places):
                lost.append(f"{name}: {link}")
    assert lost == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_nothing_is_fetched_from_outside(site: Path, pages: dict[str, Page]) -> None:
    asked = {address for page in pages.values() for address in page.fetched}
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        asked |= {found.strip("\"'") for found in re.findall(r"(?:url\(|@import\s)\s*([^);]+)", text)}
    assert [address for address in asked if re.match(r"(https?:)?//", address)] == []


def test_every_page_is_found_by_the_search_and_in_the_menu(site: Path, pages: dict[str, Page]) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] or "index.html" for entry in index["docs"]}
    built = pages.keys() - {"404.html"}
    assert found == built
    assert built <= {link.partition("#")[0] for link in pages["words.html"].links} | {"words.html"}


def test_every_public_name_of_the_library_is_explained(pages: dict[str, Page]) -> None:
    assert {f"smet.{name}" for name in smet.__all__} - pages["api-smet.html"].places == set()
