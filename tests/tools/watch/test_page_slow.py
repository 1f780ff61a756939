"""What the page costs: nothing to the run that it shows, and a moment to whoever opens it over a long one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.watch.browser import Browser
from tests.tools.watch.folders import make_run, start_run
from tests.tools.watch.serving import Watch

pytestmark = pytest.mark.slow
STEPS = 100


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


def test_losses_are_the_same_bit_for_bit_with_the_page_open(tmp_path: Path, browser: Browser) -> None:
    """Two runs of about 10 s, most of it their start."""
    losses = []
    for watched in (False, True):
        folder = tmp_path / str(watched)
        process = start_run(folder, train__steps=STEPS, checkpoint__interval=50)
        watch = Watch(folder / "run") if watched else None
        page = browser.page()
        if watch is not None:
            page.open(watch.url)
            page.sees(f"{STEPS} of {STEPS}", "#runs", within=120)
        assert process.wait(120) == 0
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        losses.append([(row["step"], row["loss"], row["grad_norm"]) for row in rows])
        page.close()
        if watch is not None:
            watch.end()
    assert len(losses[0]) == STEPS and losses[0] == losses[1]


def test_a_hundred_thousand_steps_and_a_thousand_ranks_are_as_little_to_send_and_draw_as_a_screen_shows(
    tmp_path: Path, browser: Browser
) -> None:
    """Bytes and elements are counted: seconds hang on who else computes."""
    run = make_run(tmp_path / "long", 100_000, 200_000, ranks=1000)
    watch, page = Watch(run), browser.page()
    page.open(watch.url)
    page.sees("step 100,000", "#chart-loss")
    page.sees("1,000 ranks on 125 hosts", "#ranks")
    assert len(watch.ask("/news?have=%7B%7D")[2]) < (run / "metrics.jsonl").stat().st_size / 20
    assert page.js("document.querySelectorAll('*').length") < 1000  # some 430; fewer than there are ranks
    assert page.errors() == []
    watch.end()
