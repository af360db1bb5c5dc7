"""Runs as a user starts them: video and motion come to know classes, and to find each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

from mmssl_imu.motions import draw_motion

MMSSL = str(Path(sys.executable).with_name("mmssl"))


def mmssl(*arguments: str, cwd: Path, **environment: str) -> str:
    """What a command prints, once it has succeeded."""
    done = subprocess.run(
        [MMSSL, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def metrics(run: Path, evaluation: str) -> dict[str, float]:
    return json.loads((run / "evaluations" / evaluation / "metrics.json").read_text())


def test_the_quickstart_learns(tmp_path: Path) -> None:
    """On unseen samples frozen encoders are better than untrained ones, and than chance."""
    mmssl("run", "mmssl_imu/quickstart", f"runs={tmp_path}", cwd=tmp_path)
    found = metrics(tmp_path / "imu_quickstart", "linear_probe")
    assert found["chance"] == 0.125
    for modality in ("video", "imu"):
        assert found[f"{modality}/test_samples"] == 200
        assert found[f"{modality}/top1"] > 0.45
        assert found[f"{modality}/gain"] > 0.1


def test_motion_finds_its_video(tmp_path: Path) -> None:
    """What they share is the class: of 200 at best one in 25 is found first, by chance one."""
    mmssl("run", "mmssl_imu/contrastive", f"runs={tmp_path}", cwd=tmp_path)
    found = metrics(tmp_path / "imu_contrastive", "retrieval")
    assert found["imu-video/samples"] == 200
    for first, chance in ((1, 1 / 200), (10, 10 / 200)):
        both = found[f"imu-to-video/r@{first}"] + found[f"video-to-imu/r@{first}"]
        assert both / 2 > 2 * chance


RECIPE = """\
name: own
threads: 1
modalities:
  video: {use: video, frames: 2, fps: 4, short_side: 20, crop: 16}
  imu: {use: imu, seconds: 1, rate: 20}
backbones:
  video: {use: r3d_18, width: 0.125}
  imu: {use: imu_resnet, width: 4}
data:
  train: {use: manifest, path: list.csv}
  workers: 0
objective: {use: infonce, dim: 8}
training:
  epoch_size: 10
  epochs: 2
  batch_size: 4
  optimizer: {use: adamw, lr: 0.001}
  schedule: constant
  log_every: 1
"""


def test_own_recordings_are_a_column_of_a_manifest(tmp_path: Path) -> None:
    """Relative to the list; a video without recording trains alone, a damaged one is named."""
    (tmp_path / "sensors").mkdir()
    lines = ["path,imu"]
    for row in range(10):
        write_video(tmp_path / f"{row}.mp4", row)
        name = f"sensors/{row}.{'csv' if row % 2 else 'npz'}"
        time, values = draw_motion(row % 8, 1.0, 50, np.random.default_rng(row))
        if row % 2:
            table = np.concatenate([time[:, None], values], 1)
            header = "seconds,ax,ay,az,gx,gy,gz"
            np.savetxt(tmp_path / name, table, delimiter=",", header=header, comments="")
        else:
            np.savez(tmp_path / name, time=time, values=values)
        lines.append(f"{row}.mp4,{'' if row == 2 else name}")
    (tmp_path / "sensors/4.npz").write_bytes(b"damaged")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    (tmp_path / "own.yaml").write_text(RECIPE)
    mmssl("run", "own.yaml", "data.max_bad=0.5", cwd=tmp_path)
    skipped = (tmp_path / "runs/own/skipped.jsonl").read_text().splitlines()
    assert len(skipped) == 1
    assert "4.npz: cannot be read as npz" in skipped[0]
    log = [json.loads(x) for x in (tmp_path / "runs/own/log.jsonl").read_text().splitlines()]
    assert any("video-imu/loss" in record for record in log)


def write_video(path: Path, number: int) -> None:
    """A second of grey noise."""
    noise = np.random.default_rng(number)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for _ in range(8):
            picture = noise.integers(0, 256, (32, 32), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode())
