"""AVBert's quickstart as a newcomer runs it: from no label to the order of what is seen and heard.

What the videos are made of decides what can be known of their twelve classes: nothing by networks
that see seconds one by one, half of the answers by one modality, all of them by both.
"""

import json
import subprocess
from pathlib import Path

import pytest
from small_runs import MMSSL, environment

from mmssl.training.log import read_log

CHANCE = 1 / 12
HALF = 1 / 2
# Three standard deviations of an accuracy on 396 videos, at chance and at a half.
AT_CHANCE = CHANCE + 0.042
AT_HALF = HALF + 0.075


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_of_avbert_learns(tmp_path: Path) -> None:
    done = subprocess.run(
        [MMSSL, "run", "avbert/quickstart", f"runs={tmp_path}"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "avbert_quickstart"
    found = {
        name: json.loads((run / f"evaluations/{name}/metrics.json").read_text())
        for name in ("multimodal", "alone", "cnns")
    }
    together, alone, cnns = found["multimodal"], found["alone"], found["cnns"]
    for metrics in found.values():
        assert metrics["chance"] == pytest.approx(CHANCE)
        assert metrics["video/test_samples"] == metrics["audio/test_samples"] == 396

    # Before training, nothing; the CNNs, nothing ever; afterwards the order, from its outputs.
    for name in ("video", "audio", "video+audio"):
        assert together[f"{name}/top1_untrained"] < 0.45
        assert cnns[f"{name}/top1"] < AT_CHANCE + 0.02
    assert together["video+audio/top1"] > 0.9
    # One modality leaves two classes.
    for name in ("video", "audio"):
        assert 0.3 < alone[f"{name}/top1"] < AT_HALF
        assert together["video+audio/top1"] > alone[f"{name}/top1"] + 0.25

    # What it was trained by: masked clips are found, and pairs are judged better than by chance.
    steps = [record for record in read_log(run) if record["kind"] == "step"]
    for name in ("video/mep", "audio/mep", "multimodal/mep", "multimodal/cpp"):
        first, last = (sum(r[name] for r in part) for part in (steps[:5], steps[-5:]))
        assert last < 0.9 * first
