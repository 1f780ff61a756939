"""The page in a real browser, over runs that are made up and over one that trains meanwhile."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.watch.browser import Browser, Page
from tests.tools.watch.folders import add, beat, make_run, record, start_run, update
from tests.tools.watch.serving import Watch

LOOKS = 5
"""How often, once a second, a page asks for news until it shows what a run has written."""
NAMED = ("button", "image", "img", "link", "region", "grid", "gridcell", "dialog", "toolbar")
FOCUSED = "[document.activeElement.id, document.activeElement.className].filter(Boolean)[0]"
SCRIPT = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run that trains while the tests go on."""
    folder = tmp_path_factory.mktemp("real")
    process = start_run(folder)
    yield folder / "run"
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Started while the real run starts too."""
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A blank page; whatever a test does with it, nothing of it goes wrong unheard, nor leaves this machine."""
    found = browser.page()
    yield found
    assert found.errors() == []
    assert all(url.startswith("http://127.0.0.1:") or url == "about:blank" for url in found.fetched())
    found.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tuple[Path, Path], str]]:
    """Two made-up runs, and where their page is."""
    folder = tmp_path_factory.mktemp("two")
    runs = make_run(folder / "sparse", 160, 200), make_run(folder / "dense", 90, 200, seed=1)
    watch = Watch(*runs)
    yield runs, watch.url
    assert watch.end() == (0, "watch ended; the runs go on\n", "")


@pytest.fixture
def two(served: tuple[tuple[Path, Path], str], page: Page) -> Iterator[tuple[Path, Path]]:
    """The two, open in the page, which remembers nothing of what a test before has set."""
    runs, url = served
    page.open(url)
    page.sees("step 160", "#chart-loss")
    yield runs
    page.js("localStorage.clear()")
    page.leave()


def soon(page: Page, *expected: tuple[str, str]) -> None:
    """See all of (text, selector), in few looks."""

    def asked() -> int:
        return sum("/news?" in url for url in page.fetched())

    before = asked()
    for text, selector in expected:
        page.sees(text, selector)
    assert asked() - before <= LOOKS


TINTS = """((chart) => {
  const canvas = document.querySelector(`#chart-${chart} canvas`);
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const found = {};
  for (const name of ['run0', 'run1']) {
    const hex = getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
    const want = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    found[name] = 0;
    for (let at = 0; at < data.length; at += 4) {
      const near = want.every((value, c) => Math.abs(value - data[at + c]) < 12);
      if (near && data[at + 3] > 200) found[name]++;
    }
  }
  return found;
})"""
READOUT = "document.querySelector('#chart-loss .readout')?.innerText"
STEP = rf"Number((/step ([\d,]+)/.exec({READOUT})?.[1] ?? '0').replace(',', ''))"


def tints(page: Page, chart: str) -> dict[str, int]:
    """How many pixels of a chart's canvas have each colour that a run's line may have, about."""
    return dict(page.js(f"{TINTS}({json.dumps(chart)})"))


def test_two_runs_lie_over_each_other_and_keys_do_all_that_the_mouse_does(two: tuple[Path, Path], page: Page) -> None:
    both = tints(page, "loss")
    assert both["run0"] > 150 and both["run1"] > 150, both
    page.press("2")
    page.until("document.querySelector('[data-run=\"1\"]').getAttribute('aria-pressed') === 'false'")
    alone = tints(page, "loss")
    assert alone["run1"] < 20 < alone["run0"], alone
    page.press("2")
    page.press("x")
    page.sees("tokens", "#axis")
    assert "tokens" in page.text("#chart-loss .readout")
    for key, selector, words in (("s", "#smooth", "strong"), ("l", "#scale", "log"), ("p", "#pause", "go on")):
        page.press(key)
        page.sees(words, selector)
    page.press("p")
    page.press("d")
    page.until("document.querySelector('#chosen [aria-pressed=true]')?.innerText === 'dense'")
    page.press("?")
    page.until("document.getElementById('keys').open")
    assert "steps or tokens" in page.text("#keys")
    page.press("Escape")
    page.until("!document.getElementById('keys').open")
    # On a chart, arrow keys read values.
    page.js("document.querySelector('#chart-loss .plot').focus()")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    page.sees(f"{158 * 4096 / 1e3:.0f}k tokens", "#chart-loss .readout")
    # A part is chosen with the mouse, and left by a key.
    left, top, width = page.js(
        "(() => { const r = document.querySelector('#chart-loss .u-over').getBoundingClientRect();"
        " return [r.left, r.top, r.width] })()"
    )
    page.drag(left + width * 0.25, top + 50, left + width * 0.5, top + 60)
    page.until("!document.getElementById('reset').hidden")
    page.press("r")
    page.until("document.getElementById('reset').hidden")


def test_everything_has_a_name_and_nothing_is_wider_than_a_telephone(two: tuple[Path, Path], page: Page) -> None:
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    unnamed = [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in NAMED and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    page.js("document.body.focus()")
    order = []
    for _ in range(12):
        page.press("Tab")
        order.append(page.js(FOCUSED))
    assert order[0] == "skip" and order[1:6] == ["axis", "smooth", "scale", "pause", "theme"] and "plot" in order
    for width in (360, 768, 1600):
        page.resize(width, 800)
        page.until(f"document.documentElement.scrollWidth <= {width}")
    grounds = []
    for dark in (False, True):
        page.resize(1280, 900, dark=dark)
        time.sleep(0.1)
        grounds.append(page.js("getComputedStyle(document.body).backgroundColor"))
    page.press("t")  # light, whatever the system says
    page.sees("theme: light", "#theme")
    page.until(f"getComputedStyle(document.body).backgroundColor === {json.dumps(grounds[0])}")
    assert grounds[0] != grounds[1]


def test_new_points_marks_a_rollback_and_a_stopped_rank_are_seen_soon(two: tuple[Path, Path], page: Page) -> None:
    sparse, _ = two
    assert "4 + 2 topology updates" in page.text(".marks")
    add(sparse / "metrics.jsonl", record(161), record(162, loss=9.8765, validation_loss=4.3210))
    add(sparse / "topology.jsonl", update(162, 5))
    add(sparse / "events.jsonl", {"time": time.time(), "kind": "skip", "step": 161, "why": "loss 9.9 is high"})
    soon(
        page,
        ("step 162", "#chart-loss"),
        ("validation 4.321", "#chart-loss"),
        ("5 + 2 topology updates", ".marks"),
        ("1 + 0 skipped step", ".marks"),
        ("loss 9.9 is high", "#events"),
    )
    # A rollback as the guard does it: the event, and metrics without what comes after the checkpoint.
    kept = (sparse / "metrics.jsonl").read_text().splitlines(keepends=True)[:120]
    (sparse / "metrics.jsonl.tmp").write_text("".join(kept))
    (sparse / "metrics.jsonl.tmp").rename(sparse / "metrics.jsonl")
    add(sparse / "events.jsonl", {"time": time.time(), "kind": "rollback", "step": 162, "to": 120, "rollbacks": 1})
    soon(page, ("1 + 0 rollback", ".marks"), ("120 of 200", "#runs"))
    beat(sparse, 0, 120)
    beat(sparse, 1, 117, alive=time.time() - 75, moved=time.time() - 80, phase="reading data")
    soon(page, ("Rank 1 on node-00 lags: step 117, reading data", "#ranks"))
    assert "no sign of life" in page.text("#ranks")


def test_a_hostile_run_folder_shows_as_text(tmp_path: Path, page: Page) -> None:
    run = make_run(tmp_path / "<b>bold<script>alert(3)<", 50, 100, ranks=0)
    name = f"model.layers.0.{SCRIPT}"
    add(run / "events.jsonl", {"time": time.time(), "kind": SCRIPT, "step": 3, "why": f"</li>{SCRIPT}"})
    add(run / "topology.jsonl", update(50, 2, density={name: 0.5}, moved={name: 3}))
    add(run / "samples.jsonl", {"step": 50, "prompt": SCRIPT, "text": f"{SCRIPT} and more"})
    add(run / "metrics.jsonl", {"step": SCRIPT}, {"step": 51, "loss": SCRIPT, "validation_loss": SCRIPT})
    (run / "metrics.jsonl").open("ab").write(b"\xff<script>\n{}\n")
    beat(run, 0, 50, host=SCRIPT, phase=SCRIPT)
    (run / "config.yaml").write_text(f"train: {{steps: 100}}\nsparsity: {{method: {json.dumps(SCRIPT)}}}\n")
    (run / "memory.json").write_text(
        json.dumps(
            {"measured_per_rank": [{SCRIPT: {SCRIPT: 5}}], "sparse_layers": {"measured": 1, "planned_if_dense": 2}}
        )
    )
    (run / "checkpoints" / "step-00000050").mkdir(parents=True)
    watch = Watch(run)
    page.open(watch.url)
    page.sees(SCRIPT, "#events")
    for selector in ("#ranks", "#samples", "#runs"):
        page.sees(SCRIPT, selector)
    page.until(f"document.querySelector('[data-layer]')?.dataset.layer === {json.dumps(name)}")
    page.sees("damaged", "#checkpoints")
    assert "<b>bold<script>alert(3)<" in page.text("#runs")
    page.sees("3 lines of metrics.jsonl cannot be used", "#runs")
    assert page.js("document.querySelectorAll('main img, main script, main b b').length") == 0
    page.leave()
    assert watch.end()[0] == 0


def test_a_run_of_more_steps_than_train_steps_says_now_is_not_step_12_of_5(page: Page, tmp_path: Path) -> None:
    watch = Watch(make_run(tmp_path / "lowered", 12, 5))
    page.open(watch.url)
    page.sees("12, beyond 5", "#runs")
    page.leave()
    assert watch.end()[0] == 0


def test_a_run_that_trains_is_followed_with_its_masks(real: Path, page: Page) -> None:
    watch = Watch(real)
    page.open(watch.url)
    page.until(f"{STEP} > 0", within=60)
    page.until(
        f"{STEP} > {page.js(STEP)}", within=60
    )  # its steps come when the machine has time; what is there is soon
    page.sees("running", "#runs")
    soon(page, ("1 rank on 1 host", "#ranks"))
    page.sees("whole", "#checkpoints", within=60)
    page.until("document.querySelector('#mask canvas.picture') !== null", within=60)
    note = page.text("#mask .note")
    assert "model.layers.0.self_attn.q_proj" in note and "24 x 24 tiles of 1 x 1" in note and "% active" in note
    shades = page.js(
        "(() => { const c = document.querySelector('#mask canvas.picture');"
        " const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);"
        " return [c.width, c.height, new Set(d).size, d.filter((v) => v === d[0]).length] })()"
    )
    assert shades[:2] == [24, 24] and shades[2] >= 3, "inactive tiles, and active ones of several ages"
    page.press("]")
    page.sees("model.layers.0.self_attn.k_proj", "#mask .note")
    page.press("v")
    page.until("document.getElementById('by-moved').getAttribute('aria-pressed') === 'true'")
    page.until("[...document.querySelectorAll('[data-layer]')].some((cell) => Number(cell.innerText) > 0)")
    page.leave()
    assert watch.end()[0] == 0
