"""Networks within AVBert: each is the part of the whole that it claims to be, and is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import environment, mmssl
from tiny_avbert import NAMES, RECIPE, avbert, clips, present
from torch import Tensor

from mmssl.contracts import Backbone
from mmssl.errors import UserError
from mmssl.pipeline.plan import make_plan
from mmssl.recipe import load
from mmssl_avbert.backbone import AVBert, Fusion
from mmssl_avbert.low_rank import LowRankLinear


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pooled(network: Backbone, inputs: dict[str, Tensor], name: str) -> Tensor:
    found: Tensor = network(inputs[name]).pooled
    return found


# What they are


def test_one_modality_is_what_the_whole_makes_of_it_alone() -> None:
    net, inputs = avbert(pooled="unimodal").eval(), clips(2)
    parts, whole = net.subnetworks(), net(inputs, present("va", "va"))
    for name in NAMES:
        found = parts[f"{name}_transformer"](inputs[name])
        torch.testing.assert_close(found.pooled, whole[name].pooled)
        torch.testing.assert_close(found.tokens, whole[name].tokens)
        torch.testing.assert_close(found.embeddings, whole[name].embeddings)


@pytest.mark.parametrize("length", [1, 2])
def test_shorter_sequences(length: int) -> None:
    net, inputs = avbert(pooled="unimodal").eval(), clips(2, length)
    whole = net(inputs, present("va", "va"))
    for name in NAMES:
        found = net.subnetworks()[f"{name}_transformer"](inputs[name])
        torch.testing.assert_close(found.pooled, whole[name].pooled)


@pytest.mark.parametrize("kind", ["cnn", "unimodal", "multimodal"])
def test_all_of_it_with_another_choice_of_summary(kind: Any) -> None:
    torch.manual_seed(1)
    net = avbert().eval()
    torch.manual_seed(1)
    same, inputs, rows = avbert(pooled=kind).eval(), clips(3), present("va", "v", "a")
    found, expected = net.subnetworks()[kind](inputs, rows), same(inputs, rows)
    for name in NAMES:
        torch.testing.assert_close(found[name].pooled, expected[name].pooled)


def test_a_cnn_takes_clips_of_any_length() -> None:
    net = avbert().eval()
    parts = net.subnetworks()
    one = net.embed(clips(1, 1), present("va"))
    assert parts["video_cnn"] is net.cnns.backbones["video"]
    assert (
        pooled(parts["video_cnn"], {"video": torch.randn(2, 3, 5, 16, 16)}, "video").shape[0] == 2
    )
    assert parts["audio_cnn"].dim != one["audio"].shape[-1]  # without the map behind it


@pytest.mark.parametrize(
    ("fusion", "missing"),
    [("early", {"unimodal"}), ("late", {"multimodal"}), ("mid", set())],
)
def test_a_fusion_has_those_whose_transformers_it_has(fusion: Fusion, missing: set[str]) -> None:
    of_one = {f"{n}_transformer" for n in NAMES} if fusion != "early" else set()
    expected = {"video_cnn", "audio_cnn", "cnn", "unimodal", "multimodal"} | of_one
    assert set(avbert(fusion=fusion).subnetworks()) == expected - missing


def test_parameters_are_those_of_the_whole() -> None:
    net = avbert(sharing="part")
    own = {id(p) for p in net.parameters()}
    for name, part in net.subnetworks().items():
        assert {id(p) for p in part.parameters()} <= own, name
    alone = net.subnetworks()["audio_transformer"]
    maps = [m for m in alone.modules() if isinstance(m, LowRankLinear)]
    assert len(maps) == 6
    assert maps[0].up is net.transformers["video"].layers[0].query.up  # type: ignore[union-attr, index]


# In evaluations

MEASURED = """\
evaluations:
  {name}:
    use: linear_probe
    subnetworks: {subnetworks}
    train: {{use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1}}
    test: {{use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1, split: test}}
    regularisation: [0.01]
"""
CLIP = "modalities: {audio: {use: audio, seconds: 0.5, mels: 8, hop_ms: 40, window_ms: 40}}"


def recipe(folder: Path, subnetworks: str, more: str = "") -> Path:
    path = folder / "long.yaml"
    measured = MEASURED.format(name="probe", subnetworks=subnetworks)
    path.write_text(RECIPE + measured + (f"    {more}\n" if more else ""))
    return path


@pytest.mark.parametrize(
    ("subnetworks", "more", "message"),
    [
        (
            "{video: vidio_cnn}",
            "",
            r"long.yaml:\d+: evaluations.probe.subnetworks.video: video\+audio has",
        ),
        (
            "{audio: video_cnn}",
            "",
            r"evaluations.probe: audio has a network for video, not for audio",
        ),
        ("{video: multimodal}", "", r"subnetworks.video: 'multimodal' of video\+audio does not"),
        (
            "{text: video_cnn}",
            "",
            r"subnetworks.text: no backbone serves text; there are: video\+audio",
        ),
        ("{video: video_cnn}", CLIP, r"probe.modalities.audio: this modality is not measured"),
        ("{audio: audio_transformer}", CLIP.replace("0.5", "4"), r"evaluations.probe: audio does"),
        ("{audio: 3}", "", r"subnetworks.audio: expected text or null, got 3"),
        ("{}", "only: [video]", r"evaluations.probe: the backbone 'video\+audio' needs 'audio'"),
        (
            "{video: video_cnn, audio: audio_cnn}",
            f"only: [video]\n    {CLIP}",
            r"probe.modalities.audio: this modality is not measured: only leaves it out",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    subnetworks: str, more: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make_plan(load(str(recipe(tmp_path, subnetworks, more))))
    assert "\n" not in str(raised.value)


def test_an_extended_evaluation_may_measure_something_else(tmp_path: Path) -> None:
    recipe(tmp_path, "{video+audio: multimodal}")
    (tmp_path / "more.yaml").write_text(
        "extends: long.yaml\n"
        "evaluations: {probe: {subnetworks: {video+audio: null, video: video_cnn}}}\n"
    )
    plan = make_plan(load(str(tmp_path / "more.yaml")))
    shown = next(table for table in plan.tables if table.title == "evaluations").rows
    assert "subnetworks={video+audio: None, video: video_cnn}" in shown[0][1]


@pytest.mark.parametrize("use", ["clusters", "filters"])
@pytest.mark.parametrize("key", ["subnetworks: {video: video_cnn}", CLIP])
def test_what_encodes_no_clips_measures_no_networks(use: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(RECIPE + f"evaluations:\n  e:\n    use: {use}\n    {key}\n")
    with pytest.raises(UserError, match=f"{use} encodes no clips: leave it out"):
        make_plan(load(str(path)))


def test_one_checkpoint_is_measured_in_parts(tmp_path: Path) -> None:
    path = recipe(tmp_path, "{video: video_transformer}")
    other = path.read_text()
    for name, subnetworks in {
        "cnn": "{audio: audio_cnn, video: video_cnn}",
        "sound": "{audio: audio_transformer}",
        "all": "{video+audio: multimodal}",
        "mean": "{video+audio: cnn}",
    }.items():
        added = MEASURED.format(name=name, subnetworks=subnetworks).partition("\n")[2]
        other += added
    other += f"    {CLIP}\n".replace("0.5", "0.96")
    path.write_text(
        other.replace("objective: {use: xdc, rounds: 1, clusters: 4}", "objective: avbert")
    )
    done = mmssl("run", str(path), cwd=tmp_path, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr

    def measured(name: str) -> dict[str, float]:
        found: dict[str, float] = json.loads(
            (tmp_path / f"runs/long/evaluations/{name}/metrics.json").read_text()
        )
        return found

    expected = {"probe": ["video"], "cnn": list(NAMES), "sound": ["audio"], "all": list(NAMES)}
    for name, modalities in expected.items():
        assert [m for m in (*NAMES, "text") if f"{m}/top1" in measured(name)] == modalities
    net = load_whole(tmp_path)
    assert isinstance(net.subnetworks()["video_transformer"], Backbone)


def load_whole(folder: Path) -> AVBert:
    from mmssl import load_encoder

    net = load_encoder(folder / "runs/long").backbones["video+audio"]
    assert isinstance(net, AVBert)
    return net
