"""The quickstart as a newcomer runs it: networks that have seen no label come to know classes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.training.log import read_log


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of it: of this test, or the one that CI began with."""
    if "QUICKSTART_RUN" in os.environ:
        return Path(os.environ["QUICKSTART_RUN"])
    command = [str(Path(sys.executable).with_name("mmssl")), "run", "quickstart"]
    done = subprocess.run(
        [*command, f"runs={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "quickstart"
    assert f"run folder: {run}" in done.stdout.replace("\n", "")
    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_learns(run: Path) -> None:
    found = json.loads((run / "evaluations/linear_probe/metrics.json").read_text())
    assert found["chance"] == 0.125
    for modality, gain in (("video", 0.25), ("audio", 0.12)):
        assert found[f"{modality}/test_samples"] == 400
        assert found[f"{modality}/top1"] > 0.7
        assert found[f"{modality}/gain"] > gain
    rounds = [record for record in read_log(run) if record["kind"] == "round"]
    assert len(rounds) == 10
    first, last = rounds[0], rounds[-1]
    for modality in ("video", "audio"):
        assert last[f"{modality}/purity"] > first[f"{modality}/purity"] + 0.1
        assert last[f"{modality}/nmi"] > first[f"{modality}/nmi"] + 0.1
    # Before training, what is seen and what is heard cluster independently.
    assert first["video-audio/nmi"] < 0.15
    assert last["video-audio/nmi"] > 0.3
