"""AVBert as small as it comes, inputs for it, and a recipe."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl_avbert.backbone import AVBert
from mmssl_backbones.audio_resnet import ResNet18Audio
from mmssl_backbones.video_resnet import r3d_18

NAMES = ("video", "audio")


def avbert(**changed: Any) -> AVBert:
    """Clips of 2 and 8 frames, sequences of at most 3."""
    sizes = {"dim": 12, "layers": 2, "heads": 3, "hidden": 16, "rank": 5}
    frames = {"video_frames": 2, "audio_frames": 8, "length": 3}
    cnns = {"video_cnn": r3d_18(width=0.125), "audio_cnn": ResNet18Audio(width=0.125)}
    return AVBert(**(cnns | frames | sizes | {"dropout": 0.0, "init_std": 0.3} | changed))


def clips(rows: int, length: int = 3) -> dict[str, Tensor]:
    return {
        "video": torch.randn(rows, 3, 2 * length, 16, 16),
        "audio": torch.randn(rows, 1, 8, 8 * length),
    }


def present(*rows: str, names: Sequence[str] = NAMES) -> dict[str, Tensor]:
    """Masks of rows such as "va", "v" and the empty one, by names' first letters."""
    return {name: torch.tensor([name[0] in row for row in rows]) for name in names}


RECIPE = """\
name: long
seed: 1
device: cpu
modalities:
  video: {use: video, frames: 6, fps: 6, short_side: 20, crop: 16}
  audio: {use: audio, seconds: 0.96, mels: 8, hop_ms: 40, window_ms: 40}
backbones:
  video+audio:
    use: avbert
    video_cnn: {use: r3d_18, width: 0.125}
    audio_cnn: {use: resnet18_audio, width: 0.125}
    video_frames: 2
    audio_frames: 8
    length: 3
    dim: 12
    layers: 2
    heads: 3
    hidden: 16
    rank: 4
data:
  train: {use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1}
objective: {use: xdc, rounds: 1, clusters: 4}
training:
  epoch_size: 16
  epochs: 1
  batch_size: 8
  optimizer: {use: adamw, lr: 0.0001, amsgrad: true}
  schedule: cosine
  groups: [{parameters: "*.skew", lr: 0.00001}]
"""
