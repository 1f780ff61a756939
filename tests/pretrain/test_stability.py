"""Spikes told from noise, and the jump of the loss after an update against the noise before it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.callbacks.stability import AFTER, StabilityCallback
from pretrain.run_folder import RunFolder
from pretrain.stability import RobustWindow


def test_a_window_tells_spikes_from_noise() -> None:
    window = RobustWindow(64, floor=0.02)
    assert window.deviations(1e9) == 0.0 and not window.ready
    for i in range(64):
        window.add(3.0 + 0.1 * (i % 7 - 3))
    window.add(float("nan"))
    window.add(50.0)  # one outlier moves neither median nor spread
    assert abs(window.deviations(3.3)) < 3
    assert window.deviations(6.0) > 10
    assert window.deviations(float("inf")) == float("inf")
    other = RobustWindow(64, floor=0.02)
    other.load_state_dict(window.state_dict())
    assert other.deviations(3.4) == window.deviations(3.4)


def test_a_quiet_past_does_not_make_spikes_of_small_noise() -> None:
    window = RobustWindow(32, floor=0.02)
    for _ in range(32):
        window.add(2.0)
    assert window.deviations(2.1) < 3


def follow(callback: StabilityCallback, losses: list[float], update_at: int, first: int = 1) -> list[dict[str, Any]]:
    """Records of steps with these losses; a topology update ends step ``update_at``."""
    records = []
    for step, loss in enumerate(losses, start=first):
        record: dict[str, Any] = {"loss": loss, "skipped": False}
        if step == update_at:
            record["topology"] = SimpleNamespace(update=3)
        trainer: Any = SimpleNamespace(step=step, layout=SimpleNamespace(is_main=True))
        callback.after_step(trainer, record)
        records.append(record)
    return records


def losses(jump: float) -> list[float]:
    rng = random.Random(0)
    return [3.0 + rng.gauss(0, 0.02) + (jump if step > 40 else 0.0) for step in range(1, 61)]


@pytest.mark.parametrize("jump", [0.0, 0.3])
def test_a_jump_after_an_update_is_measured_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jump: float
) -> None:
    records = follow(StabilityCallback(RunFolder(tmp_path)), losses(jump), update_at=40)
    judged = [step for step, record in enumerate(records, start=1) if "update_loss_jump" in record]
    assert judged == [40 + AFTER]
    found = records[40 + AFTER - 1]
    assert found["update_loss_jump"] == pytest.approx(jump, abs=0.03)
    warned = capsys.readouterr().out
    if jump:
        assert found["update_loss_deviations"] > 20
        assert "warning: the loss rose by 0.3" in warned and "after topology update 3 (step 40)" in warned
        (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
        assert (event["kind"], event["step"], event["update"]) == ("jump", 40, 3)
    else:
        assert abs(found["update_loss_deviations"]) < 5 and warned == "" and list(tmp_path.iterdir()) == []


def test_a_resume_between_update_and_judgement_changes_nothing(tmp_path: Path) -> None:
    whole = follow(StabilityCallback(RunFolder(tmp_path)), losses(0.3), update_at=40)
    first, second = StabilityCallback(RunFolder(tmp_path)), StabilityCallback(RunFolder(tmp_path))
    parts = follow(first, losses(0.3)[:44], update_at=40)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    parts += follow(second, losses(0.3)[44:], update_at=40, first=45)
    jumps = [[record.get("update_loss_jump") for record in records] for records in (whole, parts)]
    assert jumps[0] == jumps[1]
