"""A list, a folder, a Parquet file and shards of the same files are the same data."""

import csv
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import media_files
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image as Picture
from PIL import ImageOps
from small_runs import mmssl

from mmssl import Dataset, Media, Sample, UserError, Window
from mmssl.contracts import IGNORE
from mmssl.data.loading import ClipReader, LoaderSettings, ordered_batches
from mmssl.training.progress import Silent
from mmssl_media.audio import Audio
from mmssl_media.folder import Folder
from mmssl_media.image import Image
from mmssl_media.manifest import Manifest
from mmssl_media.shards import Shards
from mmssl_media.video import Video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos with sound in a folder for each of two classes, and one beside the folders."""
    folder = tmp_path_factory.mktemp("data") / "videos"
    names = ["b/1.mp4", "b/0.mkv", "a/x.mp4", "a/deep/y.mp4", "b/.hidden.mp4", "beside.mp4"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        sound = media_files.clicks([0.1 + 0.1 * number], 1.0, 16_000)
        media_files.write(folder / name, frames=10 + number, fps=10, sound=sound, rate=16_000)
    (folder / "a" / "notes.txt").write_text("no media")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def as_parquet(manifest: Path) -> Path:
    with open(manifest, newline="") as text:
        header, *rows = csv.reader(text)
    columns = {name: [row[i] or None for row in rows] for i, name in enumerate(header)}
    path = manifest.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def clips(dataset: Dataset) -> Iterator[bytes]:
    modalities = {
        "video": Video(frames=3, fps=5, short_side=32, crop=32),
        "audio": Audio(seconds=0.6),
    }
    reader = ClipReader(dataset, modalities, seed=0)
    batches = ordered_batches(
        reader,
        range(len(dataset)),
        batch_size=2,
        split="train",
        settings=LoaderSettings(),
    )
    for loaded in batches:
        assert not loaded.unreadable
        for name in modalities:
            yield loaded.batch.clips[name].numpy().tobytes()


def test_all_formats_are_the_same_data(videos: Path, tmp_path: Path) -> None:
    folder = Folder(path=videos)
    manifest = videos / "manifest.csv"
    try:
        done = mmssl(
            "data", "index", str(videos), "-o", str(manifest), "--labels", "folder", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        parquet = as_parquet(manifest)
        done = mmssl("data", "shard", str(manifest), "-o", "shards", "--samples", "2", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        shards = Shards(path=str(tmp_path / "shards"))
        others = [
            Manifest(path=manifest),
            Manifest(path=parquet),
            shards,
            Shards(path=f"file://{tmp_path}/shards/"),
            Shards(path=str(tmp_path / "shards" / "shard-{00000..00002}.tar")),
        ]
        expected = list(clips(folder))
        assert len(set(expected)) == len(expected)
        for other in others:
            assert other.digest() == folder.digest()
            assert list(other.classes) == ["a", "b"] == list(folder.classes)
            assert other.labels().tolist() == folder.labels().tolist()
            assert [other.sample(i).label for i in range(5)] == [None, 0, 0, 1, 1]
            assert list(clips(other)) == expected
        ids = [folder.sample(i).id for i in range(len(folder))]
        assert ids == ["beside.mp4", "a/x.mp4", "a/deep/y.mp4", "b/0.mkv", "b/1.mp4"]
        assert others[0].sample(1).fields == shards.sample(1).fields
        assert others[0].sample(1).fields["video_codec"] == "h264"
    finally:
        for path in videos.glob("*manifest*"):
            path.unlink()


def test_a_folder(videos: Path, tmp_path: Path) -> None:
    data = Folder(path=videos)
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    len(data)
    other = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert copy.sample(2) == other.sample(2) == data.sample(2)
    assert data.sample(2).media == str(videos / "a/deep/y.mp4")
    assert data.storage() is None
    assert data.labels().tolist() == [IGNORE, 0, 0, 1, 1]
    assert Folder(path=videos, labels="none").classes == ()
    assert Folder(path=videos, classes=["z", "b", "a"]).labels().tolist() == [IGNORE, 2, 2, 1, 1]
    with pytest.raises(UserError, match="'b' is not among the classes given"):
        len(Folder(path=videos, classes=["a"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no media files in it \\(it is empty\\)"):
        len(Folder(path=tmp_path / "empty"))
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"no media files in it \(\.txt 1\)"):
        len(Folder(path=tmp_path / "empty"))


def test_names_that_no_list_can_hold_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b\nc.mp4").write_bytes(b"")
    said: list[str] = []

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    data = Folder(path=tmp_path)
    data.materialise(Listener())
    assert len(data) == 1
    assert said == [f"left out, as no list can name it: {tmp_path}/b\\nc.mp4"]


def test_parts_of_archives_in_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "id,path,offset,size,note\n"
        "x,1.tar,512,10,n\ny,1.tar,1024,20,\nz,memory://b/2.tar,0,5,\nw,1.tar,9,9,\nv,c.mp4,,,\nu,,,,\n"
    )
    data = Manifest(path=path, buffer=7)
    assert data.sample(0) == Sample(
        "x", str(tmp_path / "1.tar"), fields={"note": "n"}, root=str(tmp_path), span=(512, 10)
    )
    assert data.sample(2).media == "memory://b/2.tar"
    assert data.sample(4).span is None
    assert data.sample(5).media is None
    storage = data.storage()
    assert storage is not None
    assert (storage.groups.tolist(), storage.buffer) == ([2, 1, 1, 1, 1], 7)
    path.write_text("path,size\na,12\n")
    assert Manifest(path=path).sample(0).fields == {"size": "12"}
    assert Manifest(path=path).storage() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,path,offset\nx,a,1\n", r"a\.csv:1: a column 'offset' without a column 'size'"),
        ("id,path,offset,size\nx,a,1,-2\n", r"a\.csv:2: size: '-2' is not a number of bytes"),
        ("id,path,offset,size\nx,a,1,\n", r"a\.csv:2: size: '' is not a number"),
        (f"id,path,offset,size\nx,a,{'9' * 5000},1\n", r"a\.csv:2: offset: '9+' is not a number"),
        (f"path,label\nx,{'9' * 5000}\n", r"a\.csv: label: 9+ is too large for a class's index"),
        ("path,offset,size\na,1,2\n", r"a\.csv:2: offset: the row is a part .* needs an id"),
        ("id,path,offset,size\nx,,1,2\n", r"a\.csv:2: offset: the row is a part .* needs a path"),
        ("path\nnosuch://x/y\n", "nosuch://x/y: there is no protocol 'nosuch'"),
        ("path\noci://x/y\n", r"oci://x/y: cannot be opened .* pip install"),
    ],
)
def test_wrong_parts(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        len(Manifest(path=tmp_path / "a.csv"))


def write_parquet(to: Path, /, **columns: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), to)
    return to


def test_parquet_columns(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet",
        path=["a.mp4", "b, c.mp4", "d.mp4"],
        label=pyarrow.array([1.0, None, 0.0]),
        start=[0.5, None, float("nan")],
        end=[2, 3, None],
        text=pyarrow.array(["é", None, "x"]).dictionary_encode(),
    )
    data = Manifest(path=path)
    assert data.labels().tolist() == [1, IGNORE, 0]
    assert (data.sample(0).start, data.sample(0).end) == (0.5, 2.0)
    assert (data.sample(2).start, data.sample(2).end) == (0.0, None)
    assert [data.sample(i).fields["text"] for i in range(3)] == ["é", "", "x"]
    assert data.sample(1).media == str(tmp_path / "b, c.mp4")
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert copy.sample(2) == data.sample(2)
    # Another file under the same name is another list.
    write_parquet(path, path=["other.mp4"])
    assert Manifest(path=path).sample(0).id == "other.mp4"


def test_wrong_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", path=["a", "b", "a"])
    with pytest.raises(UserError, match=r"a\.parquet: row 3: 'a' is listed already in row 1"):
        len(Manifest(path=path))
    write_parquet(path, path=["a"], words=[["x", "y"]])
    with pytest.raises(UserError, match="column 'words' holds list"):
        len(Manifest(path=path))
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match="is no Parquet file that can be read"):
        len(Manifest(path=path))


def test_parquet_without_its_package(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", path=["a"])
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from mmssl_media.manifest import Manifest\n"
        f"Manifest(path={str(path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "UserError" in done.stderr
    assert "pip install pyarrow" in done.stderr


# Pictures


def drawing() -> Picture.Image:
    """Every corner of another colour."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30], pixels[:20, 30:], pixels[20:, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return Picture.fromarray(pixels)


def upright(path: Path) -> np.ndarray:
    """The central 40 by 40 pixels, as Pillow reads them."""
    picture = ImageOps.exif_transpose(Picture.open(path)).convert("RGB")
    left, top = (picture.width - 40) // 2, (picture.height - 40) // 2
    return np.asarray(picture)[top : top + 40, left : left + 40].astype(int)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tiff"])
def test_pictures(tmp_path: Path, ending: str, orientation: int) -> None:
    path = tmp_path / f"a.{ending}"
    if orientation != 1 and ending in ("bmp", "tiff"):
        return  # nothing turns these
    exif = Picture.Exif()
    exif[0x112] = orientation
    drawing().save(path, **({} if ending in ("bmp", "tiff") else {"exif": exif, "quality": 95}))
    packed = tmp_path / "packed"
    packed.write_bytes(bytes(700) + path.read_bytes() + bytes(900))
    for sample in (
        Sample("a", str(path)),
        Sample("b", str(packed), span=(700, path.stat().st_size)),
    ):
        with Media(sample) as media:
            picture = Image(short_side=40, crop=40).read(media, Window(0, 0), None)
            assert picture.shape == (40, 40, 3)
            assert np.abs(picture.numpy().astype(int) - upright(path)).mean() < 6
            frames = Video(frames=4, short_side=40, crop=40).read(media, Window(0, 0), None)
            assert torch.equal(frames, picture.expand(4, 40, 40, 3))


def test_preparing_pictures(tmp_path: Path) -> None:
    image = Image(short_side=8, crop=8, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    batch = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    prepared = image.prepare(batch, None)
    assert prepared.shape == (5, *image.shape)
    expected = (batch.double() - torch.tensor([1.0, 2, 3])) / torch.tensor([2.0, 4, 8])
    torch.testing.assert_close(prepared.double(), expected.permute(0, 3, 1, 2))
    assert image.empty().shape == (8, 8, 3)


def test_the_picture_of_a_video_is_its_middle_frame(tmp_path: Path) -> None:
    path = media_files.write(tmp_path / "a.mp4", frames=21, fps=10)
    with Media(Sample("a", str(path))) as media:
        picture = Image(short_side=64, crop=64).read(media, Window(1.05, 0), None)
    assert media_files.number_of(picture.numpy()) == 10


RUN = """\
name: small
seed: 1
threads: 1
device: cpu
modalities: {%s}
backbones: {%s}
data: {train: {use: folder, path: media}, workers: 1}
objective: {use: sdc, rounds: 2, clusters: 2, on_collapse: warn}
training:
  epoch_size: 8
  epochs: 1
  batch_size: 4
  optimizer: {use: adamw, lr: 0.002}
  schedule: cosine
  log_every: 1
"""


def finished(folder: Path, modality: str, backbone: str) -> None:
    (folder / "r.yaml").write_text(RUN % (modality, backbone))
    done = mmssl("run", "r.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    log = (folder / "runs/small/log.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, log) if entry["kind"] == "step"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


def test_a_run_over_a_folder_of_pictures(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "media" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing().rotate(10 * number).save(path)
    finished(
        tmp_path,
        "image: {use: image, short_side: 40, crop: 32}",
        "image: {use: timm, model: test_resnet}",
    )


def test_a_run_over_a_folder_of_sounds(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    for number in range(8):
        sound = 0.1 * np.sin(np.arange(16_000) * 0.05 * (1 + number)).astype(np.float32)
        media_files.write(tmp_path / "media" / f"{number}.flac", sound=sound, sound_codec="flac")
    finished(
        tmp_path,
        "audio: {use: audio, seconds: 0.3, mels: 16}",
        "audio: {use: resnet18_audio, width: 0.125}",
    )
