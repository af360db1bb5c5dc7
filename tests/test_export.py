"""`mmssl export` and `mmssl.load_encoder`."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pytest
import torch
from pretrained_runs import installed, seen_and_heard, seen_and_read
from safetensors.torch import load_file, save_file

import mmssl
from mmssl import BadMedia, UserError
from mmssl.data.loading import CENTRAL, ClipReader, LoaderSettings, Views
from mmssl.pipeline import assembly
from mmssl.pipeline.jobs import load_run
from mmssl.pretrained import export as module
from mmssl.pretrained.checkpoint import Pretrained, digest_of, open_pretrained
from mmssl.pretrained.export import export
from mmssl.training.features import FeatureStream
from mmssl_backbones.audio_resnet import ResNet18Audio
from mmssl_backbones.video_resnet import r3d_18


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heard")
    return seen_and_heard(folder)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("out") / "encoders")


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.fixture
def videos(run: Path) -> list[Path]:
    return sorted((run.parent.parent / "videos").glob("*.mp4"))


def streamed(run: Path, views: Views = CENTRAL) -> dict[str, np.ndarray]:
    """Features as a run computes them itself, view by view."""
    recipe = load_run(run)
    encoders = assembly.build_encoders(recipe)
    encoders.load(run / "checkpoints" / "encoders.safetensors")
    stream = FeatureStream(
        encoders=encoders,
        modalities=assembly.build_modalities(recipe),
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=4,
        settings=LoaderSettings(),
        seed=recipe.seed,
        unreadable=lambda split, failure: pytest.fail(failure.reason),
    )
    dataset, _ = assembly.build_datasets(recipe)
    parts = list(stream(dataset, range(len(dataset)), views=views))
    return {m: np.concatenate([p.pooled[m].numpy() for p in parts]) for m in parts[0].pooled}


def close(a: torch.Tensor, b: np.ndarray) -> bool:
    return torch.allclose(a, torch.from_numpy(np.ascontiguousarray(b)), atol=1e-5)


@pytest.mark.parametrize("source", ["run", "exported"])
def test_features_are_those_of_the_run(
    source: str, videos: list[Path], run: Path, request: pytest.FixtureRequest
) -> None:
    encoder = mmssl.load_encoder(request.getfixturevalue(source))
    expected = streamed(run)
    assert encoder.dims == {"video": 64, "audio": 64}
    assert not encoder.training
    features = encoder(videos)
    assert list(features) == ["video", "audio"]
    for modality, values in expected.items():
        assert np.abs(values[0] - values[1]).max() > 1e-3  # they can be told apart
        assert close(features[modality], values)
        assert not features[modality].requires_grad
    one = encoder(str(videos[3]))
    assert one["video"].shape == (1, 64)
    assert close(one["audio"], expected["audio"][3:4])


def test_several_views_are_averaged(exported: Path, run: Path, videos: list[Path]) -> None:
    encoder = mmssl.load_encoder(exported)
    expected = streamed(run, Views(3))
    found = encoder(videos, clips=3)
    for modality, values in expected.items():
        assert close(found[modality], values.reshape(8, 3, 64).mean(1))


def test_raw_clips_prepared_clips_and_tokens(exported: Path, videos: list[Path], run: Path) -> None:
    encoder = mmssl.load_encoder(exported)
    raw = encoder.read(videos[:2], clips=2)
    recipe = load_run(run)
    dataset, _ = assembly.build_datasets(recipe)
    reader = ClipReader(dataset, assembly.build_modalities(recipe), seed=0, views=Views(2))
    for i in range(4):
        clip, _ = reader[i]
        for modality, tensor in clip.tensors.items():
            assert torch.equal(raw[modality][i], tensor)
    assert raw["video"].dtype == torch.uint8
    inputs = encoder.prepare(raw)
    assert inputs["video"].shape == (4, *encoder.modalities["video"].shape)
    features = encoder.features(inputs)
    tokens = features["video"].tokens
    assert tokens is not None
    assert tokens.shape[::2] == (4, 64)
    assert torch.equal(encoder(raw)["audio"], features["audio"].pooled)
    # Some modalities only; and plain tensors.
    alone = encoder({"video": raw["video"]})
    assert list(alone) == ["video"]
    assert torch.allclose(alone["video"], features["video"].pooled, atol=1e-6)
    # The part of a file that was asked for.
    begin = encoder.read(videos[0], start=0.5)["audio"]
    assert not torch.equal(begin, encoder.read(videos[0], end=0.5)["audio"])


def test_it_can_be_trained_further(exported: Path, videos: list[Path]) -> None:
    encoder = mmssl.load_encoder(exported, "video").train()
    raw = encoder.read(videos[:4])
    seeds = torch.arange(4)
    inputs = encoder.prepare(raw, seeds)
    assert not torch.equal(inputs["video"], encoder.prepare(raw)["video"])  # augmented,
    assert torch.equal(inputs["video"], encoder.prepare(raw, seeds)["video"])  # by seed
    before = encoder.backbones["video"].state_dict()["stem.1.running_mean"].clone()
    encoder.features(inputs)["video"].pooled.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())
    after = encoder.backbones["video"].state_dict()["stem.1.running_mean"]
    assert not torch.equal(before, after)  # BatchNorm learns in training,
    learned = after.clone()
    encoder(videos[:2])  # but from no files, after which the mode is what it was
    assert torch.equal(learned, after)
    assert encoder.training
    assert encoder.encoders.training


def test_one_modality(exported: Path, run: Path, videos: list[Path]) -> None:
    encoder = mmssl.load_encoder(exported, modality="audio")
    assert encoder.dims == {"audio": 64}
    assert {name.split(".")[2] for name in encoder.state_dict()} == {"audio"}
    assert close(encoder(videos)["audio"], streamed(run)["audio"])
    with pytest.raises(UserError, match=r"no modality 'smell'; there are: video, audio$"):
        mmssl.load_encoder(exported, modality="smell")


def test_what_a_file_lacks_is_no_number(exported: Path, videos: list[Path], tmp_path: Path) -> None:
    encoder = mmssl.load_encoder(exported)
    silent = media_files.write(tmp_path / "silent.mp4", frames=30)
    features = encoder([silent, videos[0]])
    assert bool(features["audio"][0].isnan().all())
    assert not features["audio"][1].isnan().any()
    assert not features["video"].isnan().any()
    raw = encoder.read([silent, videos[0]])
    assert raw.present["audio"].tolist() == [False, True]
    assert bool(encoder(raw)["audio"][0].isnan().all())
    zeros = encoder.features(encoder.prepare(raw))["audio"].pooled
    assert not zeros[0].any()
    assert torch.allclose(zeros[1], features["audio"][1], atol=1e-5)
    (tmp_path / "torn.mp4").write_bytes(b"no video at all")
    for act in (encoder, encoder.read):
        with pytest.raises(BadMedia, match=r"torn\.mp4: "):
            act(tmp_path / "torn.mp4")
    with pytest.raises(BadMedia, match="audio"):  # none of the modalities
        mmssl.load_encoder(exported, "audio")(silent)


def test_weights_load_into_the_bare_networks(exported: Path, run: Path) -> None:
    whole = load_file(run / "checkpoints" / "encoders.safetensors")
    for key, network in (
        ("video", r3d_18(width=0.125)),
        ("audio", ResNet18Audio(width=0.125)),
    ):
        tensors = load_file(exported / f"{key}.safetensors")
        network.load_state_dict(tensors, strict=True)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, whole[f"backbones.{key}.{name}"])


def test_the_card(exported: Path, run: Path) -> None:
    text = (exported / "card.json").read_text()
    card = json.loads(text)
    files = {f.name for f in exported.iterdir()}
    assert files == {"card.json", "video.safetensors", "audio.safetensors"}
    for name, known in card["sha256"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == known
    assert set(card["sha256"]) == files - {"card.json"}
    assert str(run.parent.parent) not in text  # nothing of this machine
    assert card["pretraining"]["data"]["train"]["path"] == "videos"
    assert card["plugins"] == {"mmssl_media": "0.1.0", "mmssl_backbones": "0.1.0"}
    assert card["modalities"]["video"]["use"] == "mmssl_media/video"
    assert card["modalities"]["video"]["crop"] == 16
    assert card["inputs"]["video"] == {
        "kind": "video",
        "shape": [3, 2, 16, 16],
        "dtype": "float32",
        "seconds": 0.5,
        "dim": 64,
    }
    assert card["pretraining"]["objective"]["use"] == "xdc"
    assert card["pretraining"]["steps"] == 2
    assert card["pretraining"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert (card["format"], card["name"], card["evaluations"]) == (1, "small", {})


def test_metrics_of_finished_evaluations_are_in_the_card(run: Path, tmp_path: Path) -> None:
    recipe = (run / "recipe.yaml").read_text()
    copy = Path(shutil.copytree(run, tmp_path / "small"))
    evaluations = "evaluations: {measured: {use: clusters}, not_yet: {use: clusters, rows: 2}}"
    (copy / "recipe.yaml").write_text(recipe.replace("evaluations: {}", evaluations))
    from mmssl.pipeline.records import Records, fingerprint

    record = {"fingerprint": fingerprint(Records(copy).recipe, "measured"), "at": ""}
    (copy / "stages" / "evaluate-measured.json").write_text(json.dumps(record))
    for name in ("measured", "not_yet"):
        (copy / "evaluations" / name).mkdir(parents=True)
        (copy / "evaluations" / name / "metrics.json").write_text('{"top1": 0.5}')
    card = json.loads((export(copy) / "card.json").read_text())
    assert card["evaluations"] == {"measured": {"top1": 0.5}}


def damaged_weights(folder: Path) -> None:
    data = bytearray((folder / "video.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "video.safetensors").write_bytes(bytes(data))


def changed_card(folder: Path, sign: bool = False, **fields: Any) -> None:
    card = {**json.loads((folder / "card.json").read_text()), **fields}
    if sign:
        card["digest"] = digest_of(card)
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damaged_weights, r"video\.safetensors: is not what was exported"),
        (lambda f: (f / "audio.safetensors").unlink(), r"audio\.safetensors: No such file"),
        (lambda f: changed_card(f, seed=5), r"card\.json: was changed since it was exported"),
        (lambda f: changed_card(f, format=2), r"card\.json: was written by a newer mmssl"),
        (lambda f: (f / "card.json").write_text("{"), r"card\.json: cannot be read"),
        (lambda f: changed_card(f, True, files=["../x"]), r"names '\.\./x', outside of"),
        (
            lambda f: changed_card(f, True, backbones={"video": "r3d_18", "audio": "r3d_18"}),
            r"video\.safetensors: does not fit the network of this version: it has other shapes",
        ),
        (
            lambda f: changed_card(f, True, backbones={"video": {"use": "net"}}),
            r"card\.json: backbones\.video.*unknown backbone 'net'",
        ),
    ],
)
def test_what_was_changed_is_refused(copy: Path, harm: Any, message: str) -> None:
    mmssl.load_encoder(copy)
    harm(copy)
    with pytest.raises(UserError, match=message) as refused:
        mmssl.load_encoder(copy)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_exported(run: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(run, exported)
    with pytest.raises(UserError, match=r"there is no run 'nothing'.*card\.json$"):
        export("nothing")
    with pytest.raises(UserError, match="'xdc' has no embeddings in which modalities"):
        export(run, tmp_path / "out", objective=True)
    copy = Path(shutil.copytree(run, tmp_path / "small"))
    (copy / "checkpoints" / "objective.safetensors").unlink()
    with pytest.raises(UserError, match=r"kept no objective: .*objective\.safetensors is missing"):
        export(copy, tmp_path / "out", objective=True)
    (copy / "stages" / "pretrain.json").unlink()
    for act in (export, mmssl.load_encoder):
        with pytest.raises(UserError, match="pretraining has not finished") as refused:
            act(copy)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_appears_whole_or_not_at_all(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **more: Any) -> None:
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "digest_of", fail)
    with pytest.raises(UserError, match=r"out cannot be written: No space left"):
        export(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_was_left_by_a_kill_is_cleared_away(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    left = tmp_path / f".out.{ended.pid}.tmp"
    others = [tmp_path / name for name in (f".out.{os.getppid()}.tmp", ".out.x.tmp", ".o.1.tmp")]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "video.safetensors").write_bytes(b"?")
    flushed = set()
    fsync = os.fsync

    def noted(file: int) -> None:
        flushed.add((os.readlink(f"/proc/self/fd/{file}"), (tmp_path / "out").exists()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    export(run, tmp_path / "out")
    assert set(tmp_path.iterdir()) == {tmp_path / "out", *others}
    assert (str(tmp_path), True) in flushed  # after the folder got its name


def test_weights_that_training_began_from_are_not_needed(tmp_path: Path) -> None:
    torch.save(r3d_18(width=0.125).state_dict(), tmp_path / "first.pt")
    run = seen_and_heard(tmp_path, f"backbones.video.weights={tmp_path / 'first.pt'}")
    (tmp_path / "first.pt").unlink()
    out = export(run)
    assert out == run / "export"
    assert "first.pt" not in (out / "card.json").read_text()
    files = sorted((tmp_path / "videos").glob("*.mp4"))[:2]
    a, b = (mmssl.load_encoder(source)(files) for source in (run, out))
    assert torch.equal(a["video"], b["video"])


@pytest.fixture
def spoken(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site"):
        yield seen_and_read(tmp_path)


def test_a_strangers_components_and_their_files(spoken: Path, tmp_path: Path) -> None:
    text = mmssl.Sample("x", None, fields={"text": "red square red"})
    expected = mmssl.load_encoder(spoken)(text)["text"]
    layer = load_file(spoken / "checkpoints" / "encoders.safetensors")
    name = "backbones.text.layer"
    by_hand = torch.tensor([2.0, 0, 0, 1]) @ layer[f"{name}.weight"].T + layer[f"{name}.bias"]
    assert torch.allclose(expected[0], by_hand, atol=1e-6)

    out = export(spoken, objective=True)
    (tmp_path / "vocabulary.txt").unlink()
    moved = out.rename(tmp_path / "elsewhere")
    assert torch.equal(mmssl.load_encoder(moved, "text")(text)["text"], expected)
    card = json.loads((moved / "card.json").read_text())
    assert card["modalities"]["text"]["vocabulary"] == "files/0-vocabulary.txt"
    assert card["plugins"]["toy_plugin"] == "1.5"
    assert card["objective"] == {"use": "toy_plugin/meeting"}
    heads = load_file(moved / "objective.safetensors")
    assert heads["heads.text.weight"].shape == (6, 5)

    (moved / "files" / "0-vocabulary.txt").write_text("ball\n")
    with pytest.raises(UserError, match=r"0-vocabulary\.txt: is not what was exported"):
        mmssl.load_encoder(moved)


def test_classes_are_asked_of_the_data_only_where_weights_need_them(
    spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = open_pretrained(spoken)
    encoders = pretrained.build_encoders()
    heads = load_file(spoken / "checkpoints" / "objective.safetensors")
    save_file({**heads, "scores": torch.arange(2.0)}, tmp_path / "heads.safetensors")
    sized = replace(
        pretrained,
        blocks={**pretrained.blocks, "objective": "sorting"},
        objective_weights=tmp_path / "heads.safetensors",
    )
    with pytest.raises(UserError, match=r"heads\.safetensors: .* other shapes: scores"):
        sized.build_objective(encoders)
    header, *rows = (tmp_path / "texts.csv").read_text().splitlines()
    named = [f"{row},{'ba'[i % 2]}" for i, row in enumerate(rows)]
    (tmp_path / "texts.csv").write_text("\n".join([f"{header},label", *named, ""]))
    objective = sized.build_objective(encoders)
    assert objective is not None
    assert tuple(objective.class_names) == ("a", "b")
    assert torch.equal(objective.state_dict()["scores"], torch.arange(2.0))

    def read(self: Any) -> None:
        pytest.fail("the data are read")

    monkeypatch.setattr(Pretrained, "_labels_of_data", read)
    objective = pretrained.build_objective(encoders)
    assert objective is not None
    assert torch.equal(objective.state_dict()["heads.text.bias"], heads["heads.text.bias"])


def test_a_network_of_several_modalities(tmp_path: Path) -> None:
    with installed(tmp_path / "site"):
        run = seen_and_read(tmp_path, "{video+text: both}")
        out = export(run)
        weights = load_file(out / "video+text.safetensors")
        video = str(tmp_path / "videos" / "000.mp4")
        sample = mmssl.Sample("x", video, fields={"text": "red square red"})
        for source in (run, out):
            encoder = mmssl.load_encoder(source)
            inputs = encoder.prepare(encoder.read(sample))
            brightness = inputs["video"].mean()
            seen = torch.stack([brightness, *torch.tensor([2.0, 0, 0, 1])])
            by_hand = seen @ weights["layer.weight"].T + weights["layer.bias"]
            found = encoder(sample)
            assert torch.allclose(found["video"][0], by_hand, atol=1e-5)
            assert torch.allclose(found["text"][0], -by_hand, atol=1e-5)
            with pytest.raises(UserError, match="the backbone 'video\\+text' needs 'text', too"):
                encoder({"video": encoder.read(sample)["video"]})
            with pytest.raises(UserError, match="'video' is encoded jointly"):
                mmssl.load_encoder(source, "video")


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    with installed(tmp_path / "site"):
        run = seen_and_read(tmp_path)
        out = export(run, tmp_path / "out")
        files = sorted((tmp_path / "videos").glob("*.mp4"))[:1]
        expected = mmssl.load_encoder(out, "video")(files)["video"]
    for source in (run, out):
        with pytest.raises(UserError, match=r"not here: toy_plugin 1\.5") as refused:
            mmssl.load_encoder(source)
        assert "\n" not in str(refused.value)
        # What needs none of it works.
        assert torch.equal(mmssl.load_encoder(source, "video")(files)["video"], expected)


@pytest.mark.parametrize("verb", ["export", "embed", "search"])
def test_help_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from mmssl.cli import main\n"
        f"sys.argv = ['mmssl', '{verb}', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'numpy', 'av', 'faiss', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"mmssl {verb} " in done.stdout
