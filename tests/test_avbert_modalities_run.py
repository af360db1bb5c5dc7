"""AVBert of three modalities from beginning to end: the loop with toys, and runs with motion.

The third modality of the runs is a stranger's, mmssl-imu of docs/examples, beside real files.
"""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import Started, environment, leftovers, make_videos, mmssl, outcome, steps
from strangers import install_entry_points, with_path
from test_avbert_modalities import three
from tiny_avbert import RECIPE
from torch import Tensor
from toy_runs import changed, exact
from toys import Rows, Vector

from mmssl.contracts import Batch
from mmssl.data.loading import LoaderSettings
from mmssl.training.encoders import Encoders
from mmssl.training.log import read_log
from mmssl.training.loop import Pretraining
from mmssl.training.optimizers import adamw
from mmssl.training.progress import Silent
from mmssl.training.schedules import constant
from mmssl.training.settings import RoundPlan
from mmssl_avbert.objective import AVBertPretraining

NAMES = ("video", "audio", "imu")
PAIRS = ("video-audio", "video-imu", "audio-imu")
MEP = {f"{name}/mep" for name in (*NAMES, "multimodal")}
CPP = {f"{kind}/{pair}/cpp" for kind in ("unimodal", "multimodal") for pair in PAIRS}
IMU = Path(__file__).parents[1] / "docs" / "examples" / "mmssl-imu"


def terms(record: Mapping[str, Any]) -> set[str]:
    return {name for name in record if name.endswith(("/mep", "/cpp"))}


# The loop

# Of each modality some rows lack it, of one all, and one cannot be read.
DATA = Rows(
    40, bad=[11], without={"video": [5, 20], "audio": [7, 20, 21], "imu": [3, 9, 20, 21, 30, 31]}
)
SHAPES = {"video": (3, 6, 8, 8), "audio": (1, 8, 24), "imu": (2, 15)}


class Killed(Exception):
    """As a kill, it leaves no chance to save anything."""


def toy(name: str) -> Vector:
    """Three clips of noise that the row has for itself, around what its class has."""
    made = Vector(name, noise=0.5, augment=0.05)
    made.shape = SHAPES[name]
    return made


def trained(
    folder: Path, first: str | None, epochs: int, stop_at: int | None = None
) -> Pretraining:
    """Train from where a folder's run stands, up to a step in which it is killed."""
    torch.manual_seed(0)
    encoders = Encoders(
        {"+".join(NAMES): three(pooled="cnn", dropout=0.1, init_std=0.2)}, list(NAMES)
    )
    objective = AVBertPretraining(
        first=first, negatives="sequence", hidden=16, projection=8, masking=0.34, init_std=0.05
    )
    objective.build(encoders)
    folder.mkdir(exist_ok=True)
    one = Pretraining(
        folder=folder,
        encoders=encoders,
        objective=objective,
        modalities={name: toy(name) for name in NAMES},
        train=DATA,
        validation=None,
        plan=lambda number: RoundPlan(epochs, constant),
        settings=changed(
            batch_size=8,
            epoch_size=40,
            checkpoint_steps=2,
            keep=50,
            make_optimizer=lambda groups: adamw(groups, lr=0.01),
        ),
        loader=LoaderSettings(workers=0),
        device=torch.device("cpu"),
        trackers={},
        progress=Silent(),
    )
    step = one.step

    def stepping(batch: Batch, factor: float) -> Any:
        if one.state.global_step == stop_at:
            raise Killed
        return step(batch, factor)

    one.step = stepping  # type: ignore[method-assign]
    if stop_at is None:
        one.run()
    else:
        with pytest.raises(Killed):
            one.run()
    return one


def logged(one: Pretraining) -> list[dict[str, Any]]:
    return [r for r in read_log(one.folder) if r["kind"] == "step"]


def test_losses_fall(tmp_path: Path) -> None:
    log = logged(trained(tmp_path / "one", None, epochs=5))
    assert len(log) == 25
    assert terms(log[0]) == MEP | CPP
    for name in ("loss", *sorted(MEP)):
        begun, ended = (sum(r[name] for r in part) for part in (log[:5], log[-5:]))
        assert ended < 0.8 * begun, name


def test_killed_in_both_rounds_and_resumed_is_as_if_never_stopped(tmp_path: Path) -> None:
    one = trained(tmp_path / "one", "imu", epochs=1)
    for stop_at in (3, 8):
        trained(tmp_path / "resumed", "imu", epochs=1, stop_at=stop_at)
    resumed = trained(tmp_path / "resumed", "imu", epochs=1)
    assert [len(terms(record)) for record in logged(one)] == [1] * 5 + [len(MEP | CPP)] * 5
    assert [*map(exact, logged(resumed))] == [*map(exact, logged(one))]
    for part, same in ((resumed.encoders, one.encoders), (resumed.objective, one.objective)):
        for name, value in part.state_dict().items():
            assert torch.equal(value, same.state_dict()[name]), name


# Runs

# Where motion alone is measured, those without it count as unreadable.
TRAIN = "{use: manifest, path: all.csv}\n  workers: 0\n  max_bad: 0.3"
THREE = (
    RECIPE.replace("seed: 1", "seed: 1\nthreads: 1\ntrackers: []")
    .replace(
        "backbones:\n",
        "  imu: {use: imu, channels: 2, seconds: 1, rate: 30, mean: 1, std: 2}\nbackbones:\n",
    )
    .replace("video+audio:", "video+audio+imu:")
    .replace("    length: 3\n", "    length: 3\n    further: {imu: CNN}\n")
    .replace("CNN", "{use: imu_resnet, channels: 2, width: 4}")
    .replace("    rank: 4\n", "    rank: 4\n    further_frames: {imu: 10}\n    pooled: cnn\n")
    .replace("{use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1}", TRAIN)
    .replace(
        "{use: xdc, rounds: 1, clusters: 4}",
        "{use: avbert, first: imu, hidden: 16, projection: 8, number_of_negatives: 5}",
    )
    .replace("epochs: 1", "epochs: 4\n  log_every: 1\n  checkpoint: {steps: 4, keep: 9}")
)
MEASURED = """\
  {name}:
    use: knn
    subnetworks: {subnetworks}
    train: {{use: manifest, path: all.csv}}
    test: {{use: manifest, path: test.csv}}
    k: [1]
"""
SUBNETWORKS = {
    "cnn": ("{imu: imu_cnn, audio: audio_cnn}", "imu audio"),
    "alone": ("{imu: imu_transformer}", "imu"),
}
FULL_ROWS, ROWS = 12, 16


def write_rows(folder: Path, name: str, videos: list[tuple[str, int]], full: int) -> None:
    """A list of videos, of which some at the end have no recording."""
    lines = ["path,label,imu"]
    rng = np.random.default_rng(len(name))
    time = np.arange(40) / 40
    for i, (path, label) in enumerate(videos):
        recording = folder / f"{name}{i}.npz" if i < full else ""
        if recording:
            values = np.sin(time[:, None] * (1 + label) * 6) + rng.normal(0, 0.1, (40, 2))
            np.savez(recording, time=time, values=values)
        lines.append(f"{path},{label},{recording}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A recipe with videos, sound and recordings of motion, and the plugin that reads them."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "site").mkdir()
    (folder / "site" / "mmssl_imu").symlink_to(IMU / "mmssl_imu")
    install_entry_points(folder / "site", "mmssl_imu", {"mmssl_imu": "mmssl_imu"})
    videos = make_videos(folder / "videos", ROWS)
    write_rows(folder, "all", videos, FULL_ROWS)
    write_rows(folder, "test", videos, FULL_ROWS)
    measured = (
        MEASURED.format(name=name, subnetworks=chosen) for name, (chosen, _) in SUBNETWORKS.items()
    )
    (folder / "a.yaml").write_text(THREE)
    (folder / "measured.yaml").write_text(
        f"extends: a.yaml\nname: long\nevaluations:\n{''.join(measured)}"
    )
    return folder, environment(folder, PYTHONPATH=with_path(folder / "site")["PYTHONPATH"])


@pytest.fixture(scope="module")
def whole(workplace: tuple[Path, dict[str, str]]) -> Path:
    """A run that nothing stopped."""
    folder, env = workplace
    done = mmssl("run", "measured.yaml", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "long"


def encoders_of(run: Path) -> dict[int, dict[str, Tensor]]:
    """The encoders' parameters by step."""
    found = [torch.load(path, weights_only=True) for path in run.glob("checkpoints/step-*.pt")]
    return {saved["state"]["global_step"]: saved["encoders"] for saved in found}


def test_it_is_measured_in_parts(whole: Path) -> None:
    for name, (_, modalities) in SUBNETWORKS.items():
        metrics = json.loads((whole / f"evaluations/{name}/metrics.json").read_text())
        assert [m for m in NAMES if f"{m}/k1/top1" in metrics] == [
            m for m in NAMES if m in modalities.split()
        ]
        for modality in modalities.split():
            rows = FULL_ROWS if modality == "imu" else ROWS
            assert metrics[f"{modality}/k1/test_samples"] == rows


def test_a_strangers_modality_first_and_then_frozen(whole: Path) -> None:
    log = [record for record in read_log(whole) if record["kind"] == "step"]
    assert [terms(record) for record in log] == [{"imu/mep"}] * 8 + [MEP | CPP] * 8
    saved = encoders_of(whole)
    moved = [
        {name for name in end if not torch.equal(end[name], begun[name])}
        for begun, end in ((saved[0], saved[8]), (saved[8], saved[16]))
    ]
    parts = ("cnns.backbones", "streams", "places", "transformers")
    for part in parts:
        of = [{n for n in NAMES if any(f"{part}.{n}." in x for x in names)} for names in moved]
        # Of Transformers, what all share moves with the first modality.
        assert of[0] == (set(NAMES) if part == "transformers" else {"imu"}), part
        assert of[1] == {"video", "audio"}, part
    assert any("transformers.multimodal." in name for name in moved[1])


def test_stopped_in_the_second_round_and_resumed(
    workplace: tuple[Path, dict[str, str]], whole: Path
) -> None:
    folder, env = workplace
    run = folder / "runs" / "stopped"
    started = Started("run", "a.yaml", "name=stopped", cwd=folder, env=env)
    started.wait_until(lambda: steps(run) > 9)
    started.signal_all(signal.SIGINT)
    assert started.wait() == 130
    assert steps(run) < 16
    done = mmssl("run", "a.yaml", "name=stopped", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    assert outcome(run) | {"metrics": {}} == outcome(whole) | {"metrics": {}}
    assert leftovers(run) == []


def test_scratch_is_measured_as_initialised(
    workplace: tuple[Path, dict[str, str]], whole: Path
) -> None:
    folder, env = workplace
    alone = [f"evaluations.{name}.untrained=false" for name in SUBNETWORKS]
    changes = ["name=scratch", "objective=scratch", *alone]
    done = mmssl("run", "measured.yaml", *changes, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    scratch = folder / "runs" / "scratch"
    assert steps(scratch) == 0
    weights = load_file(scratch / "checkpoints" / "encoders.safetensors")
    begun = encoders_of(whole)[0]
    assert all(torch.equal(value, begun[name]) for name, value in weights.items())
    untrained, measured = outcome(whole)["metrics"], outcome(scratch)["metrics"]
    for name, (_, modalities) in SUBNETWORKS.items():
        for modality in modalities.split():
            right = untrained[name][f"{modality}/k1/top1_untrained"]
            assert measured[name][f"{modality}/k1/top1"] == right
