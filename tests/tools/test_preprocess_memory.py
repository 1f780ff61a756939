"""Memory does not grow with the input: all processes together, at their peak, for one input and six of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tools.texts import ROOT, make_documents, write_jsonl


def peak_bytes(command: list[str]) -> int:
    """Largest sum over all processes of their proportional set size, looked at every tenth of a second."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as run:
        peak, root = 0, psutil.Process(run.pid)
        while run.poll() is None:
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    # It ended between the listing and the look.
                    continue
            peak = max(peak, total)
            time.sleep(0.1)
        assert run.returncode == 0
    return peak


@pytest.mark.slow
def test_peak_memory_is_flat(tmp_path: Path, model: str) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", make_documents(2500, words=900)).read_bytes()
    peaks = []
    for times in (1, 6):
        source = tmp_path / f"in{times}.jsonl"
        source.write_bytes(text * times)
        args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / f"c{times}"), "--workers", "2"]
        peaks.append(peak_bytes([sys.executable, "-m", "tools.preprocess", *args]))
    assert abs(peaks[1] / peaks[0] - 1) < 0.1, peaks
