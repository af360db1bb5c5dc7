"""VATT's quickstarts as a newcomer runs them: captions find videos that nobody has seen before."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_runs import MMSSL, environment

from mmssl.recipe import load
from mmssl_media.text import words_of

VIDEOS = 200


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos that both runs see."""
    return tmp_path_factory.mktemp("videos")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["quickstart", "quickstart_ma"])
def test_a_quickstart_learns(name: str, cache: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [MMSSL, "run", f"vatt/{name}", f"runs={tmp_path}"],
        cwd=tmp_path,
        env=environment(cache),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    def metrics(evaluation: str) -> dict[str, Any]:
        path = tmp_path / f"vatt_{name}" / "evaluations" / evaluation / "metrics.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    # By chance 0.005, 0.025 and 100.
    retrieval = metrics("retrieval")
    assert retrieval["text-video/samples"] == VIDEOS
    for direction in ("text-to-video", "video-to-text"):
        assert retrieval[f"{direction}/r@1"] >= 0.05
        assert retrieval[f"{direction}/r@5"] >= 0.25
        assert retrieval[f"{direction}/median_rank"] <= 20
    probe = metrics("linear_probe")
    assert probe["chance"] == 0.125
    for modality, gain in (("video", 0.05), ("audio", 0.25)):
        assert probe[f"{modality}/train_samples"] == 80
        assert probe[f"{modality}/test_samples"] == 400
        assert probe[f"{modality}/top1"] > 0.8
        assert probe[f"{modality}/gain"] > gain


@pytest.mark.parametrize("name", ["quickstart", "quickstart_ma"])
def test_the_words_of_all_captions_are_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(f"vatt/{name}")
    text = recipe.modalities["text"].build()
    parts = [recipe.data.train, recipe.evaluations["retrieval"].parameters["data"]]
    for dataset in (part.build() for part in parts):
        for row in range(len(dataset)):
            for caption in json.loads(dataset.sample(row).fields["texts"]):
                assert len(text.ids(caption)) == len(words_of(caption))  # none is cut off, too
