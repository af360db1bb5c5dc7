"""Preparing clips and streaming features."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import Perceptron, Rows, Vector

from mmssl.contracts import Features, Modality
from mmssl.data.loading import LoaderSettings, Unreadable
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream, Precision, _in_full, autocast, prepare
from mmssl_media.audio import Audio
from mmssl_media.video import Video


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("modality", "clip"),
    [
        (
            Audio(gain=3, noise=0.1, time_shift=0.5, time_mask=0.2),
            lambda: 0.5 * torch.sin(torch.arange(4 * 32_000.0).view(4, -1) / 5),
        ),
        (
            Video(frames=2, short_side=16, crop=16, rotate=10, contrast=0.2, hue=0.1),
            lambda: torch.randint(0, 256, (4, 2, 16, 16, 3), dtype=torch.uint8),
        ),
    ],
    ids=["audio", "video"],
)
def test_clips_are_prepared_in_full_precision(
    modality: Modality, clip: Callable[[], torch.Tensor], precision: Precision
) -> None:
    torch.manual_seed(0)
    clips, seeds = {"x": clip()}, torch.arange(4)
    expected = prepare(clips, {"x": modality}, seeds)["x"]
    with autocast(torch.device("cpu"), precision):
        got = prepare(clips, {"x": modality}, seeds)["x"]
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    assert got.isfinite().all()
    assert got.shape == (4, *modality.shape)


def test_streamed_features_do_not_depend_on_batches_or_workers() -> None:
    found: list[tuple[str, Unreadable]] = []
    torch.manual_seed(0)
    modalities = {"a": Vector("a"), "b": Vector("b")}
    encoders = Encoders({name: Perceptron() for name in modalities}, ["a", "b"]).train()
    dataset = Rows(23, bad=[4], without={"b": [7]})
    results = []
    for batch_size, workers in ((23, 0), (5, 0), (5, 2)):
        stream = FeatureStream(
            encoders=encoders,
            modalities=modalities,
            device=torch.device("cpu"),
            precision="fp32",
            batch_size=batch_size,
            settings=LoaderSettings(workers=workers),
            seed=0,
            unreadable=lambda split, failure: found.append((split, failure)),
        )
        batches = list(stream(dataset, np.arange(23), split="validation"))
        assert np.concatenate([b.index for b in batches]).tolist() == list(range(23))
        present = {m: np.concatenate([b.present[m] for b in batches]) for m in modalities}
        assert np.flatnonzero(~present["a"]).tolist() == [4]
        assert np.flatnonzero(~present["b"]).tolist() == [4, 7]
        results.append({m: torch.cat([b.pooled[m] for b in batches]) for m in modalities})
    for other in results[1:]:
        for m in modalities:
            assert torch.allclose(results[0][m], other[m], atol=1e-6)
    assert results[0]["b"][7].eq(0).all()
    assert encoders.training  # put back
    assert found == [("validation", Unreadable(4, "row4", "is damaged"))] * 3


@dataclass(kw_only=True)
class Several(Features):
    candidates: Tensor
    valid: Tensor


def test_what_is_read_of_features_of_a_class_of_their_own_is_float32() -> None:
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    found = _in_full(Several(pooled=half, candidates=half[:, None], valid=half[:, 0] > 0))
    assert isinstance(found, Several)
    assert found.tokens is None
    assert found.pooled.dtype == found.candidates.dtype == torch.float32
    assert found.valid.dtype == torch.bool


def test_clips_are_as_their_modality_declares() -> None:
    modality = Vector("x")
    clips = {"x": torch.zeros(3, 8)}
    assert prepare(clips, {"x": modality}, None)["x"].shape == (3, 8)
    modality.shape = (9,)
    with pytest.raises(UserError, match=r"^modalities\.x: prepare gave clips of shape \(8,\)") as e:
        prepare(clips, {"x": modality}, None)
    assert "shape and dtype of Vector declare (9,) and torch.float32: correct one" in str(e.value)
    modality.shape, modality.dtype = (8,), torch.int64
    with pytest.raises(UserError, match=r"dtype torch\.float32, where .* \(8,\) and torch\.int64"):
        prepare(clips, {"x": modality}, None)


@pytest.mark.parametrize("training", [True, False])
def test_features_are_as_wide_as_their_backbone_declares(training: bool) -> None:
    backbone = Perceptron(dim=16)
    encoders = Encoders({"x": backbone}, ["x"]).train(training)
    clips, present = {"x": torch.randn(3, 8)}, {"x": torch.tensor([True, False, True])}
    assert encoders(clips, present)["x"].pooled.shape == (3, 16)
    backbone.dim = 17
    with pytest.raises(UserError, match=r"^backbones\.x: .* \(\d, 16\), where dim .* \(\d, 17\)"):
        encoders(clips, present)
