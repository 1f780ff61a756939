"""CITATION.cff is what its readers (GitHub, Zenodo, cffconvert) take."""

from __future__ import annotations

import yaml

import smet
from tests.pages import ROOT

KEYS = {
    "abstract", "authors", "cff-version", "keywords", "license", "message", "references", "title", "type", "version",
}  # fmt: skip
PERSON = {"given-names", "family-names", "name-particle"}


def test_the_file_has_what_version_1_2_of_the_format_asks_for_and_names_the_paper() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert told["cff-version"] == "1.2.0" and told["type"] == "software" and told.keys() == KEYS
    assert all(isinstance(told[key], str) and told[key] for key in ("message", "title", "version", "license"))
    assert [list(author) for author in told["authors"]] == [["name"]]
    (paper,) = told["references"]
    assert paper["type"] == "article" and paper["url"].endswith("/2606.00888") and paper["year"] == 2026
    assert len(paper["authors"]) == 9
    assert all({"given-names", "family-names"} <= author.keys() <= PERSON for author in paper["authors"])


def test_its_version_is_the_projects() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == smet.__version__
